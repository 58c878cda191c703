"""Upstreams that tests start, and answers of vendors' upstreams."""
