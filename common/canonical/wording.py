"""How do messages to people say numbers?"""

import math


def counted(number: float, plural: str) -> str:
    """Return a number of things, such as "2 seconds" or "1 second". ``plural`` is their name, ending in "s"."""
    digits = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{digits} {plural.removesuffix('s') if number == 1 else plural}"


def try_again(wait_s: float) -> str:
    """Return the sentence that says when to come back, in the whole seconds of the header ``Retry-After``."""
    return f"Try again in {counted(math.ceil(wait_s), 'seconds')}."
