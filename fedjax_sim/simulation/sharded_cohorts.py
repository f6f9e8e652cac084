"""Sharded cohorts: each device receives its own clients and only their rows."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.types import ABSENT, Cohort, Layout
from fedjax_sim.engine.placement import SPREAD, place, shardings


def share_out(sizes: np.ndarray, parts: int) -> list[np.ndarray]:
    """Splits the positions of clients of `sizes` `[K]`: the next largest to the least loaded part."""
    load = np.zeros(parts, np.int64)
    owner = np.zeros(len(sizes), np.int64)
    for position in np.argsort(-sizes, kind="stable"):
        owner[position] = load.argmin()
        load[owner[position]] += sizes[position] + 1  # a client without examples costs something too
    return [np.flatnonzero(owner == part) for part in range(parts)]


def send_learners(data: Any, layout: Layout) -> tuple[Cohort, Any]:
    """Sends to each device the learners that it trains; see `send_parts`."""
    parts = np.split(np.arange(data.num_clients), layout.num_devices)
    num_rows = max(int(data.offsets[part[-1] + 1] - data.offsets[part[0]]) for part in parts)
    everybody = Cohort(place(np.arange(data.num_clients, dtype=np.int32), layout))
    return send_parts(jax.tree.map(np.asanyarray, data), everybody, parts, num_rows, layout)


def send_parts(
    data: Any, cohort: Cohort, parts: list[np.ndarray], num_rows: int, layout: Layout
) -> tuple[Cohort, Any]:
    """Sends to each device of this process its own clients, with room for as many as there are in all.

    Args:
      data: a `FederatedData` on the host.
      cohort: the clients, on the layout's devices.
      parts: `D` times the positions in the cohort of a device's clients, of any number; together, of all
        that take part.
      num_rows: of each device's columns, at least as many as its clients own.
      layout: of `D` devices.

    Returns:
      The cohort, and a `FederatedData` that is as many parts: of each column
      `[D * num_rows, ...]`, `offsets` `[D * (K + 1)]`.
    """
    size, count, ids = cohort.num_clients, len(parts), np.asarray(cohort.ids)
    select = functools.cache(lambda d: data.select(ids[parts[d]], num_rows))

    def send(shape: tuple[int, ...], of_device: Callable[[int], np.ndarray]) -> jax.Array:
        return jax.make_array_from_callback(
            (count * shape[0], *shape[1:]),
            shardings(layout, SPREAD),
            lambda index: of_device((index[0].start or 0) // shape[0]),
        )

    def room(values: np.ndarray, length: int, fill: int) -> np.ndarray:
        return np.pad(values, (0, length - values.size), constant_values=fill).astype(np.int32)

    def offsets(d: int) -> np.ndarray:
        ends = select(d).offsets
        return room(ends, size + 1, ends[-1])

    examples = {
        name: send((num_rows, *column.shape[1:]), lambda d, name=name: select(d).examples[name])
        for name, column in data.examples.items()
    }
    members = send((size,), lambda d: room(parts[d], size, ABSENT))
    sent = dataclasses.replace(
        data, examples=examples, offsets=send((size + 1,), offsets), client_ids=None
    )
    return dataclasses.replace(cohort, layout=layout, members=members), sent
