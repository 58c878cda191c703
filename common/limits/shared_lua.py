"""Which Lua do the scripts of other rooms share that count limits?

``WINDOW`` counts in sliding windows, ``COUNTERS`` money, and ``SETTLING``, which needs both, gives back what a job has held.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent
WINDOW, COUNTERS, SETTLING = (_FOLDER / f"{name}.lua" for name in ("window", "counters", "settling"))
