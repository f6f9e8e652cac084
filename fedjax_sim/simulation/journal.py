"""Keeps what a run must not lose: its rows and its state, in memory and in its workdir."""

import pathlib
import time
from typing import Any, Self

from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.checkpoint import Checkpoint, Checkpoints


class Journal:
    """The rows of a run and, in a workdir, its metrics.jsonl and checkpoints.

    Both are brought to the last whole checkpoint at the start, so that after a kill at any moment
    no row is lost or there twice.

    Attributes:
      rows: one dict per evaluation.
      state: where the run stands.

    Args:
      home: the workdir, or None to keep everything in memory.
      state: where a run without a checkpoint starts.
      seconds: the least time between two checkpoints.
    """

    def __init__(self, home: pathlib.Path | None, state: Any, seconds: float):
        self.rows: list[dict] = []
        self.state = state
        self._seconds, self._metrics, self._checkpoints = seconds, None, None
        self._saved_round, self._saved_at = -1, -float("inf")
        if home is None:
            return
        self._metrics = home / "metrics.jsonl"
        self._checkpoints = Checkpoints(home / "checkpoints")
        saved = self._checkpoints.restore(state)
        if saved is not None:
            self.rows, self.state, self._saved_round = saved.rows, saved.state, saved.round
        files.write_rows(self._metrics, self.rows)

    def record(self, row: dict, state: Any, *, last: bool) -> None:
        """Takes an evaluation and the state after it; the last one is always saved."""
        self.rows.append(row)
        self.state = state
        if self._metrics is None:
            return
        files.append_row(self._metrics, row)
        if last or time.monotonic() - self._saved_at >= self._seconds:
            self._checkpoints.save(Checkpoint(row["round"], state, self.rows))
            self._saved_round, self._saved_at = row["round"], time.monotonic()

    @property
    def saved_round(self) -> int | None:
        """The round of the newest checkpoint."""
        return self._saved_round if self._saved_round >= 0 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()
