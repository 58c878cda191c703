"""Which Lua files for limits do the scripts of other rooms share?

``WINDOW`` counts in sliding windows, ``COUNTERS`` counts money, and ``SETTLING`` (it needs both) settles what a job reserved.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent
WINDOW, COUNTERS, SETTLING = (_FOLDER / f"{name}.lua" for name in ("window", "counters", "settling"))
