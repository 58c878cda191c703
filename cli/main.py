"""What can be typed after ``sluice``? Each command starts a tier, or answers a question about the setup."""

import sys

import click
from pydantic import ValidationError

from cli.keys import keys
from cli.usage import usage
from common.redaction import Redactor
from common.settings import Settings
from common.telemetry import redact_tracebacks


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sluice")
def main() -> None:
    """Sluice: a queue-backed gateway that streams LLM tokens to very many clients at once.

    Start with `sluice dev`: everything on this machine, no key needed. In production run `sluice api` and `sluice worker`,
    as many of each as you like, with the same settings (SLUICE_* variables, .env or sluice.yaml).
    """


def load_settings() -> Settings:
    """Return the settings, or end with a message that names what is wrong with them."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            name = "SLUICE_" + "_".join(str(part) for part in problem["loc"]).upper()
            click.echo(f"{name}: {problem['msg']}", err=True)
        sys.exit(2)
    redact_tracebacks(Redactor.of(settings))
    return settings


@main.command()
def api() -> None:
    """Serve clients: authenticate, enqueue, relay. Listens on SLUICE_HOST:SLUICE_PORT (127.0.0.1:8080)."""
    settings = load_settings()  # First: what is wrong with them is told at once, the rest takes a while to load.
    from api.main import run
    from api.safe_start import refuse_to_start

    if reason := refuse_to_start(settings):
        click.echo(reason, err=True)
        sys.exit(2)
    if settings.auth == "none":
        click.echo("SLUICE_AUTH=none: anybody who reaches this address may use it.", err=True)
    run(settings)


@main.command()
def worker() -> None:
    """Work on generations: hold the upstream connections and publish tokens. Start as many as you need."""
    settings = load_settings()
    from workers.main import run

    run(settings)


@main.command()
@click.option("--workers", default=2, show_default=True, help="Worker processes.")
@click.option("--once", is_flag=True, help="End after the sample answer; the exit status tells whether it was complete.")
@click.option("--reload", is_flag=True, help="Restart the API and the workers when the source changes.")
@click.option("--verbose", is_flag=True, help="Show the processes' logs.")
def dev(workers: int, once: bool, reload: bool, verbose: bool) -> None:
    """Run everything on this machine: Redis, the demo provider, one API and two workers. No key needed."""
    from cli.dev import run

    sys.exit(run(load_settings(), workers=workers, once=once, reload=reload, verbose=verbose))


@main.command("demo-provider")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8090, show_default=True, help="0 takes a free one.")
def demo_provider(host: str, port: int) -> None:
    """Serve a make-believe provider: OpenAI chat and responses, Anthropic messages.

    What it answers is set by the model's name: demo-n50-d20 is 50 tokens, 20 ms apart; demo-e503 fails; demo-cut10 breaks
    off after ten tokens. `python -c "help('cli.demo_provider.script')"` lists all of it.
    """
    from cli.demo_provider.server import run

    run(host, port)


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; the exit status is 1 where there is something to do.")
def migrate(check: bool) -> None:
    """Give the database the tables that this version needs. Safe while Sluice runs, and as often as you like.

    Run it before the first start on PostgreSQL and before each update. A SQLite file is migrated by whoever opens it first.
    """
    from cli.migrate import run

    sys.exit(run(load_settings(), check=check))


@main.group()
def audit() -> None:
    """Read the audit log: what was asked and answered by keys whose access says `audit`."""


@audit.command()
@click.argument("generation_id")
def show(generation_id: str) -> None:
    """Decrypt one entry, and print it as JSON. It needs the same SLUICE_SECRET as the workers."""
    from cli.audit import show

    show(load_settings(), generation_id)


@main.command()
def doctor() -> None:
    """Say what is configured, what is reachable, what is wrong and how to mend it. Exit status 1 if anything is wrong."""
    from cli.doctor import run

    sys.exit(run(load_settings()))


main.add_command(keys)
main.add_command(usage)


if __name__ == "__main__":
    main()
