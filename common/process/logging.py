"""How does a process write its log?

One JSON object per line on standard output, with the ids of the request and the generation where there are any, and never with
contents or keys. arq, uvicorn and other libraries log through the standard library; their lines take the same path. Each line
passes ``redaction`` as a safety net, and so does the traceback of a process that ends with an exception.
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

# Libraries that log every job, connection or access, which we log ourselves.
_QUIET = {
    "alembic.runtime.migration": logging.WARNING,
    "alembic.runtime.plugins": logging.WARNING,
    "arq.worker": logging.WARNING,
    "httpx": logging.WARNING,
    "uvicorn.access": logging.CRITICAL,
    "uvicorn.error": logging.WARNING,
}


def _to_json(event: structlog.typing.EventDict, **options: Any) -> str:
    """Return a line in ASCII, for any terminal encoding. All other characters are escaped."""
    # Hot path: once per log line. orjson is fast; the standard library is for other text, lone surrogates and large numbers.
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
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),  # Writes each line with one call.
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
