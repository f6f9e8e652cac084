"""A file with the rows of the clients that have taken part, and room for no others."""

import collections
import hashlib
import math
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fedjax_sim.simulation.checkpoint import KEEP
from fedjax_sim.simulation.workdir import full_disk_explained

_NOWHERE = -1  # the slot of a client that has no row
_DIGEST_BYTES = 16
_PIECE_BYTES = 2**26


class RowStore:
    """Rows of `N` clients, in slots of a file that are assigned when a client's row is first written.

    A snapshot fixes all rows: a later write of a client goes to another slot. A run killed at any moment
    therefore finds the rows of its last checkpoints as they were. A slot is used again once no
    checkpoint that is kept needs it. Reads and writes are plain file operations: with a memory map, a
    full disk would end the process without an error.

    Args:
      like: one row, a pytree of shapes and dtypes.
      num_clients: `N`.
      path: file that outlives the process; None for a temporary one.

    Attributes:
      like: one row, a pytree of `jax.ShapeDtypeStruct`.
      num_clients: `N`.
      row_bytes: size of one row.
    """

    def __init__(self, like: Any, num_clients: int, path: pathlib.Path | None = None):
        self.like, self.num_clients = like, num_clients
        self.row_bytes = sum(_size(leaf) for leaf in jax.tree.leaves(like))
        self._path = pathlib.Path(tempfile.gettempdir()) if path is None else path
        if path is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (rows are read after the run as well)
        else:
            path.touch()
            self._file = path.open("r+b")
        weakref.finalize(self, self._file.close)
        index = self.empty_index()
        self._slots, self._digests = index["slots"][0], index["digests"]
        self._snapshots = collections.deque(index["slots"].copy(), KEEP)  # slots, newest first
        self._changed: set[int] = set()  # clients whose slot belongs to no snapshot
        self._free: list[int] = []
        self._next = 0  # the first slot beyond all others

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Returns which clients have a row, `[K]` bool; ids from `N` on have none."""
        known = ids < self.num_clients
        return known & (self._slots[np.where(known, ids, 0)] != _NOWHERE)

    @property
    def clients(self) -> np.ndarray:
        """The clients that have a row, ascending."""
        return np.flatnonzero(self._slots != _NOWHERE)

    def read(self, ids: np.ndarray) -> Any:
        """Returns the rows of clients `[K]`, a pytree of `[K, ...]`; zeros for those without a row.

        Raises:
          ValueError: the file has shrunk.
        """
        rows = jax.tree.map(lambda leaf: np.zeros((len(ids), *leaf.shape), leaf.dtype), self.like)
        leaves = [_as_bytes(leaf) for leaf in jax.tree.leaves(rows)]
        for k in np.flatnonzero(self.has(ids)):
            self._file.seek(int(self._slots[ids[k]]) * self.row_bytes)
            if any(self._file.readinto(leaf[k]) < leaf[k].size for leaf in leaves):
                raise ValueError(f"{self._path} shrank while it was in use; repeat the run")
        return rows

    def write(self, ids: np.ndarray, rows: Any) -> None:
        """Writes the rows of clients `[K]`, a pytree of `[K, ...]`; ids from `N` on are left out.

        Raises:
          OSError: the disk is full.
        """
        leaves = [_as_bytes(leaf) for leaf in jax.tree.leaves(rows)]
        with full_disk_explained(self._path):
            for k in np.flatnonzero(ids < self.num_clients):
                self._file.seek(self._slot_to_write(int(ids[k])) * self.row_bytes)
                for leaf in leaves:
                    self._file.write(leaf[k])

    def update(self, ids: np.ndarray, rows: Any) -> None:
        """Writes those rows of clients `[K]` that differ from the last snapshot's.

        Raises:
          OSError: the disk is full.
        """
        leaves = [_as_bytes(leaf) for leaf in jax.tree.leaves(rows)]
        digests = [_digest(leaf[k] for leaf in leaves) for k in range(len(ids))]
        digests = np.array(digests, np.uint8).reshape(-1, _DIGEST_BYTES)
        differs = ~self.has(ids) | (self._digests[ids] != digests).any(axis=1)
        self.write(ids[differs], jax.tree.map(lambda leaf: leaf[differs], rows))

    def copy_from(self, other: "RowStore") -> None:
        """Writes all rows of another store of the same clients.

        Raises:
          OSError: the disk is full.
        """
        for ids in other.pieces(other.clients):
            self.write(ids, other.read(ids))

    def forget(self, ids: np.ndarray) -> None:
        """Takes away the rows of clients `[K]`."""
        self._slots[ids] = _NOWHERE
        self._changed.difference_update(ids.tolist())

    def _slot_to_write(self, client: int) -> int:
        if client not in self._changed:
            self._changed.add(client)
            if self._free:
                self._slots[client] = self._free.pop()
            else:
                self._slots[client], self._next = self._next, self._next + 1
        return int(self._slots[client])

    def snapshot(self) -> dict[str, np.ndarray]:
        """Makes all rows durable and fixes them.

        Returns:
          The index for `restore`: slots `[KEEP, N]`, newest snapshot first, and digests `[N, 16]`.

        Raises:
          OSError: the disk is full.
        """
        with full_disk_explained(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        for client in self._changed:
            self._digests[client] = self._digest_at(self._slots[client])
        self._changed.clear()
        self._snapshots.appendleft(self._slots.copy())
        self._find_free()
        return {"slots": np.stack(self._snapshots), "digests": self._digests.copy()}

    def _find_free(self) -> None:
        in_use = np.zeros(self._next, bool)
        for slots in self._snapshots:
            in_use[slots[slots != _NOWHERE]] = True
        self._free = np.flatnonzero(~in_use).tolist()

    def check(self, index: dict[str, np.ndarray]) -> None:
        """Checks that the rows of a snapshot are as they were.

        Raises:
          ValueError: a row has changed.
        """
        slots, digests = index["slots"][0], index["digests"]
        for client in np.flatnonzero(slots != _NOWHERE):
            if not np.array_equal(self._digest_at(slots[client]), digests[client]):
                raise ValueError(f"the row of client {client} in {self._path} is not what was written")

    def restore(self, index: dict[str, np.ndarray] | None) -> None:
        """Goes back to the rows of a snapshot, or to no rows."""
        self._changed.clear()
        if index is None:
            index = self.empty_index()
            self._file.truncate(0)
        self._slots, self._digests = index["slots"][0].copy(), index["digests"].copy()
        self._snapshots.extend(index["slots"].copy())
        # Rounds up, as a killed run may have written half a row.
        self._next = -(-self._file.seek(0, os.SEEK_END) // max(self.row_bytes, 1))
        self._find_free()

    def empty_index(self) -> dict[str, np.ndarray]:
        """Returns the index of a snapshot without rows."""
        return {
            "slots": np.full((KEEP, self.num_clients), _NOWHERE, np.int32),
            "digests": np.zeros((self.num_clients, _DIGEST_BYTES), np.uint8),
        }

    def pieces(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """Yields `ids` in pieces whose rows take little memory."""
        count = max(1, _PIECE_BYTES // max(self.row_bytes, 1))
        for first in range(0, len(ids), count):
            yield ids[first : first + count]

    def _digest_at(self, slot: np.int32) -> np.ndarray:
        self._file.seek(int(slot) * self.row_bytes)
        return _digest([self._file.read(self.row_bytes)])


def free_bytes(path: pathlib.Path | None) -> int:
    """Returns the bytes that a store in the file `path`, or a temporary one, may grow to."""
    if path is None:
        return shutil.disk_usage(tempfile.gettempdir()).free
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return shutil.disk_usage(folder).free + (path.stat().st_size if path.exists() else 0)


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _as_bytes(leaf: np.ndarray) -> np.ndarray:
    """Returns rows `[K, ...]` as bytes `[K, b]`, without copying contiguous ones."""
    rows = np.ascontiguousarray(leaf).reshape(len(leaf), math.prod(leaf.shape[1:]))
    return rows.view(np.uint8)


def _digest(pieces: Any) -> np.ndarray:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return np.frombuffer(digest.digest()[:_DIGEST_BYTES], np.uint8)
