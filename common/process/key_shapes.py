"""What do the API keys of common vendors look like?

The personal-data guardrail uses this table to search prompts and answers, and the log's redaction uses it to search log lines.
Each shape begins with a mark that is rare elsewhere. The guardrail distinguishes a key from a word by the length of what
follows. The log's pattern is shorter and has no maximum, because redacting too much does no harm there.
"""

from typing import NamedTuple

LOG_CHARS_MIN = 8


class KeyShape(NamedTuple):
    """Each key contains one of the plain texts in ``marks``. ``head``, ``tail`` and ``end`` are expressions for both ``re`` and
    ``regex``: the tail is a character class, repeated ``chars_min`` to ``chars_max`` times, and ``end`` follows it.
    """

    marks: tuple[str, ...]
    head: str
    tail: str
    chars_min: int
    chars_max: int
    end: str = ""

    @property
    def exact(self) -> str:
        return f"{self.head}{self.tail}{{{self.chars_min},{self.chars_max}}}{self.end}"

    @property
    def wide(self) -> str:
        return f"{self.head}{self.tail}{{{min(self.chars_min, LOG_CHARS_MIN)},}}"


_ALNUM, _WORD = "[A-Za-z0-9]", "[A-Za-z0-9_-]"
KEY_SHAPES = (
    # OpenAI, Anthropic, DeepSeek, OpenRouter and many more; our own managed keys; Stripe.
    KeyShape(("sk-",), "sk-", _WORD, 20, 250),
    KeyShape(("sk_sluice_",), "sk_sluice_[a-z0-9]{12}_", _ALNUM, 38, 38),
    KeyShape(("k_live_", "k_test_"), "[sr]k_(?:live|test)_", _ALNUM, 16, 250),
    KeyShape(("whsec_",), "whsec_", "[A-Za-z0-9+/=]", 20, 100),
    KeyShape(("AKIA", "ASIA"), "A[KS]IA", "[A-Z0-9]", 16, 16, "(?![A-Za-z0-9])"),
    KeyShape(("AIza",), "AIza", _WORD, 35, 35),
    KeyShape(("ya29.",), r"ya29\.", _WORD, 20, 500),
    KeyShape(("gho_", "ghp_", "ghr_", "ghs_", "ghu_"), "gh[oprsu]_", _ALNUM, 36, 255),
    KeyShape(("github_pat_",), "github_pat_", "[A-Za-z0-9_]", 22, 255),
    KeyShape(("glpat-",), "glpat-", _WORD, 20, 100),
    KeyShape(("xox",), "xox[abeoprs]-", "[A-Za-z0-9-]", 10, 250),
    KeyShape(("xapp-",), "xapp-", "[A-Za-z0-9-]", 10, 250),
    KeyShape(("hf_",), "hf_", _ALNUM, 30, 100),
    KeyShape(("gsk_",), "gsk_", _ALNUM, 40, 100),
    KeyShape(("xai-",), "xai-", _ALNUM, 40, 120),
    KeyShape(("pplx-",), "pplx-", _ALNUM, 40, 100),
    KeyShape(("csk-",), "csk-", _ALNUM, 40, 100),
    KeyShape(("npm_",), "npm_", _ALNUM, 36, 36),
    KeyShape(("pypi-",), "pypi-", _WORD, 50, 250),
    KeyShape(("SG.",), rf"SG\.{_WORD}{{16,64}}\.", _WORD, 16, 64),
    KeyShape(("doo_v1_", "dop_v1_", "dor_v1_"), "do[opr]_v1_", "[a-f0-9]", 64, 64),
)
# JSON web tokens: complete ones, and, for the log, also unsigned or cut ones.
TOKEN = rf"eyJ{_WORD}{{8,2000}}\.eyJ{_WORD}{{8,4000}}\.{_WORD}{{8,1500}}"
TOKEN_WIDE = rf"eyJ{_WORD}{{8,}}\.{_WORD}+(?:\.{_WORD}*)?"
