"""What does the model do in its ten turns, with the tools that an agent offers?

A step is a call in nobody's words: read a file, run a command. ``call_of`` writes it for the tools that arrived with a
request: it takes the first offered tool that can do it, and fills the fields that its schema has.
"""

import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

NOTE, FIGURE, DRAFT = "The lighthouse has 211 steps.", "Figure of the quarter: 7316", "The tide turns at noon."


@dataclass(frozen=True)
class Step:
    """``expects``: a text in the result."""

    action: str
    file: str = ""
    command: str = ""
    expects: str = ""


# Each turn is one answer of the model, with one call or more.
TURNS: tuple[tuple[Step, ...], ...] = (
    (Step("run", command="ls", expects="notes.txt"),),
    (Step("read", file="notes.txt", expects=NOTE),),
    (Step("read document", file="report.pdf"),),
    (Step("read image", file="chart.png"),),
    (Step("write", file="draft.txt"),),
    (Step("read", file="draft.txt", expects=DRAFT),),
    (Step("edit", file="draft.txt"),),
    (Step("run", command="cat draft.txt", expects=DRAFT.replace("noon", "one")), Step("read", file="notes.txt", expects=NOTE)),
    (Step("run", command="echo broken >&2; exit 3", expects="broken"),),
    (Step("run", command="wc -w notes.txt draft.txt", expects="total"),),
)
_TOOLS = {
    "run": ("Bash", "bash", "exec_command", "exec"),
    "read": ("Read", "read", "exec_command", "exec"),
    "read document": ("Read", "read", "exec_command", "exec"),
    "read image": ("view_image", "Read", "read", "exec"),
    "write": ("Write", "write", "apply_patch", "exec_command", "exec"),
    "edit": ("Edit", "edit", "MultiEdit", "apply_patch", "exec_command", "exec"),
}


def make_folder(folder: Path) -> None:
    """Make the folder in which the agent works."""
    folder.mkdir()
    (folder / "notes.txt").write_text(f"{NOTE}\n")
    (folder / "report.pdf").write_bytes(_pdf(FIGURE))
    (folder / "chart.png").write_bytes(_png(120, 80))


def _pdf(text: str) -> bytes:
    """Return a PDF of one page, whose text is not compressed: a program that is no reader of PDFs can find it."""
    drawing = f"BT /F1 24 Tf 72 700 Td ({text}) Tj ET"
    objects = (
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(drawing)} >>\nstream\n{drawing}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    )
    written, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(written))
        written += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
    return f"{written}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(value for x in range(width) for value in (x * 2, y * 3, 90)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def call_of(step: Step, tools: Mapping[str, dict[str, Any] | None], folder: Path) -> tuple[str, dict[str, Any] | str]:
    """Return the name of a tool and its arguments; a string for a tool that takes plain text.

    A gateway may have put a prefix before a tool's name.
    """
    by_name = {re.split(r"__|\.", name)[-1]: name for name in tools}
    wanted = next((each for each in _TOOLS[step.action] if each in by_name), None)
    assert wanted, f"no tool for {step} among {sorted(tools)}"
    values = _values(step, folder, has_only_shell=wanted.startswith("exec"))
    schema = tools[by_name[wanted]]
    if wanted == "exec":
        code = _javascript(step, values)
        return by_name[wanted], code if schema is None else {"input": code}
    assert schema is not None
    arguments = {name: values[key] for name in schema["properties"] if (key := re.sub("_", "", name).lower()) in values}
    jsonschema.validate(arguments, schema)
    return by_name[wanted], arguments


def _values(step: Step, folder: Path, *, has_only_shell: bool) -> dict[str, Any]:
    """Return the values of a call by the names of their fields, in lower case and without underscores."""
    path = str(folder / step.file)
    commands = {
        "run": step.command,
        "read": f"cat {step.file}",
        "read document": f"cat {step.file}",
        "write": f"printf '%s\\n' '{DRAFT}' > {step.file}",
        "edit": f"sed -i s/noon/one/ {step.file}",
    }
    if step.action == "run" or has_only_shell:
        command = commands.get(step.action, "")
        return {"command": command, "cmd": command, "description": "Take the next step", "path": path}
    if step.action == "write":
        patch = f"*** Begin Patch\n*** Add File: {step.file}\n+{DRAFT}\n*** End Patch"
        return {"filepath": path, "content": f"{DRAFT}\n", "patchtext": patch}
    if step.action == "edit":
        change = f"@@\n-{DRAFT}\n+{DRAFT.replace('noon', 'one')}"
        patch = f"*** Begin Patch\n*** Update File: {step.file}\n{change}\n*** End Patch"
        edit = {"old_string": "noon", "new_string": "one"}
        return {"filepath": path, "oldstring": "noon", "newstring": "one", "edits": [edit], "patchtext": patch}
    return {"filepath": path, "path": path}


def _javascript(step: Step, values: Mapping[str, Any]) -> str:
    """Return a step as a program for Codex's tool ``exec``."""
    if step.action == "read image":
        return f"image(await tools.view_image({{path: {json.dumps(values['path'])}}}));"
    return f"text(await tools.exec_command({{cmd: {json.dumps(values['cmd'])}}}));"
