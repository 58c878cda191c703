"""What stands around Sluice, each started for a test: Redis, Sentinels, PostgreSQL, nginx, a proxy that can be cut."""
