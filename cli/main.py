"""What can be typed after ``sluice``? Each command starts a tier, or answers a question about the setup.

A command imports its modules only when it runs, so that help pages are fast.
"""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.cache import cache
from cli.config import config
from cli.keys.commands import keys
from cli.managed import providers, routes
from cli.route import route
from cli.usage import usage
from common.version import VERSION

if TYPE_CHECKING:
    from socket import socket

    from common.config.settings import Settings

_processes = click.option(
    "--processes",
    type=click.IntRange(1, 64),
    help="Run so many processes on one port. SIGUSR2 restarts them one by one, without a pause.",
)
_fd = click.option("--fd", type=int, hidden=True, help="The number of a bound socket that another process lends to this one.")
_metrics_socket = click.option(
    "--metrics-socket",
    type=click.Path(path_type=Path),
    hidden=True,
    help="Where this process shows its metrics to those that share its port.",
)
_PORT, _PORT_OR_FREE = click.IntRange(1, 65_535), click.IntRange(0, 65_535)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION)
def main() -> None:
    """Sluice: a queue-backed gateway that streams LLM tokens to very many clients at once.

    Start with `sluice dev`: it runs everything on this machine, without a key. In production, run `sluice api` and
    `sluice worker`, as many of each as you like, with the same settings (SLUICE_* variables, .env or sluice.yaml; .env.example
    lists them). `sluice doctor` says what is wrong with a setup. `sluice COMMAND --help` explains a command.
    """


@main.command()
@click.option("--host", help="Address to listen on. Overrides SLUICE_HOST.")
@click.option("--port", type=_PORT, help="Port to listen on. Overrides SLUICE_PORT.")
@_processes
@_fd
@_metrics_socket
def api(host: str | None, port: int | None, processes: int | None, fd: int | None, metrics_socket: Path | None) -> None:
    """Serve clients: authenticate, enqueue, relay the answers. Listens on SLUICE_HOST:SLUICE_PORT (127.0.0.1:8080).

    \b
    OPENAI_API_KEY=… SLUICE_API_KEYS=… sluice api
    sluice api --host 0.0.0.0 --port 8000
    sluice api --processes 4

    It needs a Redis (SLUICE_REDIS_URL), and a worker: run `sluice worker` in another terminal.
    """
    from api.auth.startup_checks import refuse_to_start
    from api.main import run
    from cli.settings import load_settings, read_settings
    from common.config.setting_sources import Inputs
    from common.process.listening import bind, bound_address, inherited

    with _listening():
        sock = inherited(fd)
    if sock:  # What is said about the address must be true of the one that another process has chosen.
        host, port = bound_address(sock)
    inputs = Inputs()
    settings = load_settings(inputs, host=host, port=port)
    if reason := refuse_to_start(settings):
        click.echo(reason, err=True)
        sys.exit(2)
    if settings.auth == "none":
        click.echo("SLUICE_AUTH=none: anybody who reaches this address may use it.", err=True)
    with _listening():
        sock = sock or bind(settings.host, settings.port, port_option="--port or SLUICE_PORT")
    if processes:
        sys.exit(_supervise("api", settings, sock, processes, settings.api_drain_s + settings.api_unready_s))
    run(settings, partial(read_settings, host=host, port=port), inputs, sock, metrics_socket)


@main.command()
@click.option("--host", help="Address for its health and metrics. Overrides SLUICE_HOST.")
@click.option(
    "--port", type=_PORT_OR_FREE, help="Port for its health and metrics; 0: any free one. Overrides SLUICE_WORKER_PORT."
)
@_processes
@_fd
@_metrics_socket
def worker(host: str | None, port: int | None, processes: int | None, fd: int | None, metrics_socket: Path | None) -> None:
    """Generate answers: call the providers and publish the tokens. Start as many workers as you need.

    \b
    OPENAI_API_KEY=… sluice worker
    sluice worker --port 8081      # GET http://127.0.0.1:8081/readyz and /metrics
    sluice worker --processes 4
    """
    from cli.settings import load_settings, read_settings
    from common.config.setting_sources import Inputs
    from common.process.listening import bind, inherited
    from workers.main import run

    inputs = Inputs()
    settings = load_settings(inputs, host=host, worker_port=port)
    with _listening():
        # It binds to the API's host setting: loopback on one machine, all addresses in a container.
        sock = inherited(fd) or bind(settings.host, settings.worker_port or 0, port_option="--port or SLUICE_WORKER_PORT")
    if processes:
        sys.exit(_supervise("worker", settings, sock, processes, settings.worker_drain_s))
    run(settings, partial(read_settings, host=host, worker_port=port), inputs, sock, metrics_socket)


@main.command()
@click.option("--workers", type=click.IntRange(0, 64), default=2, show_default=True, help="Worker processes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=_PORT, help="Port to listen on. Overrides SLUICE_PORT.")
@click.option("--once", is_flag=True, help="End after the sample answer. The exit status says whether it was complete.")
@click.option("--reload", is_flag=True, help="Restart the API and the workers when the source changes.")
@click.option("--verbose", is_flag=True, help="Show the logs of the processes.")
def dev(workers: int, host: str, port: int | None, once: bool, reload: bool, verbose: bool) -> None:
    """Run everything on this machine: Redis, the demo provider, one API and two workers. No key is needed.

    \b
    sluice dev                     # a sample answer, then a playground until Ctrl-C
    sluice dev --port 8090 --once
    OPENAI_API_KEY=… sluice dev    # a real provider beside the demo
    """
    from cli.dev.command import run
    from cli.settings import load_settings

    sys.exit(run(load_settings(port=port), host=host, workers=workers, once=once, reload=reload, verbose=verbose))


@main.command("demo-provider")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=_PORT_OR_FREE, default=8090, show_default=True, help="Port to listen on; 0: any free one.")
def demo_provider(host: str, port: int) -> None:
    """Serve a provider for demos and tests: OpenAI chat and responses, Anthropic messages, Gemini, Cohere.

    \b
    sluice demo-provider --port 8090
    DEMO_BASE_URL=http://127.0.0.1:8090/v1 sluice worker

    The model's name sets the answer: demo-n50-d20 is 50 tokens, 20 ms apart; demo-e503 fails; demo-cut10 breaks off after ten
    tokens. `python -c "help('demo_provider.script')"` lists all of it.
    """
    from cli.settings import load_settings
    from demo_provider.server import run

    load_settings()  # It uses none of them, but a wrong setting should be reported by every command.
    with _listening():
        run(host, port)


@main.command()
@click.option("--check", is_flag=True, help="Change nothing. The exit status is 1 if a migration is needed.")
def migrate(check: bool) -> None:
    """Create or update the tables that this version needs in the database. Safe while Sluice runs, and safe to repeat.

    \b
    sluice migrate --check
    SLUICE_DATABASE_URL=postgresql://user:password@host/name sluice migrate

    Run it before the first start on PostgreSQL, and before each update. The first process that opens a SQLite file migrates it.
    """
    from cli.migrate import run
    from cli.settings import load_settings

    sys.exit(run(load_settings(), check=check))


@main.group()
def audit() -> None:
    """Read the audit log: the requests and answers of keys whose access has `audit`.

    \b
    sluice keys update 4f7k2m9qwxyz --audit
    sluice audit show gen_…
    """


@audit.command()
@click.argument("generation_id")
def show(generation_id: str) -> None:
    """Decrypt one entry and print it as JSON. Needs the same SLUICE_SECRET as the workers.

    \b
    sluice audit show gen_…      # the id in an answer's header x-generation-id
    """
    from cli.audit import show
    from cli.settings import load_settings

    show(load_settings(), generation_id)


@main.group()
def records() -> None:
    """Inspect what could not be processed: jobs that killed their workers, and records that the ledger could not store.

    \b
    sluice records list
    sluice records drop --all      # after you have looked at them
    """


@records.command("list")
def list_records() -> None:
    """List what is set aside, newest first: time, kind, generation id, reason.

    \b
    sluice records list
    """
    from cli.records import list_all
    from cli.settings import load_settings

    list_all(load_settings().redis_url)


@records.command("show")
@click.argument("generation_id")
def show_record(generation_id: str) -> None:
    """Print everything that is kept of one generation, as JSON. It contains no prompt and no answer.

    \b
    sluice records show gen_…
    """
    from cli.records import show
    from cli.settings import load_settings

    show(load_settings().redis_url, generation_id)


@records.command("drop")
@click.argument("generation_ids", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Everything that is set aside.")
def drop_records(generation_ids: tuple[str, ...], is_all: bool) -> None:
    """Delete what is kept of some generations. This cannot be undone, and the ledger has no row for them.

    \b
    sluice records drop gen_… gen_…
    sluice records drop --all
    """
    from cli.records import drop
    from cli.settings import load_settings

    drop(load_settings().redis_url, generation_ids, is_all=is_all)


@main.command()
@click.option("--keys", "with_keys", is_flag=True, help="Also ask each provider whether its keys are valid. Costs no tokens.")
@click.option("--url", help="Where the API listens, if not at SLUICE_HOST:SLUICE_PORT, as under systemd.")
def doctor(with_keys: bool, url: str | None) -> None:
    """Say what is configured, what is reachable, what is wrong and how to fix it. The exit status is 1 if anything is wrong.

    \b
    sluice doctor
    sluice doctor --keys      # also: does each provider accept its keys?
    sluice doctor --url http://127.0.0.1:8180

    ✓ is right, · is for your information, ! may be a mistake, ✗ is wrong.
    """
    from cli.doctor.command import run
    from cli.stored import load_with_stored

    sys.exit(run(load_with_stored(), with_keys=with_keys, url=url))


def _supervise(tier: str, settings: "Settings", sock: "socket", processes: int, drain_s: float) -> int:
    from cli.supervisor import supervise
    from common.process.logging import configure_logging
    from common.process.redaction import Redactor

    configure_logging(f"{tier}-supervisor", settings.log_level, Redactor.from_settings(settings))
    return supervise([tier], sock, processes, drain_s)


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """End with status 2 and one line if the address cannot be listened on."""
    from common.process.listening import CannotListen

    try:
        yield
    except CannotListen as error:
        click.echo(str(error), err=True)
        sys.exit(2)


main.add_command(cache)
main.add_command(config)
main.add_command(keys)
main.add_command(providers)
main.add_command(routes)
main.add_command(route)
main.add_command(usage)


if __name__ == "__main__":
    main()
