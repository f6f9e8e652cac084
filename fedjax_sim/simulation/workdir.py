"""The files of a run: its configuration, and a row of metrics for each evaluation."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from fedjax_sim import processes

_PARTIAL = ".partial"  # what a run killed while writing may leave
# Told but not compared: where a run runs changes no more than the order of its sums.
_PLACES = ("lanes", "stacked")


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Makes `workdir` the home of a run with this configuration, or checks that it is.

    Raises:
      ValueError: it belongs to a run of another configuration, or holds other files.
    """
    path = workdir / "config.json"
    config = json.loads(json.dumps({name: _plain(value) for name, value in config.items()}))
    if path.exists():
        try:
            known = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); choose another workdir") from error
        different = [
            f"  {name}: {known.get(name, 'absent')!r} there, {config.get(name, 'absent')!r} now"
            for name in sorted((known.keys() | config.keys()) - {*_PLACES})
            if known.get(name) != config.get(name)
        ]
        if different:
            raise ValueError(
                f"{workdir} belongs to a run of another configuration:\n"
                + "\n".join(different)
                + "\nRepeat that configuration to continue it, or choose another workdir."
            )
        return
    strangers = [p for p in workdir.glob("*") if not p.name.endswith(_PARTIAL)]
    if strangers:
        raise ValueError(
            f"{workdir} is not empty and holds no config.json, so it is not a run's; "
            "choose another workdir"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, config)


@contextlib.contextmanager
def at_home(workdir: pathlib.Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Claims and locks a workdir for a run; of several processes the first does so for all.

    Raises:
      ValueError: see `claim` and `locked`.
    """
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            claim(workdir, config)
            stack.enter_context(locked(workdir))

        processes.first_does(enter)
        yield


def _plain(value: Any) -> Any:
    """A value that JSON has; it has no infinity, which a threshold may be."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a run's workdir; the lock ends with the process that holds it.

    Raises:
      ValueError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is running in {workdir}; wait for its end, or choose another workdir"
            ) from None
        yield


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that the file is never seen half-written."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    """Makes a file of JSON lines hold exactly `rows`."""
    write_text(path, "".join(map(_line, rows)))


def append_row(path: pathlib.Path, row: dict) -> None:
    """Adds a row to a file of JSON lines."""
    if not processes.is_first():
        return
    with path.open("a") as file:
        file.write(_line(row))


def _line(row: dict) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text so that the file is never seen half-written; of several processes the first does."""
    if not processes.is_first():
        return
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
