"""Every agent completes ten tool turns with a PDF, an image and reasoning on every vendor's wire.

What an agent cannot do here, it cannot do without Sluice either. Codex and Continue read a PDF as text. Continue's tools show
no images, so its user has pasted one before. opencode returns no signatures of reasoning over chat completions.
"""

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agents.reading import Conversation
from tests.agents.setups import AGENTS, PROMPT, Agent, set_up
from tests.agents.vendor import LAST_WORDS, SKIP, WIRES, Request, StrictVendor, VendorServer, Wire
from tests.agents.work import FIGURE, TURNS, Step, make_folder
from tests.support.fleet import fleet
from tests.support.node_packages import node_packages

SESSION_S = 600  # On a busy machine. A session takes 10 s otherwise.

pytestmark = [pytest.mark.long, pytest.mark.timeout(2 * SESSION_S)]


@dataclass
class Session:
    exit_code: int
    output: str
    vendor: StrictVendor
    statuses: list[int]  # Of Sluice's answers.

    @property
    def requests(self) -> list[Request]:
        """The agent's own requests that the vendor accepted, without those for a title."""
        return [request for request in self.vendor.requests if request.is_of_session]


def run(agent: Agent, wire: Wire, folder: Path) -> Session:
    commands = node_packages(Path(__file__).with_name("package.json"), ".agents") / "node_modules" / ".bin"
    work = folder / "work"
    make_folder(work)
    vendor = StrictVendor(wire, work)
    with VendorServer(vendor) as server:
        upstreams = {f"{name}_BASE_URL": server.url for name in ("ANTHROPIC", "GEMINI", "DEEPSEEK")}
        upstreams |= {"OPENAI_BASE_URL": f"{server.url}/v1", "DEEPSEEK_API_KEY": "sk-upstream-deepseek"}
        with fleet(folder, **upstreams) as gateway:
            env = set_up(agent, folder / "home", work, gateway.url, f"{wire.vendor}/{wire.model}")
            command = [str(commands / agent.command[0]), *agent.command[1:], PROMPT]
            exit_code, output = run_command(command, work, env)
            statuses = [event["status"] for event in gateway.apis[0].events("request") if event["method"] == "POST"]
    return Session(exit_code, output, vendor, statuses)


def run_command(command: list[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    """Return the exit code, and what the command printed. Whatever it has started ends with it."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SESSION_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


@pytest.mark.parametrize("vendor_name", WIRES)
@pytest.mark.parametrize("agent_name", AGENTS)
def test_an_agent_completes_ten_tool_turns(agent_name: str, vendor_name: str, tmp_path: Path) -> None:
    agent, wire = AGENTS[agent_name], WIRES[vendor_name]

    session = run(agent, wire, tmp_path)

    assert session.vendor.refused == []
    assert set(session.statuses) == {200}
    assert (session.exit_code, LAST_WORDS in session.output) == (0, True), session.output
    last = session.requests[-1].conversation
    assert len(last.turns) == len(TURNS) == 10
    assert [step for step, result in results_of(last) if step.expects not in result] == []
    shown = ["document", "image"] if agent.shows_documents else ["image"]
    assert sorted(set(last.media)) == (shown if wire.reads_media else [])
    assert agent.shows_documents or FIGURE in str(last.results)
    for number, turn in enumerate(last.turns):
        returned = [(text, signature) for text, signature in turn.thoughts if signature not in SKIP]
        comes_back = agent.returns_signed if wire.signs else agent.returns_unsigned
        assert returned in (session.vendor.returned_thoughts(number) if comes_back else [[]])
    for before, after in zip(session.requests, session.requests[1:], strict=False):
        assert prompt_of(after)[: len(prompt_of(before))] == prompt_of(before)


def results_of(conversation: Conversation) -> list[tuple[Step, str]]:
    """Return each step of the ten turns with its result."""
    steps = [(turn, index, step) for turn, steps in enumerate(TURNS) for index, step in enumerate(steps)]
    return [(step, conversation.results[conversation.turns[turn].calls[index]]) for turn, index, step in steps]


def prompt_of(request: Request) -> list[str]:
    """Return the prompt in pieces, for the vendor's cache: what stands before the conversation, and each of its items."""
    beginning = [request.body.get(name) for name in ("system", "instructions", "systemInstruction", "tools")]
    return [json.dumps(plain(piece)) for piece in [*beginning, *request.conversation.items]]


def plain(value: Any) -> Any:
    """Return a piece of a prompt without marks for the cache; Claude Code writes a text that has none as a string."""
    if isinstance(value, list):
        pieces = [plain(inner) for inner in value]
        return pieces[0]["text"] if len(pieces) == 1 and set(pieces[0]) == {"type", "text"} else pieces
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if name != "cache_control"}
    return value
