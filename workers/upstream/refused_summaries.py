"""Which accounts may not ask for summaries of reasoning?

OpenAI refuses summaries to organisations that it has not verified, and for some models. Nothing tells that beforehand. So the
first refusal is remembered, for the key and the model, and requests go without a summary until it is forgotten. The client
still gets its answer, and ``x-sluice-dropped`` names what is missing.

Source: https://help.openai.com/en/articles/10910291-api-organization-verification
"""

import time
from collections.abc import Callable
from dataclasses import replace

from common.canonical.errors import ErrorKind, Failed
from workers.providers.base import Deployment
from workers.providers.openai_responses.request import SUMMARY_FIELD

_FORGET_S = 3600.0  # An organisation that was verified gets its summaries some minutes later.
_REMEMBERED_MAX = 1024  # Keys and models. Clients may bring any number of keys.


def refuses_summary(failed: Failed) -> bool:
    return failed.kind is ErrorKind.UPSTREAM_REJECTED and failed.param == SUMMARY_FIELD


class RefusedSummaries:
    """The refusals that this process has seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._refused_at: dict[tuple[str, str], float] = {}  # The oldest first.
        self._clock = clock

    def apply(self, deployment: Deployment) -> Deployment:
        """Return the deployment; one that refuses summaries, if its account was refused one lately."""
        refused_at = self._refused_at.get((deployment.key_id, deployment.model))
        if refused_at is None or self._clock() - refused_at > _FORGET_S:
            return deployment
        return replace(deployment, refuses_summaries=True)

    def record(self, deployment: Deployment) -> None:
        key = (deployment.key_id, deployment.model)
        self._refused_at.pop(key, None)
        self._refused_at[key] = self._clock()
        if len(self._refused_at) > _REMEMBERED_MAX:
            del self._refused_at[next(iter(self._refused_at))]
