"""Callbacks that write the rows of a run elsewhere, as it goes on; only the first process writes."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_sim.reporting.report import add_scalars, scalars_of
from fedjax_sim.runtime import processes
from fedjax_sim.simulation import Callback, View
from fedjax_sim.simulation.workdir import write_text


class CSVLogger(Callback):
    """A callback that writes a CSV file with a line for each row.

    Args:
      path: path of the file, which a new run replaces.
    """

    def __init__(self, path: str | pathlib.Path):
        self._path = pathlib.Path(path)
        self._rows, self._names = [], []

    def on_start(
        self, view: View, rows: Sequence[Mapping[str, Any]], workdir: pathlib.Path | None
    ) -> None:
        """Writes the rows recorded so far."""
        self._rows, self._names = list(rows), []
        self._write_all()

    def on_evaluation(self, view: View, row: Mapping[str, Any]) -> None:
        """Adds a row."""
        self._rows.append(row)
        if not row.keys() <= {*self._names}:  # the rows before lack a column
            self._write_all()
        elif processes.is_first():
            with self._path.open("a", newline="") as file:
                self._writer(file).writerow(row)

    def _write_all(self) -> None:
        self._names = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._names, lineterminator="\n")


class TensorBoardLogger(Callback):
    """A callback that writes the numbers of each row as TensorBoard scalars, over rounds.

    Args:
      directory: folder of the events. A run that is continued hides the events that it wrote there
        before, and writes all rows again; use a folder for each run.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, directory: str | pathlib.Path):
        try:
            import tensorboardX
        except ImportError as error:
            raise ImportError(
                "TensorBoardLogger needs tensorboardX, which is not installed: pip install tensorboardX"
            ) from error
        self._make, self._directory, self._writer = tensorboardX.SummaryWriter, str(directory), None

    def on_start(
        self, view: View, rows: Sequence[Mapping[str, Any]], workdir: pathlib.Path | None
    ) -> None:
        """Opens the folder, and writes the rows recorded so far."""
        if not processes.is_first():
            return
        # TensorBoard drops what earlier files there say of rounds from 0 on.
        self._writer = self._make(self._directory, purge_step=0 if rows else None)
        for row in rows:
            add_scalars(self._writer, row)

    def on_evaluation(self, view: View, row: Mapping[str, Any]) -> None:
        """Writes a row."""
        if self._writer is not None:
            add_scalars(self._writer, row)
            self._writer.flush()

    def on_end(self) -> None:
        """Closes the folder."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbLogger(Callback):
    """A callback that logs the numbers of each row to Weights & Biases, with the round as its step.

    A new W&B run receives all rows, those of a continued run included. With `id=..., resume="allow"`
    among the settings, the W&B run is continued as well, and receives the rows after its last step.

    Args:
      settings: arguments of `wandb.init`, such as `project="digits"`.

    Raises:
      ImportError: wandb is not installed.
    """

    def __init__(self, **settings: Any):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "WandbLogger needs wandb, which is not installed: pip install wandb"
            ) from error
        self._wandb, self._settings, self._run = wandb, settings, None

    def on_start(
        self, view: View, rows: Sequence[Mapping[str, Any]], workdir: pathlib.Path | None
    ) -> None:
        """Begins a W&B run, and logs the rows recorded so far."""
        if not processes.is_first():
            return
        self._run = self._wandb.init(**self._settings)
        # In a continued W&B run, `step` is the next one; W&B takes no earlier step again.
        first = self._run.step if self._run.resumed else 0
        for row in rows:
            if row["round"] >= first:
                self._log(row)

    def on_evaluation(self, view: View, row: Mapping[str, Any]) -> None:
        """Logs a row."""
        if self._run is not None:
            self._log(row)

    def _log(self, row: Mapping[str, Any]) -> None:
        self._run.log(scalars_of(row), step=row["round"])

    def on_end(self) -> None:
        """Ends the W&B run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
