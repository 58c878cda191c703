"""What does a process of ours do to itself at its start?"""

import ctypes
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1  # Source: prctl(2).


def raise_file_limit() -> int:
    """Raise the number of files that this process may open to its hard limit, and return it: a stream is a file or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def die_with_parent() -> None:
    """Have Linux end this process when its parent is gone, even by SIGKILL; elsewhere the orderly ways must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
