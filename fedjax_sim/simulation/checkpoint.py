"""Checkpoints through orbax, written whole or not at all and verified when read."""

import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_sim.core import trees
from fedjax_sim.runtime import processes
from fedjax_sim.simulation.workdir import full_disk_explained, write_json

KEEP = 3  # checkpoints of a run
_ALONE = "alone"  # barriers of processes that write alone need a name
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The data to continue a run.

    Attributes:
      round: number of completed rounds.
      leaves: the state's leaves by number.
      rows: the rows of metrics so far.
      params: path and number of each leaf of the parameters, for `read_params`; see `params_among`.
    """

    round: int
    leaves: dict[str, np.ndarray]
    rows: list[dict]
    params: list[tuple[list[str], str]] | None = None


class StructureError(ValueError):
    """A mismatch between the arrays of a checkpoint and those of the run."""


class Checkpoints:
    """The newest three checkpoints of a run.

    Args:
      directory: folder of the checkpoints, made if absent.
      store: a `RowStore` whose indices are among the arrays, if there is one.
    """

    def __init__(self, directory: pathlib.Path, store: Any = None):
        # Imported here because it takes a second, which runs without a workdir need not wait.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._store = store
        self._directory = directory.absolute()
        self._directory.mkdir(exist_ok=True)
        self._digests = self._directory.with_name(self._directory.name + "_digests")
        self._digests.mkdir(exist_ok=True)
        self._manager = self._open()

    def _open(self):
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=KEEP,
            enable_async_checkpointing=False,
            create=False,  # orbax makes no directories for processes that write alone
            cleanup_tmp_directories=True,  # what a killed run left half-written
            multiprocessing_options=self._ocp.options.MultiprocessingOptions(
                active_processes={jax.process_index()},  # waits for no other process
                barrier_sync_key_prefix=_ALONE,
            ),
        )
        return self._ocp.CheckpointManager(self._directory, options=options)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; a run killed meanwhile keeps the earlier ones."""
        leaves = checkpoint.leaves
        meta = {
            "rows": checkpoint.rows,
            "structure": self._structure(leaves),
            "rows_digest": _digest_rows(checkpoint.rows),
            "state_digest": _digest_state(leaves),
            "params": checkpoint.params,
        }
        args = self._ocp.args
        composite = args.Composite(state=args.StandardSave(leaves), meta=args.JsonSave(meta))
        with full_disk_explained(self._directory):
            self._manager.save(checkpoint.round, args=composite)
        write_json(
            self._digests / f"{checkpoint.round}.json",
            _digest_files(self._directory / str(checkpoint.round)),
        )
        kept = {f"{step}.json" for step in self._manager.all_steps()}
        for path in self._digests.glob("*.json"):
            if path.name not in kept:
                path.unlink()

    def restore(self, like: dict[str, np.ndarray]) -> Checkpoint | None:
        """Returns the newest intact checkpoint, or None.

        Damaged checkpoints are moved aside, with a warning that names them.

        Args:
          like: leaves with the shapes and dtypes to restore.

        Raises:
          StructureError: a checkpoint has other shapes or dtypes; it is not moved.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read(step, like)
            except StructureError:
                raise
            except Exception as error:  # whatever the error, an older one may be intact
                self._move_aside(step, error)
        return None

    def _read(self, step: int, like: dict[str, np.ndarray]) -> Checkpoint:
        _check_files(self._directory / str(step), self._digests)
        args = self._ocp.args
        meta = self._manager.restore(step, args=args.Composite(meta=args.JsonRestore()))["meta"]
        if meta["structure"] != self._structure(like):
            raise StructureError(
                f"the checkpoint of round {step} in {self._directory} holds the arrays "
                f"{meta['structure']}, this run's state {self._structure(like)}: it belongs to another "
                "model or optimizer; choose another workdir"
            )
        composite = args.Composite(state=args.StandardRestore(like))
        leaves = self._manager.restore(step, args=composite)["state"]
        _check_state(leaves, meta)
        if _digest_rows(meta["rows"]) != meta["rows_digest"]:
            raise ValueError("its rows do not match their digest")
        if self._store is not None:
            self._store.check(leaves)
        return Checkpoint(step, leaves, meta["rows"])

    def _structure(self, leaves: dict[str, np.ndarray]) -> list[str]:
        rows = () if self._store is None else jax.tree.leaves(self._store.like)
        arrays = (*(leaf for _, leaf in sorted(leaves.items())), *rows)
        return [f"{array.dtype}{list(array.shape)}" for array in arrays]

    def _move_aside(self, step: int, error: Exception) -> None:
        aside = self._directory.with_name(self._directory.name + "_unreadable")
        aside.mkdir(exist_ok=True)
        destination = aside / str(step)
        if destination.exists():
            shutil.rmtree(destination)
        self._manager.close()
        shutil.move(self._directory / str(step), destination)
        self._manager = self._open()
        _log.warning(
            "The checkpoint of round %d is damaged (%s); moved to %s, trying the one before.",
            step,
            _reason(error),
            destination,
        )

    def close(self) -> None:
        """Waits for the clean-up of orbax."""
        self._manager.close()


def read_params(home: pathlib.Path) -> tuple[int, Any] | None:
    """Returns round and parameters of the newest intact checkpoint of a workdir, if there is one.

    Nothing is changed there, and nothing is unpickled. Damaged checkpoints are passed over, with a
    warning.

    Args:
      home: workdir of a run.

    Returns:
      The round, and nested dicts of NumPy arrays; None in place of parameters that an algorithm computes
      from its state.
    """
    steps = [int(path.name) for path in (home / "checkpoints").glob("*") if path.name.isdigit()]
    for step in sorted(steps, reverse=True):
        try:
            return step, _read_params(home.absolute() / "checkpoints" / str(step))
        except Exception as error:  # whatever the error, an older one may be intact
            _log.warning("The checkpoint of round %d is damaged (%s).", step, _reason(error))
    return None


def _read_params(folder: pathlib.Path) -> Any:
    import orbax.checkpoint as ocp

    _check_files(folder, folder.parent.with_name(folder.parent.name + "_digests"))
    meta = json.loads((folder / "meta" / "metadata").read_text())
    if meta.get("params") is None:
        return None
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = jax.tree.map(np.asarray, checkpointer.restore(folder / "state"))
    _check_state(leaves, meta)
    nested: Any = {}
    for path, number in meta["params"]:
        if not path:  # the parameters are a single array
            return leaves[number]
        inner = nested
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = leaves[number]
    return nested


def params_among(state: Any) -> list[tuple[list[str], str]] | None:
    """Returns path and number, see `to_numpy`, of each leaf of `state.params`.

    None if they are not leaves of the state, but computed from it.
    """
    found = []

    def look(state: Any) -> None:
        numbers = {id(leaf): f"{i:05d}" for i, leaf in enumerate(jax.tree.leaves(state))}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
            names = [jax.tree_util.keystr((key,), simple=True) for key in path]
            found.append((names, numbers.get(id(leaf))))

    # By shapes alone: learners' parameters are a mean, which all processes would have to compute.
    jax.eval_shape(look, state)
    return None if any(number is None for _, number in found) else found


def _digest_files(root: pathlib.Path) -> dict[str, str]:
    """Returns the digest of each file of a checkpoint, by its path there."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _check_files(root: pathlib.Path, digests: pathlib.Path) -> None:
    """Checks the files before orbax, which prints a traceback for each array that it cannot read.

    A run killed before it writes the digests leaves none; the state has a digest of its own.

    Raises:
      ValueError: a file is missing, has been added or has changed.
    """
    path = digests / f"{root.name}.json"
    if not path.exists():
        return
    known, found = json.loads(path.read_text()), _digest_files(root)
    different = [name for name in sorted(known | found) if known.get(name) != found.get(name)]
    if different:
        raise ValueError(f"its file {different[0]} differs from what was written")


def _reason(error: Exception) -> str:
    return (str(error).splitlines()[0] if str(error) else type(error).__name__)[:200]


def to_numpy(state: Any) -> dict[str, np.ndarray]:
    """Returns the leaves by number, as plain arrays whatever the pytree's classes."""
    return _numbered(processes.fetch, state)


def zeros_like(state: Any) -> dict[str, np.ndarray]:
    """Returns the same as `to_numpy`, but with zeros as values, and without reading the leaves."""
    return _numbered(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)


def _numbered(convert: Callable[[jax.Array], np.ndarray], state: Any) -> dict[str, np.ndarray]:
    leaves = {}
    for i, leaf in enumerate(jax.tree.leaves(state)):
        is_key = trees.is_key(leaf)
        leaves[f"{i:05d}"] = convert(jax.random.key_data(leaf) if is_key else leaf)
    return leaves


def from_numpy(leaves: dict[str, np.ndarray], template: Any) -> Any:
    """Returns a state from the leaves of `to_numpy`, with the shardings of `template`."""

    def restore(i, like):
        value = leaves[f"{i:05d}"]
        if trees.is_key(like):
            value = trees.as_key(value, like)
        return processes.put(value, like.sharding)

    templates, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(structure, [restore(i, like) for i, like in enumerate(templates)])


def _digest_rows(rows: list[dict]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _check_state(leaves: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    if _digest_state(leaves) != meta["state_digest"]:
        raise ValueError("its state does not match its digest")


def _digest_state(leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[name])
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
