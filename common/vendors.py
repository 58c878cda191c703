"""Which providers exist, and what does each need?

A vendor on a wire that we already speak is one row here. ``env`` prefixes its variables: ``{env}_API_KEY`` switches it on
(several keys, comma-separated, are used in turn when one is refused), ``{env}_BASE_URL`` overrides its address, which is
what the vendor's own SDK calls the base URL.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vendor:
    """``evident`` matches bare model names that can only be this vendor's; ``wire`` is a key of ``workers.providers.WIRES``."""

    id: str
    env: str
    wire: str
    base_url: str | None
    evident: re.Pattern[str]
    aliases: tuple[str, ...] = ()
    key_is_needed: bool = True


VENDORS: dict[str, Vendor] = {
    vendor.id: vendor
    for vendor in (
        Vendor(
            "openai",
            env="OPENAI",
            wire="openai-chat",
            base_url="https://api.openai.com/v1",  # As openai-python's OPENAI_BASE_URL: ends in /v1.
            evident=re.compile(r"(gpt-|chatgpt-|o\d(-|$))"),
        ),
        Vendor(
            "anthropic",
            env="ANTHROPIC",
            wire="anthropic-messages",
            base_url="https://api.anthropic.com",  # As anthropic-python's ANTHROPIC_BASE_URL: does not end in /v1.
            evident=re.compile(r"claude-"),
        ),
        Vendor(
            "demo",
            env="DEMO",
            wire="openai-chat",
            base_url=None,  # On only where DEMO_BASE_URL says so; `sluice dev` sets it.
            evident=re.compile(r"demo(-|$)"),
            key_is_needed=False,
        ),
    )
}

VENDOR_IDS: dict[str, str] = {name: vendor.id for vendor in VENDORS.values() for name in (vendor.id, *vendor.aliases)}
