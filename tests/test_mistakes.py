"""The list of mistakes still fits the library; `python tests/mistakes.py` makes them."""

import ast

import mistakes
import pytest

LIST = mistakes.load()
MISTAKE = {"name": "off-by-one", "file": "a.py", "old": "x < 3", "new": "x <= 3"}


@pytest.mark.parametrize("mistake", LIST, ids=lambda mistake: mistake["name"])
def test_each_mistake_can_be_made(mistake):
    source = (mistakes.ROOT / mistakes.PACKAGE / mistake["file"]).read_text()
    ast.parse(mistakes.changed(mistake, source))
    assert mistake["tests"]
    for test in mistake["tests"]:
        file, _, function = test.partition("::")
        text = (mistakes.TESTS / file).read_text()
        assert not function or f"def {function.partition('[')[0]}(" in text, test
    assert set(mistake) <= {"name", "file", "old", "new", "tests", "equivalent"}


def test_names_are_unique():
    names = [mistake["name"] for mistake in LIST]
    assert len(set(names)) == len(names)


def test_a_mistake_that_cannot_be_made_is_refused():
    assert mistakes.changed(MISTAKE, "if x < 3:") == "if x <= 3:"
    for source, count in (("if x < 4:", 0), ("x < 3 or x < 3", 2)):
        with pytest.raises(ValueError, match=f"off-by-one: 'x < 3' occurs {count} times in a.py"):
            mistakes.changed(MISTAKE, source)
    with pytest.raises(ValueError, match="off-by-one changes nothing"):
        mistakes.changed(MISTAKE | {"new": "x < 3"}, "x < 3")


@pytest.mark.parametrize(
    ("caught_by", "equivalent", "told", "well"),
    [
        ("test_a.py::test_b", None, "caught by test_a.py::test_b", True),
        (None, None, "SURVIVES", False),
        (None, "nobody reads it", "changes nothing: nobody reads it", True),
        ("test_a.py::test_b", "nobody reads it", "though it should change nothing", False),
    ],
)
def test_survivors_are_told(caught_by, equivalent, told, well):
    text, is_well = mistakes.verdict({"caught_by": caught_by, "equivalent": equivalent})
    assert told in text
    assert is_well == well


def test_a_name_of_no_mistake_is_refused(capsys):
    with pytest.raises(SystemExit):
        mistakes.main(["--list", "--only", "nonsense"])
    assert "no mistake has a name with nonsense" in capsys.readouterr().err
    assert mistakes.main(["--list", "--only", "queues-step"]) == 0
    assert capsys.readouterr().out.startswith("queues-step-counter-goes-on")
