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

_FIRST, _STORED, _KEPT = range(3)  # the sources of a row


@jax.tree_util.register_static
class HostMemory:
    """The memory of `N` clients on the host; with several processes, on the host of each.

    The first row of a client is pure, so it is made when the client first takes part and takes no room
    before. While a round runs, a thread may `put` the rows of the cohort before and `send` those of the
    next; rows that are not written yet are kept on the devices.

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
        self._kept: tuple[np.ndarray, Any] | None = None

    def rows(self, ids: Any) -> Any:
        """Returns the rows of clients `[K]` as NumPy arrays `[K, ...]`; keys as their data.

        With several processes, all must ask together.
        """
        return fetch(without_keys(self.take(*self.send(np.asarray(ids, np.int32)))))

    def send(self, ids: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray]:
        """Sends the stored rows of clients `[K]` to the devices, for `take`.

        Returns:
          `ids`, the rows `[K, ...]`, and which of them are stored, `[K]` bool.
        """
        is_stored = self.store.has(ids)
        return ids, place(self.store.read(ids), self._layout), is_stored

    def take(self, ids: np.ndarray, stored: Any, is_stored: np.ndarray) -> Any:
        """Returns the rows of clients `[K]` on the devices, given what `send` has returned.

        Rows that were kept since are newer than stored ones.
        """
        kept_ids, kept = self._kept or ((), stored)
        places = {int(id): k for k, id in enumerate(kept_ids)}
        position = np.array([places.get(int(id), -1) for id in ids], np.int32)
        source = np.where(position >= 0, _KEPT, np.where(is_stored, _STORED, _FIRST)).astype(np.int32)
        of_each = place((ids, stored, position, source), self._layout)
        return _present_rows(self._memory, self._key, self._params, *of_each, kept)

    def keep(self, ids: np.ndarray, own: Any) -> None:
        """Keeps the rows of clients `[K]` on the devices, in place of those kept before."""
        self._kept = ids, without_keys(own)

    def put(self, ids: np.ndarray, own: Any) -> None:
        """Replaces the stored rows of clients `[K]`, leaving out absent ones."""
        self.store.write(ids, fetch(without_keys(own)))


@functools.partial(jax.jit, static_argnums=0)
def _present_rows(memory, key, params, ids, stored, position, source, kept):
    """Returns the row of each client from its source."""
    first = functools.partial(first_row, memory, key, params)

    def present(client):
        id, row, k, source = client
        by_source = (  # in the order of the sources' numbers
            lambda: without_keys(first(id)),
            lambda: row,
            lambda: jax.tree.map(lambda leaf: leaf[k], kept),
        )
        return jax.lax.switch(source, by_source)

    rows = jax.lax.map(present, (ids, stored, position, source))
    return with_keys(rows, first(ids[0]))  # of which only the kinds of keys are used
