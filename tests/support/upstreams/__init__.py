"""Upstreams of a test's own, and what vendors' upstreams answer."""
