"""Which response belongs to which generation? Their ids differ only in the prefix."""


def response_id(generation_id: str) -> str:
    """
    >>> response_id("gen_1f")
    'resp_1f'
    """
    return "resp_" + generation_id.removeprefix("gen_")


def parse_response_id(response_id: str) -> str:
    """
    >>> parse_response_id("resp_1f")
    'gen_1f'
    """
    return "gen_" + response_id.removeprefix("resp_")
