"""Results of runs and sweeps, as arrays and as summaries."""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.core import trees
from fedjax_sim.core.types import Layout
from fedjax_sim.simulation.client_memory import server_state

_MOST_RUNS = 12  # lines of a sweep that is printed
_COUNTS = ("round", "examples", "slots", "seconds", "round_seconds")  # of a row, beside its measures
_TOTALS = ("cumulative_", "bytes_", "messages_", "trips_")  # prefixes of columns of totals


def rounds_to_target(rounds: Any, accuracies: Any, target: float) -> float | None:
    """Returns the round at which a curve, made monotone, first reaches a target.

    The curve is replaced by its running maximum and read by linear interpolation between the two
    evaluations around the crossing (McMahan et al., "Communication-efficient learning of deep
    networks from decentralized data", AISTATS 2017, section 3).

    Args:
      rounds: `[n]`, ascending; or another cumulative quantity, such as bytes.
      accuracies: `[n]`.
      target: target in the unit of the accuracies.

    Returns:
      The round, or None if the curve stays below the target.
    """
    best = np.maximum.accumulate(np.asarray(accuracies, np.float64))
    rounds = np.asarray(rounds, np.float64)
    reached = np.flatnonzero(best >= target)
    if not reached.size:
        return None
    after = reached[0]
    if after == 0:
        return float(rounds[0])
    before = after - 1
    share = (target - best[before]) / (best[after] - best[before])
    return float(rounds[before] + share * (rounds[after] - rounds[before]))


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """Returns rows as columns, name -> `[evaluations, ...]` float64; missing values are NaN."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    shape = next((np.shape(value) for value in values if value is not None), ())
    missing = np.full(shape, np.nan)
    return np.array([missing if value is None else value for value in values], np.float64)


def ledger_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of a row that count messages, trips and bytes, if it has any."""
    return {name: total for name, total in row.items() if name.startswith(_TOTALS)}


def accuracy_curve(rows: list[dict]) -> tuple[list[int], list[float]]:
    """Returns the rounds of the rows with a test accuracy, and these accuracies."""
    judged = [row for row in rows if "test_accuracy" in row]
    return [row["round"] for row in judged], [row["test_accuracy"] for row in judged]


def _measures(row: Mapping[str, Any]) -> str:
    """Returns the losses, accuracies and other measures of a row in a few words."""
    told = row.keys() - ledger_of(row).keys() - {*_COUNTS} | {"cumulative_loss"}
    known = {name: value for name, value in row.items() if name in told and _is_number(value)}
    return ", ".join(f"{name} {value:.4g}" for name, value in known.items())


def _is_number(value: Any) -> bool:
    return value is not None and not isinstance(value, list)


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
      state: the algorithm's state, with clients' memory and a sampler's state beside it, if there are
        any; `state.params` is the model.
      rows: one dict per evaluation, as in metrics.jsonl.
      target: target accuracy, or None.
      layout: lanes and devices.
      compilations: programs that this process compiled.
      compile_seconds: time to compile them, tracing included; see `CompilationCounter`.
      gather_seconds: time to gather cohorts on the host and send them; zero if the data is on the
        devices.
      waited_seconds: time that rounds waited for their cohorts; a share of
        `1 - waited_seconds / gather_seconds` was hidden behind computation.
    """

    state: Any
    rows: list[dict]
    target: float | None
    layout: Layout
    compilations: int
    compile_seconds: float
    gather_seconds: float = 0.0
    waited_seconds: float = 0.0

    def __repr__(self) -> str:
        last = self.rows[-1]
        return f"<Result of {last['round']} rounds in {last['seconds']:.3g} s: {_measures(last)}>"

    @property
    def params(self) -> Any:
        """The trained model; with several processes, all must ask for it together."""
        return self.state.params

    def history(self) -> dict[str, np.ndarray]:
        """Returns the rows as columns, name -> `[evaluations]`, or `[evaluations, ...]` for arrays."""
        return columns(self.rows)

    def summary(self) -> dict[str, Any]:
        """Returns the run in numbers, ready for JSON."""
        rounds, accuracies = accuracy_curve(self.rows)
        last = self.rows[-1]
        reached = None if self.target is None else rounds_to_target(rounds, accuracies, self.target)
        blocks = list(itertools.pairwise(self.rows))
        per_round = [row["round_seconds"] for _, row in blocks]
        server = server_state(self.state)  # JAX would keep memory on the host for ever
        seconds = sum(row["round_seconds"] * (row["round"] - before["round"]) for before, row in blocks)
        return {
            # From shapes alone: the learners' mean needs all processes, a summary only one.
            "num_params": trees.num_params(jax.eval_shape(lambda state: state.params, server)),
            "rounds": last["round"],
            "best_accuracy": max(accuracies, default=None),
            "final_accuracy": accuracies[-1] if accuracies else None,
            "target_accuracy": self.target,
            "rounds_to_target": reached,
            "seconds_per_round": statistics.median(per_round) if per_round else None,
            "compile_seconds": self.compile_seconds,
            "compilations": self.compilations,
            "gather_seconds": self.gather_seconds,
            "waited_seconds": self.waited_seconds,
            "examples_per_second": last["examples"] / seconds if seconds else None,
            "padding_waste": 1 - last["examples"] / last["slots"] if last["slots"] else 0.0,
            **ledger_of(last),
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "devices": self.layout.num_devices,
            "lanes": self.layout.lanes,
        }


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      hparams: name -> value, for all the algorithm's hyper-parameters.
      seed: seed of the run's key.
      rows: one dict per evaluation, as in `simulate`; `seconds` and `round_seconds` are this run's share
        of the total time.
      state: the algorithm's state after the last row.
      diverged: round in which training diverged, or None; rows end before it, and `state` is then
        useless.
    """

    hparams: Mapping[str, float]
    seed: int
    rows: list[dict]
    state: Any
    diverged: int | None

    def __repr__(self) -> str:
        return f"<SweepRun {self._told()}>"

    def _told(self) -> str:
        settings = ", ".join([*(f"{k}={v:g}" for k, v in self.hparams.items()), f"seed={self.seed}"])
        if self.diverged is not None:
            return f"{settings}: diverged in round {self.diverged}"
        best = [] if self.best_accuracy is None else [f"best test accuracy {self.best_accuracy:.4g}"]
        parts = [f"{self.rows[-1]['round']} rounds", *best, _measures(self.rows[-1])]
        return f"{settings}: {', '.join(filter(None, parts))}"

    def history(self) -> dict[str, np.ndarray]:
        """Returns the rows as columns, name -> `[evaluations]`, or `[evaluations, ...]` for arrays."""
        return columns(self.rows)

    def rounds_to_target(self, target: float) -> float | None:
        """Returns when the test accuracy first reaches a target; see the function of this name."""
        return rounds_to_target(*accuracy_curve(self.rows), target)

    @property
    def best_accuracy(self) -> float | None:
        """The highest test accuracy of the run."""
        return max(accuracy_curve(self.rows)[1], default=None)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
      runs: every combination of hyper-parameters and seeds.
      target: target accuracy, or None.
      seconds: time that the whole sweep took.
      compilations: programs compiled for it.
      compile_seconds: time to compile them, tracing included; see `CompilationCounter`.
    """

    runs: tuple[SweepRun, ...]
    target: float | None
    seconds: float
    compilations: int
    compile_seconds: float

    def __repr__(self) -> str:
        runs = sorted(self.runs, key=lambda run: (run.diverged is not None, -(run.best_accuracy or 0)))
        lines = [f"<SweepResult of {len(runs)} runs in {self.seconds:.3g} s, the best first:"]
        lines += [f"  {run._told()}" for run in runs[:_MOST_RUNS]]
        if len(runs) > _MOST_RUNS:
            lines.append(f"  and {len(runs) - _MOST_RUNS} more, see summary()")
        return "\n".join(lines) + ">"

    def summary(self) -> list[dict[str, Any]]:
        """Returns a dict per run: its hyper-parameters, seed and result, ready for JSON."""
        return [
            dict(run.hparams)
            | {
                "seed": run.seed,
                "rounds": run.rows[-1]["round"],
                "rounds_to_target": None if self.target is None else run.rounds_to_target(self.target),
                "best_accuracy": run.best_accuracy,
                "seconds": run.rows[-1]["seconds"],
                "diverged": run.diverged,
            }
            for run in self.runs
        ]
