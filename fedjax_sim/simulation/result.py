"""Results of runs and sweeps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from fedjax_sim.core import html, trees
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Layout
from fedjax_sim.simulation.client_memory import server_state
from fedjax_sim.simulation.recorded import (
    Recorded,
    accuracy_curve,
    frame_of,
    measures,
    measures_text,
    rounds_to_target,
    summary_of,
)

_MOST_RUNS = 12  # lines of a sweep that is printed


@dataclasses.dataclass(frozen=True)
class Result(Recorded):
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
      ended_by: what ended the run: "num_rounds", "stop_at", "callback", or "interrupt" for Ctrl-C.
    """

    state: Any
    rows: list[dict]
    target: float | None
    layout: Layout
    compilations: int
    compile_seconds: float
    gather_seconds: float = 0.0
    waited_seconds: float = 0.0
    ended_by: str = "num_rounds"
    _run: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        last = self.rows[-1]
        return f"<Result of {last['round']} rounds in {last['seconds']:.3g} s: {measures_text(last)}>"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_run": None}  # a run holds functions, which a copy for a file cannot

    @property
    def params(self) -> Any:
        """The trained model; with several processes, all must ask for it together."""
        return self.state.params

    def _repr_html_(self) -> str:
        last = self.rows[-1]
        title = f"Result of {last['round']} rounds in {last['seconds']:.3g} s"
        return html.table(title, [(name, f"{value:.4g}") for name, value in measures(last).items()])

    def extend(self, num_rounds: int) -> "Result":
        """Runs further rounds of the same run, and returns the result of all rounds so far.

        The rounds are those of one longer run, to the bit. This result stays as it is, and the run's
        callbacks go on. With a workdir the run continues from its last checkpoint there; if clients'
        memory is in a file of the workdir, its rows then change under the earlier result. With several
        processes, all must extend together. Counts and times of compilation and gathering are those of
        the further rounds.

        Args:
          num_rounds: number of further rounds.

        Raises:
          ValueError: `num_rounds` is not a positive integer, `stop_at` or a callback has ended the run,
            the result is not one that `simulate` returned, or see `simulate`.
        """
        num_rounds = check_count("num_rounds", num_rounds)
        if self._run is None:
            raise ValueError("this result does not know its run; wanted one that simulate returned")
        return self._run.extended(self, num_rounds)

    def summary(self) -> dict[str, Any]:
        """Returns the run in numbers, ready for JSON."""
        server = server_state(self.state)  # JAX would keep memory on the host for ever
        return {
            # From shapes alone: the learners' mean needs all processes, a summary only one.
            "num_params": trees.num_params(jax.eval_shape(lambda state: state.params, server)),
            **summary_of(self.rows, self.target),
            "compile_seconds": self.compile_seconds,
            "compilations": self.compilations,
            "gather_seconds": self.gather_seconds,
            "waited_seconds": self.waited_seconds,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "devices": self.layout.num_devices,
            "lanes": self.layout.lanes,
        }


@dataclasses.dataclass(frozen=True)
class SweepRun(Recorded):
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
        parts = [f"{self.rows[-1]['round']} rounds", *best, measures_text(self.rows[-1])]
        return f"{settings}: {', '.join(filter(None, parts))}"

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
      interrupted: whether Ctrl-C ended the sweep; runs without any row are then left out.
    """

    runs: tuple[SweepRun, ...]
    target: float | None
    seconds: float
    compilations: int
    compile_seconds: float
    interrupted: bool = False

    def _best_first(self) -> list[SweepRun]:
        return sorted(self.runs, key=lambda run: (run.diverged is not None, -(run.best_accuracy or 0)))

    def __repr__(self) -> str:
        runs = self._best_first()
        lines = [f"<SweepResult of {len(runs)} runs in {self.seconds:.3g} s, the best first:"]
        lines += [f"  {run._told()}" for run in runs[:_MOST_RUNS]]
        if len(runs) > _MOST_RUNS:
            lines.append(f"  and {len(runs) - _MOST_RUNS} more, see summary()")
        return "\n".join(lines) + ">"

    def _repr_html_(self) -> str:
        runs = self._best_first()
        head = [*runs[0].hparams, "seed", "rounds", "best test accuracy", "last row"]
        lines = []
        for run in runs[:_MOST_RUNS]:
            best = "" if run.best_accuracy is None else f"{run.best_accuracy:.4g}"
            told = measures_text(run.rows[-1])
            told = told if run.diverged is None else f"diverged in round {run.diverged}"
            values = [f"{value:g}" for value in run.hparams.values()]
            lines.append([*values, run.seed, run.rows[-1]["round"], best, told])
        title = f"SweepResult of {len(runs)} runs in {self.seconds:.3g} s, the best first"
        if len(runs) > _MOST_RUNS:
            title += f"; {len(runs) - _MOST_RUNS} more are in summary()"
        return html.table(title, lines, head)

    def to_frame(self) -> Any:
        """Returns a pandas DataFrame, a line per run and evaluation.

        Its columns are the hyper-parameters, the seed, those of the rows, and `diverged`.

        Raises:
          ImportError: pandas is not installed.
        """
        return frame_of(
            {**run.hparams, "seed": run.seed, **row, "diverged": run.diverged}
            for run in self.runs
            for row in run.rows
        )

    def plot(
        self, metric: str | None = None, *, axis: str = "rounds", link: Any = None, ax: Any = None
    ) -> Any:
        """Draws a curve for each combination of hyper-parameters.

        A curve is the mean over seeds, and its band reaches from the smallest to the largest seed. Both
        are of rounds that all seeds have. Runs that diverged are left out, and the legend says so.

        Args: see `Result.plot`.

        Returns:
          The matplotlib Axes.

        Raises:
          ValueError: the rows have no such metric, the axis is unknown, or all runs diverged.
        """
        from fedjax_sim.reporting.run_curves import plot_runs

        return plot_runs(self.runs, metric, axis=axis, link=link, ax=ax)

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
