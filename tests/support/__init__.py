"""What tests use and no test is: servers, upstreams, clients, a fleet of real processes, and readers of our own sources."""
