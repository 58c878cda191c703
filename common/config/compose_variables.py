"""Which variables with our prefix does only Compose read?

They are in the same ``.env`` as the settings, so every container has them. A test compares the list to ``docker-compose*.yml``.
"""

COMPOSE_VARIABLES = frozenset(
    {
        "SLUICE_API_INTERNAL",
        "SLUICE_API_REPLICAS",
        "SLUICE_API_STOP_GRACE",
        "SLUICE_HEALTH_INTERVAL",
        "SLUICE_IMAGE",
        "SLUICE_NGINX_MEMORY",
        "SLUICE_NGINX_STOP_GRACE",
        "SLUICE_NOFILE",
        "SLUICE_POSTGRES_MEMORY",
        "SLUICE_PUBLISH",
        "SLUICE_PUBLISH_TLS",
        "SLUICE_REDIS_MAXMEMORY",
        "SLUICE_REDIS_MEMORY",
        "SLUICE_RELAY_SUBNET",
        "SLUICE_SECRETS_FOLDER",
        "SLUICE_TIER_MEMORY",
        "SLUICE_TLS_FOLDER",
        "SLUICE_WORKER_REPLICAS",
        "SLUICE_WORKER_STOP_GRACE",
    }
)
