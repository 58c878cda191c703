"""What does every process of ours do to itself at its start?"""

import resource


def raise_file_limit() -> int:
    """Raise the number of files that this process may open to its hard limit, and return it: a stream is a file or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
