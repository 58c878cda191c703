from collections import Counter

import pytest

from tests.mutants import equivalent, lua_mutants, python_mutants
from tests.mutants.core import ROOT, core_files, mutants_of_core


def python_mutations(source: str) -> list[str]:
    return [mutant.mutate() for mutant in python_mutants.mutants_of("a.py", source)]


def lua_mutations(source: str) -> list[str]:
    return [mutant.mutate() for mutant in lua_mutants.mutants_of("a.lua", source)]


@pytest.mark.parametrize(
    ("source", "mutated"),
    [
        ("if a > 1 then return end\n", "if a >= 1 then return end\n"),
        ("if a > 1 then return end\n", "if a > 2 then return end\n"),
        ("if a > 1 then return end\n", "if not (a > 1) then return end\n"),
        ("if a > 1 then return end\n", "\n"),
        ("local late = s == '0' and now > f(x)\nlocal a = 1\n", "local late = now > f(x)\nlocal a = 1\n"),
        ("local late = s == '0' and now > f(x)\nlocal a = 1\n", "local late = s == '0'\nlocal a = 1\n"),
        ("local late = s == '0' and now > f(x)\nlocal a = 1\n", "local late = s == '0' or now > f(x)\nlocal a = 1\n"),
        ("local a = 1\nredis.call('DEL', key)\n", "local a = 1\n\n"),
        ("local a = 1\nredis.call('DEL', key)\n", "local a = 1\nredis.call('XXDEL', key)\n"),
        ("return not f(true)\n", "return  f(true)\n"),
        ("return not f(true)\n", "return not f(false)\n"),
        ("return f(x, -1)\n", "return f(x, 1)\n"),
        ("return a + b\n", "return a - b\n"),
    ],
)
def test_a_script_is_changed(source, mutated):
    assert mutated in lua_mutations(source)


def test_comments_and_halves_of_statements_stay_as_they_are():
    source = "-- 1 > 2 and 'a'\nlocal t = f(\n  a,\n  b)\n"

    assert lua_mutations(source) == []


@pytest.mark.parametrize(
    ("body", "mutated"),
    [
        ("return a < b", "return a <= b"),
        ("return a and b", "return a"),
        ("return a and b", "return b"),
        ("return a and b", "return a or b"),
        ("f(a)", "pass"),
        ("return f(a, 1)", "return f(a, 2)"),
        ("return f(a, 1)", "return f(a, None)"),
        ("x = 'data'", "x = 'XXdataXX'"),
        ("while a: b()", "while not (a): b()"),
    ],
)
def test_a_function_is_changed(body, mutated):
    assert f"def f(a, b):\n    {mutated}\n" in python_mutations(f"def f(a, b):\n    {body}\n")


@pytest.mark.parametrize(
    "source",
    [
        "A = 1 < 2\n",
        "def f(a: 'b' = None) -> c | None:\n    'd'\n",
        "def f(a=1):\n    'doc'\n    ...\n",
        "def f(a=1): ...\n",
        "def f():\n    log.info('a', b=1 + 1)\n",
        "def f():\n    raise 'texts for people'\n",
        "def f():\n    a = False\n    a = None\n",
    ],
)
def test_constants_annotations_logs_and_texts_stay_as_they_are(source):
    assert [code for code in python_mutations(source) if "a = True" not in code] == []


def test_none_instead_of_false_is_no_fault():
    assert "def f():\n    g(a=None)\n" not in python_mutations("def f():\n    g(a=False)\n")
    assert "def f():\n    g(a=None)\n" in python_mutations("def f():\n    g(a=True)\n")
    assert "def f():\n    g(a=True)\n" in python_mutations("def f():\n    g(a=False)\n")


def test_that_two_lists_are_as_long_as_each_other_is_an_assertion_and_stays():
    assert not any("strict=True" not in code for code in python_mutations("def f():\n    return zip(a, strict=True)\n"))


def test_every_mutant_of_the_core_names_a_line_of_its_file():
    sources = {path: (ROOT / path).read_text().splitlines() for path in core_files()}

    for mutant in mutants_of_core():
        assert sources[mutant.path][mutant.line - 1].strip() == mutant.text


def test_every_entry_of_the_list_stands_for_one_mutant():
    known = equivalent.load()
    listed = Counter((mutant.path, mutant.text, mutant.change) for mutant in mutants_of_core() if known.has(mutant))

    assert listed == dict.fromkeys(known.entries, 1), "an entry that is outdated, or that also hides a fault on the same line"


def test_every_equivalent_mutant_has_a_reason():
    assert all(len(reason.split()) > 3 for reason in equivalent.load().entries.values())


def test_a_mutant_is_shown_as_the_line_that_changes():
    (mutant,) = lua_mutants.mutants_of("a.lua", "f(\n  x + y,\n  z)\n")

    assert mutant.diff("f(\n  x + y,\n  z)\n").splitlines() == ["@@ -1,3 +1,3 @@", " f(", "-  x + y,", "+  x - y,", "   z)"]
