"""The journal of a run: its rows and its state, in memory and in its workdir."""

import functools
import pathlib
import time
from typing import Any, Self

import numpy as np

from fedjax_sim.runtime import processes
from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.checkpoint import (
    Checkpoint,
    Checkpoints,
    from_numpy,
    params_among,
    to_numpy,
    zeros_like,
)
from fedjax_sim.simulation.client_memory import WithMemory, server_state
from fedjax_sim.simulation.saved_memory import SavedMemory

_METRICS = "metrics.jsonl"
_CHECKPOINTS = "checkpoints"


def memory_file(home: pathlib.Path) -> pathlib.Path:
    """Returns the file of clients' memory in a workdir."""
    return home / "client_memory.rows"


def is_new(home: pathlib.Path | None) -> bool:
    """Returns whether a run starts from its first round, whose workdir is `home`."""
    return home is None or not (home / _CHECKPOINTS).exists()


class Journal:
    """The rows of a run and, in a workdir, its metrics.jsonl and checkpoints.

    On start, both are rewound to the last intact checkpoint, so that a kill at any moment neither loses
    nor repeats a row.

    Attributes:
      rows: one dict per evaluation.
      state: current state of the run.

    Args:
      home: workdir, or None to keep everything in memory.
      state: initial state of a run without a checkpoint.
      seconds: least time between two checkpoints.
      at_once: whether the first row is saved at once, rather than after `seconds`.

    With several processes, only the first reads and writes; all of them record the same.
    """

    def __init__(self, home: pathlib.Path | None, state: Any, seconds: float, *, at_once: bool = True):
        self.rows: list[dict] = []
        self.state = state
        self._seconds, self._home, self._checkpoints = seconds, home, None
        self._saved_round, self._saved_at = -1, -float("inf") if at_once else time.monotonic()
        if home is None:
            return
        processes.on_first_process(functools.partial(home.mkdir, exist_ok=True))
        self._memory = SavedMemory(state, memory_file(home)) if isinstance(state, WithMemory) else None
        self._leaves = zeros_like(server_state(state))
        if self._memory is not None:
            self._leaves |= self._memory.store.empty_index()
        saved = processes.on_first_process(self._read)
        if saved is not None:
            self._saved_round, self.rows = saved
            leaves = processes.from_first(self._leaves)
            server = from_numpy(leaves, server_state(state))
            self.state = server
            if self._memory is not None:
                self.state = self._memory.restored(state._replace(server=server), leaves)
        self._leaves = None

    def _read(self) -> tuple[int, list[dict]] | None:
        """Returns the round and rows of the newest checkpoint, and rewinds the files to it."""
        store = None if self._memory is None else self._memory.store
        self._checkpoints = Checkpoints(self._home / _CHECKPOINTS, store)
        saved = self._checkpoints.restore(self._leaves)
        files.write_rows(self._home / _METRICS, [] if saved is None else saved.rows)
        if saved is None:
            if store is not None:
                store.restore(None)
            return None
        self._leaves = saved.leaves
        return saved.round, saved.rows

    def record(self, row: dict, state: Any, *, last: bool) -> None:
        """Records an evaluation and the state after it; the last one is always saved."""
        self.rows.append(row)
        self.state = state
        if self._home is None:
            return
        files.append_row(self._home / _METRICS, row)
        is_due = last or time.monotonic() - self._saved_at >= self._seconds
        if processes.from_first(np.asarray(is_due)):
            self.save(state)

    def save(self, state: Any) -> None:
        """Writes a checkpoint of the last row and the state after it, unless it exists."""
        if self._home is None or not self.rows or self.rows[-1]["round"] == self._saved_round:
            return
        leaves = to_numpy(server_state(state))
        if self._memory is not None:
            leaves |= self._memory.save(state)
        if processes.is_first():
            params = params_among(server_state(state))
            self._checkpoints.save(Checkpoint(self.rows[-1]["round"], leaves, self.rows, params))
        self._saved_round, self._saved_at = self.rows[-1]["round"], time.monotonic()

    @property
    def saved_round(self) -> int | None:
        """The round of the newest checkpoint, or None."""
        return self._saved_round if self._saved_round >= 0 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()
