"""The commands in documents and docstrings: scripts accept their flags, up to reading any data."""

import pathlib
import re
import shlex

import pytest
from absl import flags
from script_runs import ROOT, check, loaded

SCRIPTS = {"train": 20, "sweep": 4, "reproduce": 8}  # and how many commands are shown at least
SOURCES = (
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "results")),
    *(ROOT / "scripts" / f"{script}.py" for script in SCRIPTS),
)
# Flags of other machines, or what reads no data in any case.
ELSEWHERE = ("--mesh", "--coordinator", "--help")


def commands(script):
    """The flags of every command of a script, by where it is shown."""
    found = {}
    for path in sorted(SOURCES):
        text = path.read_text().replace("\\\n", " ")
        if path.name == "CHANGELOG.md":  # tells what was
            continue
        for shown in re.findall(
            rf"scripts/{script}\.py((?:\s+--[\w\[\]]+(?:=(?:\"[^\"]*\"|[^\s`])*)?)+)", text
        ):
            given = tuple(shlex.split(shown))
            found[given] = pathlib.Path(path).relative_to(ROOT)
    return found


@pytest.mark.parametrize(("script", "least"), SCRIPTS.items())
def test_the_commands_of_documents_are_accepted(script, least):
    shown = commands(script)
    assert len(shown) >= least
    with loaded(script) as module:
        for given, path in shown.items():
            try:
                if any(flag.startswith(ELSEWHERE) for flag in given):
                    flags.FLAGS([script, *(flag for flag in given if flag != "--help")])
                else:
                    check(module, *given)
            except (ValueError, flags.Error) as error:
                pytest.fail(f"{path}: {' '.join(given)}: {error}")
