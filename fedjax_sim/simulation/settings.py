"""What a run is asked to do, looked at before anything is compiled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fedjax_sim.base import Algorithm, Layout

EvaluationFn = Callable[[Any], Mapping[str, float]]


def as_evaluators(
    evaluate: EvaluationFn | Sequence[EvaluationFn], stop_at: float | None
) -> tuple[EvaluationFn, ...]:
    """The evaluations as a tuple.

    Raises:
      ValueError: the target accuracy is not a share, or there is nothing to compare it with.
    """
    evaluators = (evaluate,) if callable(evaluate) else tuple(evaluate)
    if stop_at is not None and not 0 < stop_at <= 1:
        raise ValueError(f"the target accuracy is {stop_at}; wanted a share in (0, 1]")
    if stop_at is not None and not evaluators:
        raise ValueError("a target accuracy needs an evaluation, such as accuracy(task, test)")
    return evaluators


def merge_hparams(algorithm: Algorithm, given: Mapping[str, float]) -> dict[str, float]:
    """The algorithm's hyper-parameters with `given` in place of their defaults.

    Raises:
      ValueError: the algorithm does not have one, or it is out of its range.
    """
    defaults = algorithm.hparams
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"this algorithm has no hyper-parameter {', '.join(unknown)}; it has {', '.join(defaults)}"
        )
    merged = {name: float(value) for name, value in (dict(defaults) | dict(given)).items()}
    algorithm.check_hparams(merged)
    return merged


def check_data(algorithm: Algorithm, data: Any, num_rounds: int) -> None:
    """Refuses data without examples, in files that have shrunk, or not made for the algorithm.

    Raises:
      ValueError: it is one.
    """
    if int(data.offsets[-1]) == 0:
        raise ValueError("no client of the federation has any data; wanted at least one example")
    data.check()
    if algorithm.num_learners not in (None, data.num_clients):
        raise ValueError(
            f"the algorithm has {algorithm.num_learners} learners, the federation {data.num_clients} "
            "clients; wanted a client for each learner"
        )
    algorithm.check(data, num_rounds)


def check_layout(algorithm: Algorithm, layout: Layout) -> None:
    """Refuses devices that cannot share an algorithm's learners evenly.

    Raises:
      ValueError: they are such.
    """
    if algorithm.num_learners is not None and algorithm.num_learners % layout.num_devices:
        raise ValueError(
            f"{layout.num_devices} devices cannot share {algorithm.num_learners} learners evenly; "
            f"wanted such as default_layout(num_learners={algorithm.num_learners}) gives"
        )


def check_one_run(num_clients: int, layout: Layout) -> None:
    """Refuses devices and processes that a single run has nothing to do for.

    Args:
      num_clients: of a round.
      layout: of the run.

    Raises:
      ValueError: the mesh is one of several runs, or the job has more processes than clients.
    """
    if layout.num_parts > 1:
        raise ValueError(
            f"the mesh has {layout.num_parts} parts for the runs of a sweep, and there is one run; "
            "leave out mesh_runs"
        )
    if layout.mesh is not None and jax.process_count() > num_clients:
        raise ValueError(
            f"{jax.process_count()} processes share {num_clients} clients a round, so that some have "
            "nothing to do; start fewer processes, or choose a larger client fraction"
        )
