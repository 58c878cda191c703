"""How does a process report what it does?

One JSON object per line on standard output: with the request's and the generation's id where there is one, never with
contents or keys. What arq, uvicorn and other libraries log through the standard library takes the same way. Each line
passes ``redaction``, the net below that rule; so does the traceback of a process that ends by one.
"""

import json
import logging
import sys
from typing import Any

import orjson
import structlog

from common.process.redaction import Redactor, redact_tracebacks

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

# Libraries that say each job, connection or access twice over.
_QUIET = {
    "alembic.runtime.migration": logging.WARNING,
    "alembic.runtime.plugins": logging.WARNING,
    "arq.worker": logging.WARNING,
    "httpx": logging.WARNING,
    "uvicorn.access": logging.CRITICAL,
    "uvicorn.error": logging.WARNING,
}


def _to_json(event: structlog.typing.EventDict, **options: Any) -> str:
    """Return a line of ASCII, whatever the terminal's encoding: control signs of any script are escaped."""
    # Hot path: once per log line. What only the standard library takes: other signs, halves of surrogate pairs, large numbers.
    try:
        line = orjson.dumps(event, **options).decode()
    except TypeError:
        line = ""
    return line if line and line.isascii() else json.dumps(event, separators=(",", ":"), **options)


def configure_logging(tier: str, level: str, redact: Redactor | None = None) -> None:
    """Set up logging for one process; ``tier`` (api, worker…) is on every line. ``redact`` knows the settings' secrets."""
    without_secrets = redact or Redactor()
    render = structlog.processors.JSONRenderer(_to_json)

    def add_tier(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {"tier": tier, **event}

    def render_redacted(logger: object, name: str, event: structlog.typing.EventDict) -> str:
        return without_secrets(str(render(logger, name, event)))

    shared: list[structlog.typing.Processor] = [*_SHARED, add_tier]
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, render_redacted],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),  # Writes a line in one.
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render_redacted],
        )
    )

    redact_tracebacks(without_secrets)
    logging.basicConfig(level=max(least, logging.INFO), handlers=[handler], force=True)
    for name, quiet_level in _QUIET.items():
        logging.getLogger(name).setLevel(quiet_level)
