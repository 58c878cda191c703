"""Clients: vendors' SDKs, strict readers of the other dialects, a browser."""
