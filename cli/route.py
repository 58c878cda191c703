"""How does an operator see what a model name leads to now, and why?"""

from typing import TYPE_CHECKING, Any

import click

from cli.table import aligned, printable

if TYPE_CHECKING:
    from common.config.settings import Settings

_NOTHING = "–"  # noqa: RUF001 - Tables use a dash for a missing value.


@click.group()
def route() -> None:
    """See what a model name leads to.

    \b
    sluice route explain fast
    """


@route.command()
@click.argument("model")
@click.option("--key", help="For this key: its id, as `sluice keys list` and reports show it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def explain(model: str, key: str | None, as_json: bool) -> None:
    """Show what would happen now to a request for MODEL: who is called, in which order, who is not, and why.

    \b
    sluice route explain fast
    sluice route explain fast --key 4f7k2m9qwxyz --json

    It reads the settings, and from Redis the health of the deployments, their pauses and budgets, and the key. No API needs to
    run. "cost" is the price of 3,000 tokens of input and 1,000 of output. docs/routing.md explains routes.
    """
    import asyncio  # Imported here, like everything that a help page does not need.

    import orjson

    from cli.stored import load_with_stored
    from common.canonical.errors import GatewayError

    settings = load_with_stored()
    try:
        report = asyncio.run(_report(model, key, settings))
    except GatewayError as error:
        raise click.ClickException(error.failed.message) from error
    click.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() if as_json else _as_text(report))
    if report["redis_problem"]:
        click.echo(f"! {report['redis_problem']}", err=True)


async def _report(model: str, key: str | None, settings: "Settings") -> dict[str, Any]:
    from cli import route_report
    from common.canonical.errors import StoreUnavailable
    from common.process.redaction import shown_url
    from common.redis.client import connect

    redis, where, problem = connect(settings.redis_url), shown_url(settings.redis_url), None
    shared = principal = None
    try:
        shared = await route_report.read_shared(redis, settings)
        principal = await route_report.find_principal(key, redis, settings)
    except StoreUnavailable as error:
        if key is not None:
            raise click.ClickException(f"Redis cannot be used at {where}, so the key is not known: {error}.") from error
        problem = (
            f"Redis cannot be used at {where}: {error}. So it is not known what is unwell, paused or over its budget. "
            "Is SLUICE_REDIS_URL right? `sluice doctor` tells more."
        )
    except route_report.UnknownKey as error:
        raise click.ClickException("There is no key with this id. `sluice keys list` shows the managed keys.") from error
    finally:
        await redis.aclose()
    return {**route_report.explain(model, settings, principal, shared), "key": key, "redis_problem": problem}


def _as_text(report: dict[str, Any]) -> str:
    name = printable(report["model"])
    lines = [f"{name} is a route: {_how(report)}." if report["is_route"] else f"{name} is no route."]
    if report["order"]:
        lines.append("Calls until one answers" + (" (one of the possible orders):" if report["order_varies"] else ":"))
        lines += [_call(number, call) for number, call in enumerate(report["order"], 1)]
    else:
        lines.append("Nothing may be called: the request is refused.")
    head = ["target", "for", "priority", "weight", "tags", "state", "window", "retires", "cost USD"]
    return "\n".join([*lines, "", *aligned([head, *(_row(target) for target in report["targets"])], len(head))])


def _call(number: int, call: dict[str, Any]) -> str:
    return f"  {number}. {printable(call['target'])}, key {call['key']}" + (f" ({call['reason']})" if call["reason"] else "")


def _how(report: dict[str, Any]) -> str:
    strategy = "affinity" if report["affinity"] else report["strategy"]
    return f"{strategy}" + (f", a second call after {report['hedge_after_ms']} ms" if report["hedge_after_ms"] else "")


def _row(target: dict[str, Any]) -> list[str]:
    window = target["context_tokens"]
    return [
        printable(target["target"]),
        ", ".join(target["when"]) if target["when"] else "every request",
        *(_shown(target.get(name)) for name in ("priority", "weight")),
        ", ".join(target.get("tags") or ()) or _NOTHING,
        _state(target),
        f"{window:,}" if window else _NOTHING,
        target["retires"] or _NOTHING,
        target["typical_cost_usd"] or _NOTHING,
    ]


def _shown(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:g}"


def _state(target: dict[str, Any]) -> str:
    """Return what prevents or delays calls."""
    if not target["usable"]:
        return "not configured"
    if target["refusal"]:
        return str(target["refusal"])
    states = [f"key {key['key']} unwell for {key['unwell_s']:.0f} s" for key in target["keys"] if key["unwell_s"]]
    states += [f"key {key['key']} paused for {key['paused_s']:.0f} s" for key in target["keys"] if key["paused_s"]]
    return "; ".join([*states, *([target["budget_problem"]] if target["budget_problem"] else [])]) or "ok"
