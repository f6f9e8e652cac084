"""Runs notebooks and writes their outputs into them; needs the extra `notebooks`.

    python notebooks/execute.py                             # all of them, in place
    python notebooks/execute.py notebooks/01_*.ipynb        # some of them
    python notebooks/execute.py --to=DIR                    # into another folder

The first code cell of each notebook, which installs the package in Colab, is written anew from `SETUP`.
Times and names of kernels are left out, so that a later run changes only what it computes.
"""

import argparse
import hashlib
import pathlib
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = pathlib.Path(__file__).resolve().parent
# For maintainers: once there is a public repository, set its "git+https://..." and run this file.
SOURCE = ""
SETUP = f"""\
import sys

SOURCE = "{SOURCE}"  # where Colab finds the package
if "google.colab" in sys.modules:  # elsewhere, install it as its README says
    if not SOURCE:
        raise RuntimeError("SOURCE is empty; wanted the package's public repository, git+https://...")
    %pip install -q {{SOURCE}}"""
_LIMIT = 300  # seconds that a cell may take, on a busy machine
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources_digest(notebook: dict) -> str:
    """Returns a digest of the code, by which tests see whether the outputs belong to it."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(map("".join, code)).encode()).hexdigest()[:16]


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs a notebook in a new process, and puts its outputs in place of earlier ones.

    Raises:
      CellExecutionError: a cell has failed.
      CellTimeoutError: a cell has taken too long.
      ValueError: a cell has written to stderr, such as a warning.
    """
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = SETUP
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder, not ports, on which others on the machine could listen.
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        NotebookClient(
            notebook, timeout=_LIMIT, coalesce_streams=True, record_timing=False, config=config
        ).execute()
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise ValueError(f"a cell wrote to stderr: {output.text}\nThe cell:\n{cell.source}")
    notebook.metadata = nbformat.from_dict(_METADATA | {"sources": sources_digest(notebook)})
    nbformat.validate(notebook)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs notebooks and writes their outputs into them.")
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, help="by default all in this folder")
    parser.add_argument("--to", type=pathlib.Path, help="folder for the results; by default in place")
    arguments = parser.parse_args()
    for path in arguments.notebooks or sorted(FOLDER.glob("*.ipynb")):
        started = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        target = path if arguments.to is None else arguments.to / path.name
        nbformat.write(notebook, target)
        print(f"{target}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
