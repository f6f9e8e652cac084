"""Clients' memory in a workdir: of each checkpoint the rows of those that have taken part."""

import pathlib

import jax
import numpy as np

from fedjax_sim.runtime import processes
from fedjax_sim.simulation.client_memory import WithMemory, with_keys, without_keys
from fedjax_sim.simulation.host_memory import HostMemory
from fedjax_sim.simulation.row_store import RowStore


class SavedMemory:
    """The rows of a run's checkpoints in a file, which the first process alone writes.

    Memory on the host lies in that file anyway. From memory on the devices, rows that have changed since
    the last checkpoint are copied there. Each placement can continue from what the other has saved.

    Args:
      state: state of the run at its start.
      path: file of the rows.

    Attributes:
      store: the `RowStore` of this file; on other processes than the first, of a temporary one.
    """

    def __init__(self, state: WithMemory, path: pathlib.Path):
        if isinstance(state.clients, HostMemory):
            self.store = state.clients.store
            return
        first = jax.eval_shape(lambda rows: jax.tree.map(lambda a: a[0], rows), state.clients)
        like = jax.eval_shape(without_keys, first)
        self.store = RowStore(like, state.visited.size, path if processes.is_first() else None)

    def save(self, state: WithMemory) -> dict[str, np.ndarray]:
        """Returns the index of the rows as they are now; all processes must call it together.

        Raises:
          OSError: the disk is full.
        """
        if not isinstance(state.clients, HostMemory):
            rows, visited = processes.fetch((without_keys(state.clients), state.visited))
            if processes.is_first():
                # A sweep may take rounds back. A client that took part in these alone has no row.
                self.store.forget(np.flatnonzero(~visited))
                for ids in self.store.pieces(np.flatnonzero(visited)):
                    self.store.update(ids, jax.tree.map(lambda leaf, ids=ids: leaf[ids], rows))
        return self.store.snapshot() if processes.is_first() else {}

    def restored(self, state: WithMemory, index: dict[str, np.ndarray]) -> WithMemory:
        """Returns the state with the rows of a checkpoint; all processes must call it together.

        Args:
          state: state of the run at its start.
          index: see `save`.
        """
        if processes.is_first():
            self.store.restore(index)
        on_host = isinstance(state.clients, HostMemory)
        if on_host and not processes.is_multiprocess():
            return state
        rows = None if on_host else jax.tree.map(np.array, processes.fetch(without_keys(state.clients)))
        visited = index["slots"][0] >= 0
        for ids in self.store.pieces(np.flatnonzero(visited)):
            read = processes.from_first(self.store.read(ids))
            if not on_host:
                jax.tree.map(lambda leaf, new, ids=ids: leaf.__setitem__(ids, new), rows, read)
            elif not processes.is_first():
                self.store.write(ids, read)
        if on_host:
            return state
        rows = with_keys(rows, state.clients)
        rows = jax.tree.map(lambda a, like: processes.put(a, like.sharding), rows, state.clients)
        return state._replace(clients=rows, visited=processes.put(visited, state.visited.sharding))
