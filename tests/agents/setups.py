"""How is each agent set up? With the lines of docs/clients.md, in a home of its own, and so that it calls nobody but Sluice."""

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fleet import KEY, ROOT

_SECTION = (ROOT / "docs" / "clients.md").read_text().partition("## Agents in the terminal")[2].partition("\n## ")[0]
_LINES = dict(re.findall(r"^```(sh|toml|json|yaml)\n(.*?)^```", _SECTION, re.MULTILINE | re.DOTALL))
PROMPT = "Read the files in this folder, write a draft, and tell me when you are done."
# Nothing listens on port 9. What an agent sends to another machine goes to this proxy.
_NOWHERE = "http://127.0.0.1:9"
_QUIET = {
    "HTTP_PROXY": _NOWHERE,
    "HTTPS_PROXY": _NOWHERE,
    "http_proxy": _NOWHERE,
    "https_proxy": _NOWHERE,
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DO_NOT_TRACK": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "CONTINUE_CLI_ENABLE_TELEMETRY": "0",
    "CONTINUE_METRICS_ENABLED": "0",
}


@dataclass(frozen=True)
class Agent:
    """``command``: its arguments, without the prompt. ``language``: that of its lines in docs/clients.md.

    ``settings``: the file for these lines, in its home; None: they are variables. ``replaced``: words of these lines, each with
    another for it. ``shows_documents``: whether it can send a PDF; otherwise it sends the PDF's text. ``returns_signed``,
    ``returns_unsigned``: whether it sends back reasoning that its vendor has signed, and reasoning without a signature.
    ``pasted_image``: the file of an earlier session in which its user has pasted an image, because its tools show none.
    """

    name: str
    language: str
    command: tuple[str, ...]
    settings: str | None = None
    shows_documents: bool = True
    returns_signed: bool = True
    returns_unsigned: bool = True
    pasted_image: str | None = None
    replaced: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


AGENTS = {
    agent.name: agent
    for agent in (
        Agent(
            "claude-code",
            "sh",
            ("claude", "-p", "--allowedTools", "Bash,Read,Write,Edit", "--"),
        ),
        Agent(
            "codex",
            "toml",
            ("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
            ".codex/config.toml",
            shows_documents=False,
            env={"SLUICE_KEY": KEY},
        ),
        Agent("opencode", "json", ("opencode", "run", "--auto"), ".config/opencode/opencode.json", returns_unsigned=False),
        Agent(
            "opencode-chat",
            "json",
            ("opencode", "run", "--auto"),
            ".config/opencode/opencode.json",
            replaced={
                "@ai-sdk/anthropic": "@ai-sdk/openai-compatible",
                '"effort"': '"reasoningEffort"',
                ', "thinking": { "type": "adaptive", "display": "summarized" }': "",
            },
            returns_signed=False,
        ),
        Agent(
            "continue",
            "yaml",
            ("cn", "--auto", "--fork", "before", "-p"),
            ".continue/config.yaml",
            shows_documents=False,
            returns_unsigned=False,
            pasted_image=".continue/sessions/before.json",
        ),
    )
}


def set_up(agent: Agent, home: Path, work: Path, url: str, model: str) -> dict[str, str]:
    """Write the agent's settings below ``home``; return its environment."""
    lines = _LINES[agent.language].replace("http://127.0.0.1:8080", url).replace("sk-demo", KEY)
    for old, new in agent.replaced.items():
        assert old in lines, f"docs/clients.md no longer has {old}"
        lines = lines.replace(old, new)
    lines = re.sub(r"\bdemo\b", model, lines)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **_QUIET, **agent.env}
    if agent.pasted_image:
        _write(home / agent.pasted_image, _session_with_image(work / "chart.png"))
    if agent.settings is None:
        home.mkdir()
        return env | dict(re.findall(r"([A-Z_]+)=(\S+)", lines))
    _write(home / agent.settings, lines)
    return env


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _session_with_image(image: Path) -> str:
    """Return a session of Continue, as it stores them."""
    url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    pasted = [{"type": "text", "text": "Here is the chart."}, {"type": "imageUrl", "imageUrl": {"url": url}}]
    said = [{"role": "user", "content": pasted}, {"role": "assistant", "content": "I see it."}]
    history = [{"message": message, "contextItems": []} for message in said]
    return json.dumps({"sessionId": "before", "title": "Before", "workspaceDirectory": str(image.parent), "history": history})
