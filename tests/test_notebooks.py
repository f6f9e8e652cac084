"""The notebooks: what is committed is what ran, and they still run."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 300_000
LIMIT = 240  # seconds for one of them, several times what two free cores take
# A notebook takes JAX as its readers do, and not as `conftest.py` has set it.
OURS = ("XLA_FLAGS", "JAX_")

notebook_test = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def code_cells(notebook):
    """Returns (source, outputs, execution count) of each code cell."""
    return [
        ("".join(cell["source"]), cell["outputs"], cell["execution_count"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def kinds(outputs):
    """Returns the kinds of data that a cell shows, such as {"text", "image/png"}."""
    return {kind for output in outputs for kind in output.get("data", {"text": None})}


def shows(source):
    """Returns whether a cell shows something: it prints, draws, or ends with a value."""
    source = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%"))
    tree = ast.parse(source)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return bool(calls & {"print", "plt.show"}) or isinstance(tree.body[-1], ast.Expr)


def faults(notebook):
    """Returns what is wrong with a notebook as it is committed."""
    cells, found = code_cells(notebook), []
    if [count for _, _, count in cells] != list(range(1, len(cells) + 1)):
        found.append("its cells did not run once, in order")
    for source, outputs, _ in cells:
        if shows(source) != bool(outputs):
            found.append(f"outputs are missing, or there are some too many: {source}")
        if any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs):
            found.append(f"an error or a warning: {source}")
    if not kinds(cells[-1][1]) & {"image/png", "text/html"}:
        found.append("it ends without a picture or a table")
    if path := re.search(r"(?<![\w.:/<-])/[\w.-]+/[\w.-]+|[A-Z]:\\\\\w", text_of(notebook)):
        found.append(f"it names a folder of the machine that ran it: {path.group()}")
    return found


def text_of(notebook):
    """Returns a notebook as text, without its pictures."""
    text = json.dumps(notebook)
    return re.sub(r'"image/png": ".*?"', "", text)


def read(path):
    return json.loads(path.read_text())


def test_there_are_six_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@notebook_test
def test_outputs_are_committed(path):
    assert faults(read(path)) == []
    assert path.stat().st_size < MOST_BYTES


@notebook_test
def test_outputs_belong_to_the_code_and_nothing_volatile_is_kept(path):
    pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
    execute = tool()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first, *_ = code_cells(notebook)
    assert first[0] == execute.SETUP
    assert notebook.metadata.pop("sources") == execute.sources_digest(notebook), "run execute.py again"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(not cell.metadata for cell in notebook.cells)


def tool():
    """Returns `notebooks/execute.py` as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        import execute
    finally:
        sys.path.remove(str(FOLDER))
    return execute


def cell(source, count, outputs=()):
    kind = {"cell_type": "code", "metadata": {}, "execution_count": count}
    return kind | {"source": source, "outputs": list(outputs)}


TEXT = {"output_type": "stream", "name": "stdout", "text": "1"}
PICTURE = {"output_type": "display_data", "data": {"image/png": "iVBO//a/b/c"}, "metadata": {}}
GOOD = (cell("x = 1", 1), cell("print(x)", 2, [TEXT]), cell("plt.show()", 3, [PICTURE]))


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        (GOOD, None),
        ((GOOD[0], GOOD[2]), "in order"),
        ((GOOD[0], cell("print(x)", 2), GOOD[2]), "missing"),
        ((cell("x = 1", 1, [TEXT]), *GOOD[1:]), "too many"),
        ((GOOD[0], cell("print(x)", 2, [TEXT | {"name": "stderr"}]), GOOD[2]), "warning"),
        ((GOOD[0], cell("print(x)", 2, [{"output_type": "error"}]), GOOD[2]), "an error"),
        (GOOD[:2], "without a picture"),
        ((GOOD[0], cell("print(x)", 2, [TEXT | {"text": "see /home/ann"}]), GOOD[2]), "folder"),
    ],
)
def test_a_bad_notebook_is_recognised(cells, fault):
    found = faults({"cells": cells})
    assert [fault in one for one in found] == ([] if fault is None else [True])


@pytest.mark.slow
@notebook_test
def test_a_notebook_runs(path, tmp_path):
    pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    command = [sys.executable, FOLDER / "execute.py", path, f"--to={tmp_path}"]
    subprocess.run(command, check=True, env=environment, timeout=LIMIT)
    ran = read(tmp_path / path.name)
    assert faults(ran) == []
    committed = [kinds(outputs) for _, outputs, _ in code_cells(read(path))]
    assert [kinds(outputs) for _, outputs, _ in code_cells(ran)] == committed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings\nwarnings.warn('old')", "a cell wrote to stderr"),
    ],
)
def test_a_notebook_that_fails_or_warns_stays_as_it_was(code, words, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
    pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
    cells = [nbformat.v4.new_code_cell(source) for source in ("the setup", code)]
    path = tmp_path / "bad.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    ran = subprocess.run(
        [sys.executable, FOLDER / "execute.py", path], capture_output=True, text=True, timeout=LIMIT
    )
    assert ran.returncode != 0
    assert words in ran.stderr
    assert path.read_bytes() == before
