"""Runs read from their workdirs, without the algorithm and the data that made them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fedjax_sim.core import html
from fedjax_sim.simulation.checkpoint import read_params
from fedjax_sim.simulation.recorded import Recorded, measures, measures_text, summary_of


@dataclasses.dataclass(frozen=True)
class LoadedRun(Recorded):
    """A run as its workdir holds it.

    Attributes:
      rows: one dict per evaluation, as in metrics.jsonl.
      config: configuration by which the workdir recognises its run, JSON values.
      params: parameters of the newest checkpoint: nested dicts of NumPy arrays, with positions as names
        where the model has lists. None if there is no intact checkpoint, if an older version of this
        package wrote it, or if the algorithm computes its model from the models of learners.
      params_round: round of that checkpoint, which a killed run may have passed; None without one.
    """

    rows: list[dict]
    config: Mapping[str, Any]
    params: Any
    params_round: int | None

    def __repr__(self) -> str:
        return f"<LoadedRun of {self._told()}: {measures_text(self.rows[-1])}>"

    def _repr_html_(self) -> str:
        lines = [(name, f"{value:.4g}") for name, value in measures(self.rows[-1]).items()]
        return html.table(f"LoadedRun of {self._told()}", lines)

    def _told(self) -> str:
        kept = "no parameters" if self.params is None else f"parameters of round {self.params_round}"
        return f"{self.rows[-1]['round']} rounds, {kept}"

    def summary(self) -> dict[str, Any]:
        """Returns what the rows tell in numbers, ready for JSON; see `Result.summary`."""
        return summary_of(self.rows, self.config.get("target_accuracy"))


def load_run(workdir: str | pathlib.Path) -> LoadedRun:
    """Reads a run of `simulate`, or one run of a sweep, from its workdir.

    The run may still be going on. Nothing is changed in the folder, and nothing is unpickled.

    Args:
      workdir: folder that `simulate` was given, or the folder of one run inside that of a sweep.

    Returns:
      Rows, configuration and parameters.

    Raises:
      ValueError: the folder is not that of a run, holds a sweep, has no rows yet, or a file in it is
        damaged.
    """
    home = pathlib.Path(workdir)
    own, of_sweep = home / "config.json", home.absolute().parent / "config.json"
    metrics = home / "metrics.jsonl"
    config = _read(own) if own.exists() else {}
    if isinstance(config.get("runs"), list) and not metrics.exists():
        raise ValueError(
            f"{home} holds a sweep; wanted the folder of one of its runs, such as "
            f"{home / str(config['runs'][0])}"
        )
    if not own.exists() and metrics.exists() and of_sweep.exists():
        config = _read(of_sweep)
    if not config or not metrics.exists():
        raise ValueError(
            f"{home} is not the folder of a run: it has no "
            f"{'config.json' if metrics.exists() else 'metrics.jsonl'}; wanted what simulate was given "
            "as workdir"
        )
    lines = metrics.read_text().split("\n")[:-1]  # a run that is writing may have written half a line
    rows = [_parsed(metrics, line) for line in lines]
    rows = [row for row in rows if row.get("diverged") is not True]  # a sweep's mark, not a row
    if not rows:
        raise ValueError(f"{metrics} has no rows yet; wanted a run with at least one evaluation")
    params_round, params = read_params(home) or (None, None)
    return LoadedRun(rows, config, params, params_round)


def _read(path: pathlib.Path) -> dict[str, Any]:
    return _parsed(path, path.read_text(encoding="utf-8"))


def _parsed(path: pathlib.Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(value).__name__}, not an object")
    return value
