"""What does ``docs/models.md`` say? The table of models as a page, by vendor: `make env` writes it."""

from collections.abc import Iterable
from typing import Any

from common.vendors.models import MODELS, ModelFacts, ModelRow

_HEAD = """\
# Models

What Sluice knows about models, and so what it changes in a request that it translates. All rows that match the vendor and
the model's name there are merged; a later row overrides the facts that it names. A model that no row matches gets
what OpenAI's chat completions take, and its vendor has the last word.

`SLUICE_MODEL_FACTS` adds rows behind these, with the same fields, so that you can correct one or add a model of your own:

    SLUICE_MODEL_FACTS='[{"vendors": ["vllm"], "models": "qwen3", "reasoning": "by_default", "reasoning_off": "effort"}]'

This page is written by `make env` from `common/vendors/models.toml`.

## The facts

| field | default | meaning |
| --- | --- | --- |
"""


def render() -> str:
    """Return the page's text."""
    facts = [
        f"| `{name}` | {_value(field.get_default())} | {field.description} |" for name, field in ModelFacts.model_fields.items()
    ]
    vendors = dict.fromkeys(vendor for row in MODELS.rows for vendor in row.vendors)
    return _HEAD + "\n".join([*facts, "", *(line for vendor in vendors for line in _section(vendor))])


def _section(vendor: str) -> Iterable[str]:
    yield f"## {vendor}"
    yield ""
    yield "| models | facts | source |"
    yield "| --- | --- | --- |"
    for row in MODELS.rows:
        if vendor in row.vendors:
            facts = "<br>".join(f"{name}: {_value(value)}" for name, value in row.facts.items())
            yield f"| {_code(row.models) or 'all'} | {facts} | {_source(row)} |"
    yield ""


def _source(row: ModelRow) -> str:
    return f"{row.basis}, {row.date}: <{row.source}>"


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset | tuple):
        return ", ".join(_code(item) for item in (value if isinstance(value, tuple) else sorted(value))) or "none"
    return f"{value:,}" if isinstance(value, int) else _code(str(value))


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


if __name__ == "__main__":
    print(render(), end="")
