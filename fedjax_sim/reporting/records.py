"""Records of a table's cells: a JSON file each, with what was run, where, when and how it went."""

import contextlib
import csv
import datetime
import functools
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from fedjax_sim.runtime import processes
from fedjax_sim.runtime.devices import available_cores
from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.identity import versions

_PACKAGES = ("fedjax_sim", "jax", "jaxlib", "flax", "optax", "numpy")


class Records:
    """The finished cells of a workdir, each in `cells/NAME.json`, written whole or not at all.

    Args:
      workdir: folder of the records; created if absent.
    """

    def __init__(self, workdir: str | pathlib.Path):
        self._workdir = pathlib.Path(workdir)
        self._folder = self._workdir / "cells"

    def path(self, name: str) -> pathlib.Path:
        """Returns the path of a cell's record, which need not exist yet."""
        return self._folder / f"{name}.json"

    def under_way(self, name: str) -> pathlib.Path:
        """Returns the folder that keeps the runs of a cell until it is finished."""
        return self._workdir / "under_way" / name

    def load(self, name: str) -> dict[str, Any] | None:
        """Returns the record of a cell, or None before it is finished.

        Raises:
          ValueError: the file is not a record.
        """
        return processes.on_first_process(lambda: self._load(name))

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
        except ValueError as error:  # invalid JSON or UTF-8
            raise ValueError(f"{path} is not JSON ({error}); delete it to run the cell again") from error
        if not isinstance(record, dict) or not {"cell", "runs"} <= record.keys():
            raise ValueError(f"{path} is not the record of a cell; delete it to run the cell again")
        return record

    def load_all(self) -> dict[str, dict[str, Any]]:
        """Returns every finished cell by name."""
        names = processes.on_first_process(
            lambda: sorted(path.stem for path in self._folder.glob("*.json"))
        )
        return {name: self.load(name) for name in names}

    def save(self, name: str, record: Mapping[str, Any]) -> None:
        """Saves a finished cell, a line per property and per run, and forgets its unfinished runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f" {json.dumps(key)}: {_dumps(value)}," for key, value in record.items() if key != "runs"
        ]
        runs = ",\n".join(f"  {_dumps(run)}" for run in record["runs"])
        files.write_text(self.path(name), "\n".join(["{", *lines, f' "runs": [\n{runs}\n ]', "}\n"]))
        self.forget(name)

    def forget(self, name: str) -> None:
        """Removes the unfinished runs of a cell."""
        if processes.is_first():
            shutil.rmtree(self.under_way(name), ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the workdir.

        Raises:
          ValueError: another process is running there.
        """
        with contextlib.ExitStack() as stack:

            def lock() -> None:
                self._workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(files.locked(self._workdir))

            processes.on_first_process(lock)
            yield


@contextlib.contextmanager
def claimed_workdir(
    workdir: str | pathlib.Path, config: Mapping[str, Any], *, allow_version_change: bool = False
) -> Iterator[None]:
    """Claims a folder for the work that `config` describes, or continues it, and keeps others out.

    Args:
      workdir: folder to claim; created if absent.
      config: JSON values that identify the work.
      allow_version_change: whether work begun with another version of JAX or of this package may
        continue.

    Raises:
      ValueError: the folder belongs to other work (the message lists the differences), or another
        process is running there.
    """
    config = {"versions": versions()} | dict(config)
    processes.agree(config)
    workdir = pathlib.Path(workdir)
    with files.claimed(workdir, config, allow_version_change=allow_version_change) as claim:
        files.confirm(workdir, claim)
        yield


def provenance() -> dict[str, Any]:
    """Returns where a result comes from: "command", "date", "machine", "versions" and "commit".

    "commit" is that of the package's source tree when a process first asks, so ask before a long run;
    it ends in "-dirty" if a Python file of the tree differs from the commit or is not in it. It is None
    for a package installed without its repository.
    """
    return {
        "command": shlex.join(["python", *map(_without_folder, sys.argv)]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": available_cores(),
            "backend": jax.default_backend(),
            "device": jax.local_devices()[0].device_kind,
        },
        "versions": {"python": platform.python_version()} | _versions(),
        "commit": _commit(pathlib.Path(__file__)),
    }


@functools.cache  # the imported code runs, whatever is checked out meanwhile
def _commit(source: pathlib.Path) -> str | None:
    """Returns the commit of the repository that tracks this file, marked if dirty, or None."""
    # A git hook sets these for its own repository.
    away = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
    environ = {name: value for name, value in os.environ.items() if name not in away}

    def git(*arguments: str) -> str:
        command = ["git", "-C", source.parent, *arguments]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
        return ran.stdout.strip()

    try:
        # The package may be installed in an environment inside another repository.
        git("ls-files", "--error-unmatch", source.name)
        mark = "-dirty" if git("status", "--porcelain", "--", ":(top)*.py") else ""
        return git("rev-parse", "HEAD") + mark
    except (OSError, subprocess.CalledProcessError):
        return None


def write_csv(path: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes dicts with the same keys as CSV; None becomes an empty field, a list `a;b`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        fields = {name: _field(value) for name, value in row.items()}
        writer.writerow(fields)
    files.write_text(pathlib.Path(path), text.getvalue())


def write_lines(path: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes dicts as JSON lines."""
    files.write_rows(pathlib.Path(path), [dict(row) for row in rows])


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes a text atomically: the file is never seen half-written."""
    files.write_text(pathlib.Path(path), text)


def _without_folder(argument: str) -> str:
    """Hides a folder of this machine: `--data_dir=/home/me/mnist` becomes `--data_dir=DIR`."""
    return re.sub(r"^(--\w+=)/.*", r"\1DIR", argument)


def _field(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join("" if item is None else str(item) for item in value)
    return value


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
