"""The files of a run: its configuration, and a row of metrics for each evaluation."""

import contextlib
import errno
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from fedjax_sim.runtime import processes

_PARTIAL = ".partial"  # what a run killed while writing may leave
_LOCK = ".lock"
_VERSIONS = ("versions", "earlier_versions")  # compared apart from settings
_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


class Claim(NamedTuple):
    """A workdir that a process holds.

    Attributes:
      evaluations_known: whether the run's evaluations are known to be those it began with. This cannot
        be known of plain functions, see `identity.check_evaluations`.
      config: configuration for `confirm` to write, with more rounds, say; None if nothing changes.
    """

    evaluations_known: bool
    config: dict[str, Any] | None


@contextlib.contextmanager
def claimed(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    *,
    not_compared: Collection[str] = (),
    allow_version_change: bool = False,
) -> Iterator[Claim]:
    """Claims `workdir` for a new run or the one already there, and keeps others out meanwhile.

    With several processes, the first does so for all. It takes the lock first, so that of two runs that
    begin in the same folder, one is refused before it has changed anything.

    Args:
      workdir: folder of the run, made if absent.
      config: configuration by which the run is recognised, JSON values.
      not_compared: names of entries in config.json that may differ.
      allow_version_change: whether a run that began with other versions may be continued; its programs
        are then not compared.

    Yields:
      The claim; the caller checks the run there and then calls `confirm`.

    Raises:
      ValueError: the folder belongs to a run of another configuration or versions, holds other files,
        or is in use by another process.
    """
    with contextlib.ExitStack() as stack:

        def enter() -> Claim:
            _refuse_strangers(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(workdir))
            return _claim(workdir, _as_json(config), set(not_compared), allow_version_change)

        yield Claim(*processes.on_first_process(enter))


def confirm(workdir: pathlib.Path, claim: Claim) -> None:
    """Writes a configuration that has changed, such as more rounds."""
    if claim.config is not None:
        write_json(workdir / "config.json", claim.config)


def _claim(
    workdir: pathlib.Path, config: dict[str, Any], not_compared: set[str], allow_version_change: bool
) -> Claim:
    path = workdir / "config.json"
    if not path.exists():
        write_json(path, config)
        return Claim(True, None)
    known = _read_config(path)
    new_versions = known.get("versions") != config.get("versions")
    if new_versions and not allow_version_change:
        raise ValueError(
            f"{workdir} was begun with {_told(known)}, and this is {_told(config)}: its programs cannot "
            "be compared and may round differently. Give allow_version_change=True "
            "(--allow_version_change) to continue anyway, or choose another workdir."
        )
    there, now = known.get("evaluations"), config.get("evaluations")
    unsure = isinstance(there, list) and len(there) == len(now or ())
    unsure = unsure and (new_versions or None in there + now)
    left_out = not_compared | {*_VERSIONS}
    left_out |= ({"programs"} if new_versions else set()) | ({"evaluations"} if unsure else set())
    different = _differences(known, config, left_out)
    if different:
        raise ValueError(
            f"{workdir} belongs to a run of another configuration:\n"
            + "\n".join(f"  {line}" for line in different)
            + "\nRepeat that configuration to continue it, or choose another workdir."
        )
    if new_versions:
        _log.warning("%s was begun with %s; continuing with %s.", workdir, _told(known), _told(config))
        earlier = [*known.get("earlier_versions", []), known.get("versions")]
        config = config | {"earlier_versions": earlier}
    elif "earlier_versions" in known:
        config = config | {"earlier_versions": known["earlier_versions"]}
    return Claim(not unsure, config if config != known else None)


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, or of UTF-8
        raise ValueError(f"{path} is not JSON ({error}); choose another workdir") from error
    if not isinstance(known, dict):
        raise ValueError(
            f"{path} holds JSON of type {type(known).__name__}, not the settings of a run; choose "
            "another workdir"
        )
    return known


def _differences(known: Mapping[str, Any], config: Mapping[str, Any], left_out: set[str]) -> list[str]:
    """Returns a line for each setting that differs; the entries of a mapping count one by one."""
    lines = []
    for name in sorted((known.keys() | config.keys()) - left_out):
        there, now = known.get(name, "absent"), config.get(name, "absent")
        if isinstance(there, dict) and isinstance(now, dict):
            lines += [f"{name}, {line}" for line in _differences(there, now, set())]
        elif there != now:
            lines.append(f"{name}: {there!r} there, {now!r} now")
    return lines


def _told(config: Mapping[str, Any]) -> str:
    versions = config.get("versions")
    if not isinstance(versions, dict):
        return "unknown versions"
    return " and ".join(f"{package} {version}" for package, version in sorted(versions.items()))


def _refuse_strangers(workdir: pathlib.Path) -> None:
    """Refuses a folder that holds other files than those of a run."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is not a folder; choose another workdir")
    if (workdir / "config.json").exists():
        return
    own = (_PARTIAL, _LOCK)
    if any(not path.name.endswith(own) for path in workdir.glob("*")):
        raise ValueError(
            f"{workdir} is not empty and holds no config.json, so it is not the folder of a run; "
            "choose another workdir"
        )


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config holds {name!r}, which is not JSON ({error})") from error
    return json.loads(json.dumps(_plain(dict(config))))


def _plain(value: Any) -> Any:
    """Converts a value for JSON, which has no infinity, though a threshold may be infinite."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a run's workdir; the lock ends with the process that holds it.

    Raises:
      ValueError: another process is running there.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with (workdir / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is running in {workdir}; wait until it ends, or choose another workdir"
            ) from None
        yield


@contextlib.contextmanager
def full_disk_explained(path: pathlib.Path) -> Iterator[None]:
    """Reports a full disk as such, however deep in a library the error occurred.

    Raises:
      OSError: the disk is full; the message gives the path and the free bytes.
    """
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        if not full and os.strerror(errno.ENOSPC) not in str(error):
            raise
        free = shutil.disk_usage(path if path.is_dir() else path.parent).free
        raise OSError(
            errno.ENOSPC,
            f"the disk of {path} is full: {free} bytes are free. Free more and repeat the run with the "
            "same workdir: it continues from its last checkpoint, if it has one",
        ) from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that the file is never seen half-written."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    """Replaces the contents of a file of JSON lines by `rows`."""
    write_text(path, "".join(map(_line, rows)))


def append_row(path: pathlib.Path, row: dict) -> None:
    """Adds a row to a file of JSON lines."""
    if not processes.is_first():
        return
    with full_disk_explained(path), path.open("a") as file:
        file.write(_line(row))


def _line(row: dict) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text so that the file is never seen half-written; only the first process does."""
    write_file(path, lambda file: file.write(text.encode()))


def write_file(path: pathlib.Path, write: Callable[[Any], Any]) -> None:
    """Writes a file so that it is never seen half-written; only the first process does.

    Args:
      path: path of the file.
      write: function that writes its content to an open binary file.
    """
    if not processes.is_first():
        return
    partial = path.with_name(path.name + _PARTIAL)
    with full_disk_explained(path):
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
