"""The memory of clients: a row for each, which the simulation keeps and an algorithm sees by cohorts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.types import Algorithm, Cohort, Layout
from fedjax_sim.engine.placement import EVERYWHERE
from fedjax_sim.runtime.devices import machine_bytes, memory_bytes


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
    # Apart from what `init` draws: the parts of a split key are the key with 0, 1, ... folded in.
    key = jax.random.fold_in(key, 2**32 - 1)
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


def check_room(
    algorithm: Algorithm,
    num_clients: int,
    hparams: Mapping[str, Any],
    layout: Layout,
    num_copies: int = 1,
) -> None:
    """Refuses clients' memory for which the devices have no room.

    Args:
      algorithm: whose clients may remember something.
      num_clients: `N`.
      hparams: the algorithm's hyper-parameters.
      layout: every device has the rows of all clients.
      num_copies: how many times the rows lie there at the same time, in several runs.

    Raises:
      ValueError: the rows need more memory than the device, or the machine, has.
    """
    if algorithm.memory is None:
        return
    begin = functools.partial(start, algorithm, num_clients)
    needed = num_copies * trees.num_bytes(jax.eval_shape(begin, jax.random.key(0), hparams).clients)
    room = memory_bytes(jax.local_devices()[0])
    if room is None:  # CPU devices share the machine's
        here = min(layout.num_devices * layout.num_parts, len(jax.local_devices()))
        needed, room = needed * here, machine_bytes()
    if room is not None and needed > room:
        raise ValueError(
            f"the memory of {num_clients} clients takes {needed / 1e9:.3g} GB in {num_copies} copies, "
            f"and there are {room / 1e9:.3g} GB; wanted fewer clients, a smaller model or fewer runs at "
            "once"
        )


def specs(algorithm: Algorithm) -> Any:
    """Returns how a state is spread over the devices of a layout."""
    return algorithm.specs if algorithm.memory is None else WithMemory(algorithm.specs, EVERYWHERE)
