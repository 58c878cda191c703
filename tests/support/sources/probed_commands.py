"""Which commands does the probe of Redis send?"""

import re
from pathlib import Path

_SCRIPT = (Path(__file__).parents[3] / "common" / "redis" / "probe" / "try_all.lua").read_text()

IN_SCRIPT = set(re.findall(r"try\('([A-Z]+)'", _SCRIPT))
BESIDE = {"PING", "SCRIPT", "EVALSHA", "BLPOP", "MULTI", "EXEC", "SUBSCRIBE", "UNSUBSCRIBE"}
# Commands for connecting, and commands that Redis may refuse without harm: see `sluice doctor`.
NOT_TRIED = {"CONFIG", "CLIENT", "AUTH", "SELECT", "HELLO"}
