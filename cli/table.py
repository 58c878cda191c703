"""How does a terminal show lines with aligned columns?"""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Return the lines of a table, the heading among its rows. The first ``texts`` columns are text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """Return a text without control characters: clients choose names, which must not control the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
