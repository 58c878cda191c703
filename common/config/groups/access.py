"""Who may ask?"""

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
)

# RFC 7518, 3.2. Whoever has one text that was signed with a secret can try out short ones at home.
SECRET_BYTES_MIN = 32
KEY_CHARS_MIN = 16  # Of a static key: what is shorter may be found by trying, over a network.


class AccessSettings(BaseModel):
    """Access"""

    api_keys: SecretCommaList = Field((), description="Comma-separated keys that clients may use.")
    auth: Literal["keys", "none"] = Field("keys", description="`none` lets anybody in: only behind your own access control.")
    cors_origins: Origins = Field(
        (), description="Comma-separated browser origins that may call the API: https://app.example, or * for all."
    )
    secret: SecretStr | None = Field(
        None,
        description="Signs read tokens and managed keys, encrypts brought keys; shared by all processes. 32 bytes or more.",
    )
    secret_previous: SecretStr | None = Field(
        None, description="The secret before, or the one to come, while SLUICE_SECRET is changed: docs/security.md."
    )
    admin_keys: SecretCommaList = Field((), description="Comma-separated keys for /admin; without one it is off.")
    jwt_secret: SecretStr | None = Field(None, description="Takes JSON web tokens that are signed with it (HS256).")
    jwt_jwks_url: HttpUrl | None = Field(None, description="Takes JSON web tokens signed by a key listed there (RS256, ES256).")
    jwt_issuer: str | None = Field(None, description="The `iss` that tokens must have.")
    jwt_audience: CommaList = Field((), description="Comma-separated; the `aud` of a token must be one of them.")
    jwt_leeway_s: float = Field(30, ge=0, le=3600, description="How far a token's clock may be off.")
    jwt_tenant_claim: str = Field("tenant", description="The claim that names a token's tenant.")
    jwt_scopes_claim: str = Field("scope", description="The claim that lists a token's scopes.")
    trusted_proxies: CommaList = Field(
        (), description="Addresses or networks whose X-Forwarded-For is believed, for clients' addresses."
    )
    refused_credentials_max: int = Field(
        30,
        ge=0,
        le=10**9,
        description="So many bad credentials of one address in a minute are answered, then it is blocked; 0: never.",
    )
    refused_credentials_block_s: Wait = Field(60, description="How long it is blocked, but for good credentials.")

    @field_validator("secret", "secret_previous", "jwt_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret and len(secret.get_secret_value().encode()) < SECRET_BYTES_MIN:
            raise PydanticCustomError(
                "secret_too_short",
                f"is too short: it must have {SECRET_BYTES_MIN} bytes or more, for whoever has one key or token could find "
                "it by trying. Make one with `openssl rand -hex 32`.",
            )
        return secret

    @field_validator("secret_previous")
    @classmethod
    def _check_previous(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if secret and "secret" in info.data and info.data["secret"] is None:
            raise PydanticCustomError("secret_missing", "needs SLUICE_SECRET, with which everything new is signed.")
        return secret

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """What something may have been signed or encrypted with; the first is for what is new."""
        return tuple(secret for secret in (self.secret, self.secret_previous) if secret)
