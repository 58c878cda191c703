"""Would a fallback's model get all of the request, and has it the room for it?

A fallback that loses tools, a schema, an image or a document is worse than the failure that it hides: the client would act on
an answer to another question. So such a fallback is skipped, and the log and a metric say why. Fields without an influence on
what the answer can be, and another vendor's reasoning in the history, may be lost; the client is told as always.

Only what is known counts: what the table of models says, and what the provider's adapter refuses or leaves out. The rest is for
the vendor to say.
"""

import re
from collections.abc import Collection
from typing import Literal

from common.canonical.errors import GatewayError
from common.canonical.generation import DocumentPart, GenerationRequest, ImagePart, ToolResultPart
from common.canonical.job import Job
from common.dialects.base import ReplyInfo
from common.metering.token_estimate import estimate_tokens
from common.vendors.models import ModelFacts
from workers.attempt.prepare import prepare_request
from workers.metering.charging import requested
from workers.providers import WIRES
from workers.providers.base import Deployment
from workers.providers.shared.history import kind_of

Misfit = Literal["window", "tools", "schema", "media", "request"]

# An estimate is seldom more than 1.5 times the real count. Twice the window is surely too much; the vendor decides below that.
SURE_FACTOR = 2
_BODY_BYTES_PER_TOKEN_MIN = 4  # As ``token_estimate`` counts. A shorter body need not be parsed.
_LOST = re.compile(r"(?P<media>(messages|input|contents)\.\d)|(?P<tools>tools(\.\d|$)|tool_choice$|functions$)")
_LOST_FORMAT = ("response_format", "text.format", "output_config.format", "output_format")


def surely_overflows(job: Job, facts: ModelFacts) -> bool:
    """Whether a model's window is known, and the conversation surely does not fit into it."""
    window = facts.context_tokens
    if window is None or len(job.body) < SURE_FACTOR * window * _BODY_BYTES_PER_TOKEN_MIN:
        return False
    request = requested(job)
    return request is not None and estimate_tokens(request) >= SURE_FACTOR * window


def find_misfit(
    job: Job, deployment: Deployment, info: ReplyInfo, refused_window: int, dropped: Collection[str] = ()
) -> Misfit | None:
    """Return why a fallback's deployment cannot take a request; None: it can, as far as is known.

    Args:
        refused_window: the largest known window, in tokens, of the models that the conversation was too long for; 0: none.
        dropped: what the targets would have lost too.
    """
    window = deployment.facts.context_tokens
    if window is not None and (window <= refused_window or surely_overflows(job, deployment.facts)):
        return "window"
    request = requested(job)
    if request is None:
        return "request"
    if misfit := _unable(request, deployment.facts):
        return misfit
    try:
        upstream, _ = prepare_request(job, WIRES[deployment.wire], deployment, info)
    except GatewayError:
        return "request"
    return next(filter(None, (_lost(name) for name in upstream.dropped if name not in dropped)), None)


def _unable(request: GenerationRequest, facts: ModelFacts) -> Misfit | None:
    """Return what the table of models says that a model does not do. In its own family, a request would pass unchanged."""
    if request.tools and not facts.tools:
        return "tools"
    wanted = request.response_format
    if wanted and wanted.schema is not None and facts.json_schema is False:
        return "schema"
    parts = (part for message in request.messages for part in message.parts)
    flat = (inner for part in parts for inner in (part.content if isinstance(part, ToolResultPart) else (part,)))
    media = {kind_of(part) for part in flat if isinstance(part, ImagePart | DocumentPart)} - {"text"}
    return "media" if facts.reads is not None and media & {"image", "pdf", "audio"} - facts.reads else None


def _lost(name: str) -> Misfit | None:
    """Return what a dropped field means for the answer; None: nothing that matters here."""
    if name in _LOST_FORMAT:
        return "schema"
    match = _LOST.match(name)
    return ("media" if match["media"] else "tools") if match else None
