"""The memory of clients: a row for each, which the simulation keeps and an algorithm sees by cohorts."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Algorithm, Cohort
from fedjax_sim.engine.placement import EVERYWHERE


class WithMemory(NamedTuple):
    """The state of an algorithm whose clients remember something.

    Attributes:
      server: the algorithm's own state.
      clients: `[N, ...]`, a row for each client.
    """

    server: Any
    clients: Any

    @property
    def params(self) -> Any:
        """The model to evaluate."""
        return self.server.params


def start(
    algorithm: Algorithm, num_clients: int, key: jax.Array, hparams: Mapping[str, Any], *params: Any
) -> Any:
    """Returns the state before the first round, with the memory of `N` clients if there is any."""
    state = algorithm.init(key, hparams, num_clients, *params)
    if algorithm.memory is None:
        return state
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_clients))
    rows = jax.vmap(algorithm.memory, (0, None))(keys, state.params)
    return WithMemory(state, rows)


def play(round_fn: Callable, key: jax.Array, state: Any, data: Any, cohort: Cohort) -> tuple[Any, Any]:
    """Runs one round, which sees the memory of its cohort alone.

    Returns:
      The state, in which rows of absent clients are as before, and the round's info.
    """
    if not isinstance(state, WithMemory):
        state, _, info = round_fn(key, state, (), data, cohort)
        return state, info
    own = jax.tree.map(lambda rows: rows.at[cohort.ids].get(mode="clip"), state.clients)
    server, own, info = round_fn(key, state.server, own, data, cohort)

    def write(rows, new):
        return rows.at[cohort.ids].set(new, mode="drop", unique_indices=True)

    return WithMemory(server, jax.tree.map(write, state.clients, own)), info


def specs(algorithm: Algorithm) -> Any:
    """Returns how a state is spread over the devices of a layout."""
    return algorithm.specs if algorithm.memory is None else WithMemory(algorithm.specs, EVERYWHERE)
