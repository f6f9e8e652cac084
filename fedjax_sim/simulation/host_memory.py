"""Clients' memory on the host: only the rows of a round's cohort are on the devices."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.types import Layout
from fedjax_sim.engine.placement import place
from fedjax_sim.runtime.processes import fetch
from fedjax_sim.simulation.client_memory import first_row, with_keys, without_keys
from fedjax_sim.simulation.row_store import RowStore


@jax.tree_util.register_static
class HostMemory:
    """The memory of `N` clients on the host; with several processes, on the host of each.

    The first row of a client is pure, so it is made when the client first takes part and takes no room
    before.

    Args:
      memory: `memory(key, params) -> row`, see `Algorithm.memory`.
      key: PRNG key of the first rows.
      params: parameters at the start of the run.
      num_clients: `N`.
      layout: devices that receive the rows of cohorts.
      path: file of the rows; None for a temporary one.

    Attributes:
      store: the `RowStore` of clients that have taken part.
    """

    def __init__(
        self,
        memory: Callable[[jax.Array, Any], Any],
        key: jax.Array,
        params: Any,
        num_clients: int,
        layout: Layout,
        path: pathlib.Path | None,
    ):
        self._memory, self._key, self._params, self._layout = memory, key, params, layout
        like = jax.eval_shape(lambda *given: without_keys(memory(*given)), key, params)
        self.store = RowStore(like, num_clients, path)

    def rows(self, ids: Any) -> Any:
        """Returns the rows of clients `[K]` as NumPy arrays `[K, ...]`; keys as their data.

        With several processes, all must ask together.
        """
        return fetch(without_keys(self.take(np.asarray(ids, np.int32))))

    def take(self, ids: np.ndarray) -> Any:
        """Returns the rows of clients `[K]` on the devices."""
        arguments = place((ids, self.store.read(ids), self.store.has(ids)), self._layout)
        return _present_rows(self._memory, self._key, self._params, *arguments)

    def put(self, ids: np.ndarray, own: Any) -> None:
        """Replaces the rows of clients `[K]`, leaving out absent ones."""
        self.store.write(ids, fetch(without_keys(own)))


@functools.partial(jax.jit, static_argnums=0)
def _present_rows(memory, key, params, ids, stored, is_stored):
    """Returns the stored rows, and first rows for clients that have none."""

    first = functools.partial(first_row, memory, key, params)

    def present(client):
        id, row, is_there = client
        return jax.lax.cond(is_there, lambda: row, lambda: without_keys(first(id)))

    rows = jax.lax.map(present, (ids, stored, is_stored))
    return with_keys(rows, first(ids[0]))  # of which only the kinds of keys are used
