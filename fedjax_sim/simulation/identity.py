"""The identity of a run: its programs, its evaluations, and the versions that it began with."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.types import Algorithm, Layout
from fedjax_sim.simulation import client_memory, programs
from fedjax_sim.simulation.cohorts import CohortDraws
from fedjax_sim.simulation.validation import EvaluationFn, as_rates
from fedjax_sim.simulation.view import View, results_of
from fedjax_sim.version import VERSION

# In config.json but not compared: the placement of a run changes only the order of its sums, and its
# length changes none of its rounds.
NOT_COMPARED = ("lanes", "stacked", "num_rounds")
# Entries of config.json that are not settings.
_NAMES = (
    "versions",
    "earlier_versions",
    "programs",
    "evaluations",
    "initial_params",
    "data_digest",
)
# A plain function may round differently when it evaluates the same model on another machine.
_TOLERANCE = 1e-3


def identify(
    algorithm: Algorithm,
    data: Any,
    draws: CohortDraws,
    hparams: Mapping[str, float],
    evaluators: Sequence[EvaluationFn],
    initial_params: Any = None,
) -> dict[str, Any]:
    """Returns what a run computes, as entries of its config.json.

    Args:
      algorithm: algorithm to run; its rounds are traced on one device, wherever the run takes place.
      data: a `FederatedData`.
      draws: how cohorts are drawn.
      hparams: the algorithm's hyper-parameters.
      evaluators: the run's evaluations.
      initial_params: parameters to begin with, or None.

    Returns:
      "versions"; "programs", name of a part -> digest; "evaluations", a digest each, None for a plain
      function; "initial_params", a digest or None.
    """
    key, examples, rates = jax.random.key(0), data.examples, as_rates(hparams)
    start = (key, rates) if initial_params is None else (key, rates, programs.shapes_of(initial_params))
    begin = functools.partial(client_memory.start, algorithm, data.num_clients, Layout())
    play = functools.partial(client_memory.play, algorithm.round)
    state = jax.eval_shape(begin, *start)
    cohort = draws.shapes.cohort
    parts = dict(algorithm.parts(examples)) | {
        "init": (begin, *start),
        "round": (play, key, state, programs.shapes_of(data), cohort),
    }
    params = jax.eval_shape(lambda state: state.params, state)
    return {
        "versions": versions(),
        "programs": {name: programs.digest(*part) for name, part in parts.items()}
        | {"cohorts": draws.program.digest[:16]},
        "evaluations": [_digest(evaluation, params) for evaluation in evaluators],
        "initial_params": None if initial_params is None else programs.digest_arrays(initial_params),
    }


def versions() -> dict[str, str]:
    """Returns the versions that a run may depend on."""
    return {"fedjax_sim": VERSION, "jax": jax.__version__}


def check_config(config: Mapping[str, Any]) -> None:
    """Checks that a user's configuration avoids the names that config.json uses itself.

    Raises:
      ValueError: `config` has such a name.
    """
    taken = sorted(config.keys() & {*_NAMES})
    if taken:
        raise ValueError(
            f"config has the name {taken[0]!r}, which config.json uses itself; wanted any name but "
            f"{', '.join(_NAMES)}"
        )


def _digest(evaluation: EvaluationFn, params: Any) -> str | None:
    return evaluation.digest(params) if hasattr(evaluation, "digest") else None


def check_evaluations(
    evaluators: Sequence[EvaluationFn],
    known: Mapping[str, Any],
    view: View,
    where: Any,
    names: Collection[str] = (),
) -> None:
    """Refuses to continue a run with evaluations that differ from those it began with.

    The workdir cannot see inside a plain function, so the function evaluates a model of the run again.

    Args:
      evaluators: current evaluations.
      known: row of the run.
      view: the run at that row.
      where: workdir, for the error message.
      names: names in the row that evaluations gave, as far as they are known.

    Raises:
      ValueError: the values differ from the row's, or have other names.
    """
    found = {name: v for e in evaluators for name, v in results_of(e, view).items()}
    for name in sorted(found.keys() | set(names)):
        before, now = known.get(name, "absent"), found.get(name, "absent")
        if "absent" in (before, now) or not _is_close(before, now):
            raise ValueError(
                f"{where} belongs to a run of another evaluation: {name} of the model of round "
                f"{known['round']} is {before} there, {now} now. To continue it, use that evaluation, "
                "which may depend on nothing but the parameters or the view; otherwise choose another "
                "workdir."
            )


def _is_close(before: Any, now: Any) -> bool:
    before, now = (np.asarray(value, np.float64) for value in (before, now))  # None becomes NaN
    same_shape = before.shape == now.shape
    return same_shape and np.allclose(now, before, rtol=_TOLERANCE, atol=1e-9, equal_nan=True)
