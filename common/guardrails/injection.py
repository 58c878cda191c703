"""Does a text try to override the application's instructions to the model?

Heuristics: a few kinds of phrases and structures, each with a weight. A text is an injection if the weights of its kinds add
up to 1. The kinds are common in published collections of attacks, and rare in ordinary prompts, source code and texts about
prompt injection: an instruction counts in the imperative at the start of a sentence, and much less in quotation marks. An
attack in other words gets through: this makes attacks harder, but does not prevent them.

Source: OWASP Top 10 for LLM Applications, LLM01; S. Schulhoff et al., HackAPrompt, https://arxiv.org/abs/2311.16119.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass

import regex

from common.guardrails.sanitize import hidden_text, sanitize
from common.guardrails.search import Findings, Prompt, Search
from common.guardrails.table import Guardrail, Side

THRESHOLD = 1.0
QUOTED_WEIGHT = 0.4  # Factor for a quoted phrase: texts about attacks quote them.

# Where an instruction begins: the start of a line or a sentence, with optional words before the verb.
_HEAD = r"""(?: ^ | [.!?:;\n\r>\]})*|-] | , ) \s* [\W_]{0,6}
    (?: (?: please | now | and | then | so | but | also | ok(?:ay)? | hey | hi | first(?:ly)? | instead | just | simply
            | important | stop
          | you \s+ (?: must | should | will | can | need \s+ to | have \s+ to | are \s+ to | may )
          | i \s+ (?: want | need | order | command | would \s+ like ) \s+ you \s+ to | let's ) [\s,:!-]{1,3} ){0,3}
"""
_OLD = r"""(?: all | any | every | everything | each | the | your | my | of | these | those | this | that | previous
            | prior | above | earlier | preceding
    | former | foregoing | existing | initial | original | system | developer | given | past | other | safety
            | prompt ) \s+"""
_INSTRUCTIONS = r"""(?: instruction | prompt | rule | direction | guideline | command | directive | constraint | restriction
            | programming | training | order )s?"""
_BEFORE = r"""(?: previous | prior | above | earlier | preceding | foregoing | before | system | original | initial
            | safety | all | your | so \s+ far | until \s+ now )"""


@dataclass(frozen=True, slots=True)
class _Signal:
    kind: str
    weight: float
    pattern: regex.Pattern[str]


def _signal(kind: str, weight: float, pattern: str) -> _Signal:
    return _Signal(kind, weight, regex.compile(pattern, regex.VERBOSE | regex.MULTILINE))


_SIGNALS = (
    _signal(
        "override",
        1.0,
        rf"""{_HEAD} (?: (?: completely | totally | fully | entirely ) \s+ )?
        (?: ignore | disregard | forget | override | overwrite | bypass | discard | neglect | do \s+ not \s+ follow
            | don't \s+ follow | stop \s+ following )
        \s+ (?= [^.\n]{{0,60}} \b {_BEFORE} \b ) (?: {_OLD} ){{1,6}} (?: \w{{1,30}} \s+ ){{0,1}} {_INSTRUCTIONS} \b""",
    ),
    _signal(
        "override",
        1.0,
        rf"""{_HEAD} (?: ignore | disregard | forget ) \s+ (?: everything | all | anything | what )
        (?: \s+ of )? (?: \s+ (?: that | which | you ) ){{0,2}} \s+ (?: (?: was | were | have \s+ been | had \s+ been
            | been | i | they | we ) \s+ ){{0,2}}
        (?: (?: told | said | instructed | wrote | learned | written | stated | given ) \s+ (?: to \s+ you \s+ | you \s+ )? )?
        (?: above | before | previously | earlier | so \s+ far | until \s+ now | up \s+ to \s+ now ) \b""",
    ),
    _signal(
        "override",
        1.0,
        r"""(?: ignorier | vergiss | missachte ) \w{0,20} \s+ (?: bitte \s+ )? (?: alle | deine | die
            | s(?:ä|ae)mtliche ) \w{0,20} \s+
            (?: vorherigen | bisherigen | obigen | vorigen | fr(?:ü|ue)heren | deine | urspr(?:ü|ue)nglichen ) \s+
            (?: anweisung | instruktion | regel | vorgabe )
          | (?: ignor[ae]z? | olvid[ae] | oubli(?:e|ez) | dimentica | esque[cç]a | ignorez ) \s+ (?: \w{1,30} \s+ ){0,3}
            (?: instrucci[oó]n\w{0,20} | instru[cç][oõ]es | instruç[aã]o
               | istruzioni | consignes | instructions ) \s+ (?: \w{1,30} \s+ )? (?: anterior
            | pr[eé]c[eé]dent | precedent | previ )
          | (?: 忽略 | 无视 | 無視 | 忘记 | 忘掉 ) [^。\n]{0,6} (?: 之前 | 以上 | 先前 | 所有 | 前面 )
            [^。\n]{0,6} (?: 指令 | 指示 | 提示 | 规则 )
          | (?: 以前 | 前 | これまで | 上記 ) の [^。\n]{0,6} (?: 指示 | 命令 ) を? [^。\n]{0,6} (?: 無視 | 忘れ )
          | (?: игнорируй | забудь | не \s+ обращай \s+ внимания \s+ на ) \w{0,20} \s+ (?: \w{1,30} \s+ ){0,2} (?: предыдущ
            | прежн | вышеуказан ) \w{0,20} \s+ (?: инструкци | указани | правил )""",
    ),
    _signal(
        "role",
        1.0,
        r"""\b (?: you \s+ are \s+ now | from \s+ now \s+ on \s*,? \s+ you (?: \s+ are | 're | \s+ will \s+ (?: be
            | act \s+ as ) ) | act \s+ as | pretend \s+ (?: to \s+ be | you \s+ are )
            | enable | enter | switch \s+ to | activate ) \s+ (?: an? \s+ | the \s+ | in \s+ | into \s+ )?
            (?: \w{1,30} \s+ ){0,2}
            (?: dan | do \s+ anything \s+ now | developer \s+ mode | god \s+ mode | jailbroken | jailbreak \s+ mode
            | unrestricted | unfiltered | uncensored | amoral
              | stan | dude | evil \s+ (?: ai | assistant | confidant ) )
            \b (?! \s* (?: setting | toggle | on \s+ (?: your | my | the ) \s+ (?: phone | device | android ) ) )""",
    ),
    _signal(
        "role",
        0.6,
        r"""\b (?: you \s+ (?: have | are \s+ (?: under | bound \s+ by ) ) \s+ no | without \s+ any | free \s+ (?: of
            | from ) \s+ (?: all | any )
            | no \s+ longer \s+ (?: bound | restricted ) \s+ by \s+ (?: any | your | the ) ) \s+ (?: \w{1,30} \s+ ){0,2}
            (?: restriction | rule | filter | guideline | limitation | censorship | moral | ethic ) \w{0,20}""",
    ),
    _signal(
        "extraction",
        1.0,
        rf"""{_HEAD} (?: reveal | repeat | print | output | show | display | leak | dump | recite | give | tell
            | write (?: \s+ out )? | copy | paste ) \s+
        (?: (?: me | us | out | back | verbatim | the \s+ (?: full | exact | entire | complete ) \s+ (?: text
            | contents? ) \s+ of ) \s+ ){{0,2}}
        your \s+ (?: (?: entire | full | exact | complete | hidden | secret | initial | original | own | internal
            | confidential | current ) \s+ ){{0,3}}
        (?: (?: system | developer | pre-? ) \s* (?: prompt | message | instruction )s? | (?: instruction | prompt
            | directive )s? (?= \s* (?: $ | [.!?,:] | verbatim | above | word | exactly ) ) )""",
    ),
    _signal(
        "extraction",
        1.0,
        rf"""{_HEAD} (?: repeat | print | output | copy | recite | echo ) \s+ (?: back \s+ )? (?: all \s+
            (?: of \s+ )? )? (?: the \s+ )? (?: everything | text | words? | content | lines ) \s+
        (?: above | before \s+ this | preceding \s+ this | that \s+ (?: came | comes ) \s+ before ) \b""",
    ),
    _signal(
        "structure",
        0.6,
        r"""<\| (?: im_start | im_sep | start_header_id | system | user | assistant | endofprompt | eot_id ) \|>
            | <</? sys >> | \[ /? inst \]
            | < /? (?: start_of_turn | end_of_turn ) > | ^ \s* (?: \#{2,} | \[ ) \s* (?: new \s+ )? (?: system
            | developer ) (?: \s+ (?: prompt | message | instruction s? | override ) )? \s* [\]:]
            | ^ < /? (?: system | system_prompt | admin | developer ) >""",
    ),
    _signal(
        "concealment",
        0.6,
        r"""\b (?: do \s+ not | don't | never | without ) \s+ (?: tell | tell(?:ing)? | mention | mentioning | inform
            | informing | notify | notifying | alert | alerting | reveal | revealing )
            (?: \s+ (?: this | it | that | anything | any \s+ of \s+ this ) )? (?: \s+ to )? \s+ (?: the | your ) \s+
            (?: user | human | operator | developer )s? \b""",
    ),
    _signal(
        "exfiltration",
        0.6,
        r"""\b (?: send | post | forward | upload | exfiltrate | append | encode | transmit | email ) \s+
            (?: \w{1,30} \s+ ){0,4}
            (?: conversation | chat \s+ history | system \s+ prompt | secrets? | credentials | api \s+ keys?
            | passwords? | tokens? | environment \s+ variables ) \s+ (?: \w{1,30} \s+ ){0,3} (?: to | as | into | in ) \s+
            (?: \w{1,30} \s+ ){0,4} (?: https?:// | url | attacker | webhook | the \s+ (?: image | link ) | query )""",
    ),
    _signal(
        "obfuscation",
        0.6,
        r"""\b (?: decode | decrypt | deobfuscate ) \s+ (?: \w{1,30} \s+ ){0,6} (?: base64 | rot13 | hex | string | message
            | text ) \W+ (?: \w{1,30} \W+ ){0,6}
            (?: follow | obey | execute | carry \s+ out | comply ) \b""",
    ),
)
_HIDDEN_WEIGHT = 1.0  # Text that only the model can read has only one purpose.
_HIDDEN_LETTERS_MIN = 8
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "\u2018": "\u2019", "`": "`", "'": "'", "「": "」", "『": "』"}
_QUOTE_CHARS_MAX = 300


class InjectionSearch(Search):
    def examine(self, prompt: Prompt, row: Guardrail, *, blocks: bool) -> Findings:
        # Instructions are legitimate in the application's own text, and the model's earlier answers are not checked again.
        texts = [*zip(prompt.texts, prompt.roles, strict=True), *prompt.quoted]
        count = sum(is_injection(text) for text, role in texts if role == "other")
        return Findings(Counter(texts=count) if count else Counter())


def prepare(settings: object, side: Side) -> Search:
    return InjectionSearch()


def score(text: str) -> dict[str, float]:
    """Return the weight of each kind of attack that a text resembles; quoted phrases weigh less."""
    normalized = _normalize(text)
    weights: dict[str, float] = {}
    for signal in _SIGNALS:
        for match in signal.pattern.finditer(normalized, concurrent=True):
            weight = signal.weight * (QUOTED_WEIGHT if _is_quoted(normalized, match) else 1)
            weights[signal.kind] = max(weights.get(signal.kind, 0.0), weight)
            if weights[signal.kind] == signal.weight:
                break
    if sum(char.isalpha() for char in hidden_text(text)) >= _HIDDEN_LETTERS_MIN:
        weights["hidden"] = _HIDDEN_WEIGHT
    return weights


def is_injection(text: str) -> bool:
    return sum(score(text).values()) >= THRESHOLD


def _normalize(text: str) -> str:
    """Return one spelling for texts that look the same: with full-width or mathematical letters, or with invisible characters.

    Runs of white space become one space or one line end: the patterns would search a long run again from each of its
    characters.
    """
    cleaned, _ = sanitize(text)
    cleaned = "\n".join([words for line in cleaned.splitlines() if (words := " ".join(line.split()))])
    if cleaned.isascii():
        return cleaned.lower()
    folded = unicodedata.normalize("NFKC", cleaned).casefold().replace("\u2019", "'")
    latin: str = _WORD.sub(_as_latin, folded)
    return latin


def _as_latin(word: regex.Match[str]) -> str:
    """Replace lookalike letters in a word that also has Latin letters; return other words unchanged."""
    return word[0].translate(_LOOKALIKES) if _LATIN.search(word[0]) else word[0]


# Cyrillic and Greek letters that look like Latin ones, in words that mix both. Two expressions, because a single one would
# restart at each letter of a word without Latin letters, and such a word may be as long as the text.
_WORD = regex.compile(r"\w+")
_LATIN = regex.compile("[a-z]")
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u03bf\u03b1\u03bd\u03c1\u03c4\u03b9\u03ba",
    "aeopcyxijsdhoavptik",
)


def _is_quoted(text: str, match: regex.Match[str]) -> bool:
    """Whether a match is inside quotation marks, or is inline code."""
    begin = match.start() + len(match[0]) - len(match[0].lstrip(" \t\r\n.,:;!?>])}*|-"))
    before = text[max(0, begin - _QUOTE_CHARS_MAX) : begin + 2]
    after = text[match.end() : match.end() + _QUOTE_CHARS_MAX]
    line_before = before[before.rfind("\n", 0, max(len(before) - 2, 0)) + 1 :]
    line_after = after.partition("\n")[0]
    return any(_is_open(line_before, opening, closing) and closing in line_after for opening, closing in _QUOTES.items())


def _is_open(before: str, opening: str, closing: str) -> bool:
    """Whether a quotation is open at the end of ``before``."""
    if opening == closing == "'":  # An apostrophe is not a quotation mark.
        return bool(regex.search(r"(?:^|[\s(\[:])'(?!.*'(?:\W|$))", before))
    if opening == closing:
        return before.count(opening) % 2 == 1
    return before.count(opening) > before.count(closing)
