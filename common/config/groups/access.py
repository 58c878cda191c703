"""Which settings say who may use the gateway?"""

from functools import cached_property
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    CommaList,
    HttpUrl,
    Origins,
    SecretCommaList,
    Wait,
    refuse_placeholder,
)

# RFC 7518, 3.2. Anybody who has one text that was signed with a short secret can find the secret offline by trial.
SECRET_BYTES_MIN = 32
KEY_CHARS_MIN = 16  # Of a static key: a shorter one may be found by trial over a network.


class AccessSettings(BaseModel):
    """Access"""

    api_keys: SecretCommaList = Field((), description="Comma-separated keys that clients may use.")
    auth: Literal["keys", "none"] = Field(
        "keys", description="`none` admits everybody. Use it only behind your own access control."
    )
    cors_origins: Origins = Field(
        (), description="Comma-separated browser origins that may call the API: https://app.example, or * for all."
    )
    secret_store: str | None = Field(
        None,
        description="A cloud's secret store with further variables: aws:ID, google:PROJECT or azure:URL. See "
        "docs/configuration.md.",
    )
    secret: SecretStr | None = Field(
        None,
        description="Signs read tokens and managed keys, encrypts clients' provider keys. The same for all processes, at "
        "least 32 bytes.",
    )
    secret_previous: SecretStr | None = Field(
        None, description="The previous or the next secret, while SLUICE_SECRET is being changed: docs/security.md."
    )
    admin_keys: SecretCommaList = Field((), description="Comma-separated keys for /admin. Without one, /admin is off.")
    jwt_secret: SecretStr | None = Field(None, description="Accept JSON web tokens that are signed with it (HS256).")
    jwt_jwks_url: HttpUrl | None = Field(
        None, description="Accept JSON web tokens that are signed by a key listed there (RS256, ES256)."
    )
    jwt_issuer: str | None = Field(None, description="The `iss` that tokens must have.")
    jwt_audience: CommaList = Field((), description="Comma-separated; the `aud` of a token must be one of them.")
    jwt_leeway_s: float = Field(30, ge=0, le=3600, description="How far the clock of a token's issuer may be off.")
    jwt_tenant_claim: str = Field("tenant", description="The claim that names a token's tenant.")
    jwt_scopes_claim: str = Field("scope", description="The claim that lists a token's scopes.")
    trusted_proxies: CommaList = Field(
        (), description="Comma-separated addresses or networks of proxies whose X-Forwarded-For gives the client's address."
    )
    refused_credentials_max: int = Field(
        30,
        ge=0,
        le=10**9,
        description="After so many bad credentials from one address in a minute, the address is blocked. 0: never.",
    )
    refused_credentials_block_s: Wait = Field(
        60, description="How long the address is blocked. Good credentials are still accepted."
    )

    @field_validator("secret", "secret_previous", "jwt_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        refuse_placeholder(secret.get_secret_value())
        if len(secret.get_secret_value().encode()) < SECRET_BYTES_MIN:
            raise PydanticCustomError(
                "secret_too_short",
                f"it must have {SECRET_BYTES_MIN} bytes or more, or it could be found by trial. Make one with "
                "`openssl rand -hex 32`.",
            )
        return secret

    @field_validator("secret_previous")
    @classmethod
    def _check_previous(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if secret and "secret" in info.data and info.data["secret"] is None:
            raise PydanticCustomError("secret_missing", "it needs SLUICE_SECRET, which signs everything new.")
        return secret

    @cached_property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The secrets that may have signed or encrypted something. The first one signs everything new."""
        return tuple(secret for secret in (self.secret, self.secret_previous) if secret)
