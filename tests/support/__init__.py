"""Helpers of the tests: servers, upstreams, clients, a fleet of real processes, and readers of our own sources."""
