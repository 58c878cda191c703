"""Servers around Sluice that a test starts: Redis, Sentinels, PostgreSQL, nginx, a proxy that can be cut."""
