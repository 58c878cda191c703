"""Which settings say which answers are cached, for how long, and where?"""

from pydantic import BaseModel, Field, field_validator

from common.access.cache_rule import TTL_S_MAX, CachePolicy, CacheRule, CacheScope
from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import RedisUrl


class CacheSettings(BaseModel):
    """Cache"""

    cache_ttl_s: float | None = Field(
        None,
        ge=0,
        le=TTL_S_MAX,
        description="How long an answer is used again for identical requests. Unset: only for requests that ask with "
        "x-sluice-cache: use. 0: never. See docs/caching.md.",
    )
    cache_policy: CachePolicy = Field(
        "deterministic", description="Which requests are cached: those that ask for temperature 0, or all."
    )
    cache_scope: CacheScope = Field("key", description="Who gets a cached answer: requests of the same key, or of its tenant.")
    cache_anonymous: bool = Field(
        False,
        description="Whether clients without a key get each other's cached answers. Otherwise nothing of theirs is cached.",
    )
    cache_models: dict[str, CacheRule] = Field(
        default_factory=dict,
        description='Rules for models, by pattern; the first that matches counts: {"gpt-*": {"ttl_s": 600, "policy": "all"}}.',
    )
    cache_dialects: dict[str, CacheRule] = Field(
        default_factory=dict, description='Rules for dialects, weaker than those for models: {"unified": {"ttl_s": 600}}.'
    )
    cache_join: bool = Field(
        True, description="Whether identical cacheable requests that run at the same time share one upstream call."
    )
    cache_redis_url: RedisUrl | None = Field(None, description="A Redis for cached answers alone. Unset: SLUICE_REDIS_URL.")
    cache_bytes_max: int = Field(
        256 * MIB, ge=MIB, le=64 * GIB, description="Total size of all cached answers. The oldest are removed first."
    )
    cache_entry_bytes_max: int = Field(MIB, ge=KIB, le=64 * MIB, description="A larger answer is not cached.")

    @field_validator("cache_dialects")
    @classmethod
    def _check_dialects(cls, rules: dict[str, CacheRule]) -> dict[str, CacheRule]:
        if rules:
            from common.dialects import DIALECTS  # Imported here, because few setups need them.

            if unknown := rules.keys() - DIALECTS:
                raise ValueError(f"there is no dialect {min(unknown)!r}. There are: {', '.join(DIALECTS)}")
        return rules

    @property
    def cache_default(self) -> CacheRule:
        """The weakest rule."""
        return CacheRule(
            ttl_s=self.cache_ttl_s, policy=self.cache_policy, scope=self.cache_scope, anonymous=self.cache_anonymous
        )
