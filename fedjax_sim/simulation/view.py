"""Views of a run, for evaluations: its state, and the model that each client uses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.types import Algorithm, Layout, Params
from fedjax_sim.engine.client_rows import map_rows, take_rows
from fedjax_sim.engine.placement import EVERYWHERE, place, shardings
from fedjax_sim.simulation.client_memory import WithMemory
from fedjax_sim.simulation.cohorts import own_state
from fedjax_sim.simulation.host_memory import HostMemory
from fedjax_sim.simulation.validation import EvaluationFn


@dataclasses.dataclass(frozen=True)
class View:
    """A run between two rounds, for evaluations marked `of_view`.

    It is valid during the evaluation alone: the next round overwrites its arrays, so copy what you keep.

    Attributes:
      round: number of completed rounds.
      state: the algorithm's state, without clients' memory.
      num_clients: `N`.
    """

    round: int
    state: Any
    num_clients: int
    _models: Callable[[np.ndarray], Params] = dataclasses.field(repr=False)

    @property
    def params(self) -> Params:
        """The model that other evaluations see."""
        return self.state.params

    def models(self, ids: Any) -> Params:
        """Returns the model that each client uses itself, as `Algorithm.model_of` says.

        By default that is the shared one. A client that has not taken part yet has its first memory: in
        Ditto, for example, the initial model.

        All of them are on the devices at once, so ask for as many as fit there. With several processes,
        all must ask together.

        Args:
          ids: `[n]`, indices into the federation.

        Returns:
          Parameters with a leading axis of clients, `[n, ...]`.

        Raises:
          ValueError: an id is not a client's, or the algorithm cannot tell a client's model.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids is {ids.dtype}{list(ids.shape)}; wanted integers [n], at least one")
        strange = ids[(ids < 0) | (ids >= self.num_clients)]
        if strange.size:
            raise ValueError(f"ids holds {strange[0]}; wanted 0 to {self.num_clients - 1}")
        return self._models(ids.astype(np.int32))


class _OfView:
    """An evaluation of a `View`."""

    def __init__(self, evaluate: Callable[[View], Mapping[str, float]]):
        self._evaluate = evaluate

    def __call__(self, view: View) -> Mapping[str, float]:
        return self._evaluate(view)


def of_view(evaluate: Callable[[View], Mapping[str, float]]) -> EvaluationFn:
    """Marks an evaluation that takes a `View` in place of params. A decorator.

    For example, the mean squared distance of ten clients' own models from the shared one:

        @fs.simulation.of_view
        def spread(view):
            models = view.models(range(10))
            squares = jax.tree.map(lambda w_k, w: ((w_k - w) ** 2).sum() / 10, models, view.params)
            return {"spread": sum(jax.tree.leaves(squares))}

    Args:
      evaluate: function of a `View` that returns a dict of floats, or of arrays of them.

    Returns:
      An evaluation for `simulate` and `sweep`.
    """
    return _OfView(evaluate)


def is_of_view(evaluation: EvaluationFn) -> bool:
    """Returns whether an evaluation takes a `View`."""
    return isinstance(evaluation, _OfView)


def results_of(evaluation: EvaluationFn, view: View) -> dict[str, Any]:
    """Returns the results of an evaluation as JSON values: floats, and arrays as lists of them.

    In lists None stands for NaN, which says that there is no value.

    Raises:
      ValueError: the evaluation does not return a dict.
    """
    results = evaluation(view if is_of_view(evaluation) else view.params)
    if not isinstance(results, Mapping):
        raise ValueError(
            f"an evaluation returned a {type(results).__name__}; wanted a dict of floats, such as "
            '{"test_accuracy": 0.97}'
        )
    return {name: _as_json(value) for name, value in results.items()}


def _as_json(value: Any) -> Any:
    if np.ndim(value) == 0:
        return float(value)
    array = np.asarray(value, np.float64)
    return np.where(np.isnan(array), None, array).tolist()


def view_of(algorithm: Algorithm, num_clients: int, layout: Layout, state: Any, round: int) -> View:
    """Returns the view of a run.

    Args:
      algorithm: algorithm that runs.
      num_clients: `N`.
      layout: devices that hold the state.
      state: the state, with clients' memory if there is any.
      round: number of completed rounds.
    """
    server = own_state(state)

    def models(ids: np.ndarray) -> Params:
        if algorithm.model_of is None:
            raise ValueError(
                "which model a client uses depends on its data; wanted an evaluation of all models, as "
                "by fs.simulation.cluster_evaluator"
            )
        ids = place(ids, layout)
        of_clients = jax.jit(map_rows, static_argnums=0, out_shardings=shardings(layout, EVERYWHERE))
        return of_clients(algorithm.model_of, server, _own(state, ids, num_clients, layout), ids)

    return View(round, server, num_clients, models)


def _own(state: Any, ids: jax.Array, num_clients: int, layout: Layout) -> Any:
    """Returns the memory of clients `[n]`, `[n, ...]`."""
    if not isinstance(state, WithMemory):
        return ()
    if isinstance(state.clients, HostMemory):
        return state.clients.take(*state.clients.send(np.asarray(ids)))
    take = jax.jit(take_rows, static_argnums=(2, 3))
    return take(state.clients, ids, num_clients, layout)
