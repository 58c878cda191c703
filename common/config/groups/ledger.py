"""Which settings say where records are stored, and for how long?"""

from pydantic import BaseModel, Field

from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    DatabaseUrl,
)


class LedgerSettings(BaseModel):
    """Database and ledger"""

    database_url: DatabaseUrl = Field(
        "sqlite:///sluice.db",
        description="For usage and managed keys: sqlite:///FILE on one machine, or postgresql://user:password@host/name.",
    )
    audit_retention_days: float = Field(30, gt=0, le=3650, description="How long the audit log keeps an entry.")
