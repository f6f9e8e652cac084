"""Callbacks: objects that see a run after each of its evaluations, and may end it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from fedjax_sim.core.checks import check_choice, check_count
from fedjax_sim.core.types import Params
from fedjax_sim.runtime import processes
from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.view import View

_MODES = ("max", "min")


class Callback:
    """An object that `simulate` calls after each evaluation; the methods of this class do nothing.

    Any object with `on_evaluation` will do. With several processes, each calls its own, and the first
    process's answer decides.

    A workdir does not compare callbacks: like the number of rounds, they may end a run but change no
    round. A callback that keeps a state therefore rebuilds it in `on_start`, so that a continued run
    ends as an uninterrupted one does.
    """

    def on_start(
        self, view: View, rows: Sequence[Mapping[str, Any]], workdir: pathlib.Path | None
    ) -> bool | None:
        """Prepares for a run, before its first evaluation.

        Args:
          view: the run after the last row, or before its first evaluation.
          rows: rows recorded so far; none in a new run.
          workdir: folder of the run, or None.

        Returns:
          True if the run has ended with the last row.
        """

    def on_evaluation(self, view: View, row: Mapping[str, Any]) -> bool | None:
        """Sees a row, and the run at that row.

        Args:
          view: the run; the next round overwrites its arrays, so copy what you keep.
          row: the row as it will be recorded.

        Returns:
          True to end the run with this row.
        """

    def on_end(self) -> None:
        """Ends the callback's work, whether or not the run has failed."""


class Callbacks:
    """The callbacks of one run, as a context in which they have begun.

    Args:
      callbacks: objects with `on_evaluation`.

    Raises:
      ValueError: an object has no `on_evaluation`.
    """

    def __init__(self, callbacks: Sequence[Any] = ()):
        if hasattr(callbacks, "on_evaluation") or not np.iterable(callbacks):
            raise ValueError(f"callbacks is {callbacks!r}; wanted a sequence of callbacks")
        self.all = tuple(callbacks)
        for callback in self.all:
            if isinstance(callback, type) or not callable(getattr(callback, "on_evaluation", None)):
                raise ValueError(
                    f"callbacks holds {callback!r}; wanted objects with on_evaluation(view, row)"
                )
        self._begun: list[Any] = []

    def start(self, view: View, rows: list[dict], workdir: pathlib.Path | None) -> bool:
        """Begins all callbacks, see `Callback.on_start`; returns whether one says that the run ended."""
        answers = []
        for callback in self.all:
            self._begun.append(callback)
            if hasattr(callback, "on_start"):
                answers.append(callback.on_start(view, [dict(row) for row in rows], workdir))
        return self._any(answers)

    def evaluated(self, view: View, row: dict) -> bool:
        """Shows a row to all callbacks, in order; returns whether one ends the run."""
        return self._any([callback.on_evaluation(view, dict(row)) for callback in self.all])

    def _any(self, answers: list[Any]) -> bool:
        return bool(self.all) and processes.on_first_process(lambda: any(map(bool, answers)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        while self._begun:
            callback = self._begun.pop()
            if hasattr(callback, "on_end"):
                callback.on_end()


class _Best:
    """The best value of a metric so far, and in which round; equal values are no improvement."""

    def __init__(self, metric: str, mode: str):
        check_choice("mode", mode, _MODES)
        self._metric, self._sign = metric, 1 if mode == "max" else -1
        self.value: float | None = None
        self.round: int | None = None

    def sees(self, row: Mapping[str, Any]) -> bool | None:
        """Returns whether a row is better than all before; None if it has no value yet.

        Raises:
          ValueError: the row lacks the metric, or the metric is an array.
        """
        if self._metric not in row:
            raise ValueError(
                f"a callback needs the metric {self._metric!r}; the row has {', '.join(row)}: give an "
                "evaluation of this name, or choose another metric"
            )
        value = row[self._metric]
        if isinstance(value, list):
            raise ValueError(
                f"a callback needs a number, and the metric {self._metric!r} is an array; wanted another"
            )
        if value is None:  # such as the train_loss before the first round
            return None
        if isinstance(value, list):
            raise ValueError(f"a callback needs a number, and {self._metric!r} is an array in each row")
        better = self.value is None or self._sign * (value - self.value) > 0
        if better:
            self.value, self.round = value, row["round"]
        return better


class EarlyStopping(Callback):
    """A callback that ends a run once a metric has stopped improving.

    Args:
      metric: column of the rows.
      patience: number of evaluations in a row without a new best value that end the run.
      mode: "max" if larger values are better, "min" if smaller ones are.

    Raises:
      ValueError: `patience` is not a positive integer, or `mode` is unknown.
    """

    def __init__(self, metric: str = "test_accuracy", *, patience: int, mode: str = "max"):
        self._metric, self._mode = metric, mode
        self._patience = check_count("patience", patience)
        self._best, self._waited = _Best(metric, mode), 0

    def on_start(self, view: View, rows: Sequence[Mapping[str, Any]], workdir: Any) -> bool:
        """Counts again over recorded rows.

        Raises:
          ValueError: the run should have ended before the last row.
        """
        self._best, self._waited = _Best(self._metric, self._mode), 0
        for i, row in enumerate(rows):
            if self._sees(row) and i < len(rows) - 1:
                raise ValueError(
                    f"the run has done {rows[-1]['round']} rounds, and early stopping with patience="
                    f"{self._patience} on {self._metric!r} would have ended it after round "
                    f"{row['round']}; wanted a larger patience, or another run"
                )
        return bool(rows) and self._waited >= self._patience

    def on_evaluation(self, view: View, row: Mapping[str, Any]) -> bool:
        """Returns True if the run has not improved for as long as the patience lasts."""
        return self._sees(row)

    def _sees(self, row: Mapping[str, Any]) -> bool:
        better = self._best.sees(row)
        if better is not None:
            self._waited = 0 if better else self._waited + 1
        return self._waited >= self._patience


class KeepBest(Callback):
    """A callback that keeps the model of the best evaluation, of several equal ones the first.

    With a workdir, the model is also written to its folder `best/`, so that a continued run has it.

    Args:
      metric: column of the rows.
      mode: "max" if larger values are better, "min" if smaller ones are.

    Attributes:
      params: the best model's parameters, NumPy arrays; None before the first evaluation.
      round: its round.
      value: its value of the metric.

    Raises:
      ValueError: `mode` is unknown.
    """

    def __init__(self, metric: str = "test_accuracy", *, mode: str = "max"):
        self._metric, self._mode = metric, mode
        self.params: Params = None
        self._begin(None)

    def _begin(self, workdir: pathlib.Path | None) -> None:
        self._best = _Best(self._metric, self._mode)
        self._workdir, self._rows, self._bests = workdir, [], []

    @property
    def round(self) -> int | None:
        return self._best.round

    @property
    def value(self) -> float | None:
        return self._best.value

    def on_start(
        self, view: View, rows: Sequence[Mapping[str, Any]], workdir: pathlib.Path | None
    ) -> None:
        """Finds the best of the recorded rows, and its model.

        Raises:
          ValueError: its model is not there, or its file is damaged.
        """
        known = self.params if rows == self._rows else None  # the same run goes on
        self._begin(workdir)
        for row in rows:
            self._sees(row)
        if self.round is None:
            self.params = None
        elif known is not None:
            self.params = known
        elif workdir is None:
            raise ValueError(
                f"the run's best model, by {self._metric!r} of its rows, is that of round {self.round}, "
                "and this KeepBest has not seen it; wanted the one that the run began with"
            )
        else:
            self.params = _read(self._path(self.round), view.params)

    def on_evaluation(self, view: View, row: Mapping[str, Any]) -> None:
        """Copies the parameters if they are the best so far."""
        if self._sees(row):
            self.params = jax.tree.map(np.array, processes.fetch(view.params))  # not views of buffers
            if self._workdir is not None and processes.is_first():
                _write(self._path(self.round), self.params)
                self._remove_old()

    def _sees(self, row: Mapping[str, Any]) -> bool:
        self._rows.append(dict(row))
        better = bool(self._best.sees(row))
        if better:
            self._bests.append(row["round"])
        return better

    def _path(self, round: int) -> pathlib.Path:
        return self._workdir / "best" / f"{round}.npz"

    def _remove_old(self) -> None:
        """Removes models that no run needs which continues from a checkpoint that is still there."""
        steps = [int(p.name) for p in (self._workdir / "checkpoints").glob("*") if p.name.isdigit()]
        oldest = min(steps, default=0)
        needed = max((round for round in self._bests if round <= oldest), default=0)
        for path in (self._workdir / "best").glob("*.npz"):
            if path.stem.isdigit() and int(path.stem) < needed:
                path.unlink()


def _write(path: pathlib.Path, params: Params) -> None:
    path.parent.mkdir(exist_ok=True)
    leaves = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(params))}
    files.write_file(path, lambda file: np.savez(file, **leaves))


def _read(path: pathlib.Path, like: Params) -> Params:
    """Returns the parameters in a file, with the structure of `like`; all processes must call it.

    Raises:
      ValueError: the file is not there, is damaged, or holds other parameters.
    """
    leaves, structure = jax.tree.flatten(like)
    arrays = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]

    def load() -> None:
        try:
            with np.load(path, allow_pickle=False) as stored:
                for i, array in enumerate(arrays):
                    found = stored[f"{i:05d}"]
                    if found.shape != array.shape or found.dtype.itemsize != array.dtype.itemsize:
                        raise ValueError(f"array {i} has the shape {found.shape}")
                    array[...] = found.view(array.dtype)  # NumPy stores bfloat16 as plain bytes
        except Exception as error:  # whatever is wrong with the file
            raise ValueError(
                f"the best model so far cannot be read from {path} ({error}); wanted the KeepBest with "
                "which the run began: leave the callback out, or choose another workdir"
            ) from error

    processes.on_first_process(load)
    return jax.tree.unflatten(structure, processes.from_first(arrays))
