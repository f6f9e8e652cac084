"""Two pieces of a client's work in a round, one after the other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Client
from fedjax_sim.engine.work import ClientWork


def _as_given(params: Any, trained: Any) -> Any:
    return params


def sequence(
    first: ClientWork, second: ClientWork, *, link: Callable[[Any, Any], Any] = _as_given
) -> ClientWork:
    """Returns the work of a client that does `first` and then `second` on its examples.

    In Ditto, for example, a client trains the shared model and then its own; in FedRep, the head and
    then the body, which starts with the trained head.

    `run((params_1, params_2), client, key, (rate_1, rate_2)) -> (trained_1, trained_2)`, where a
    `trained` is what the `run` of that work returns. Each work draws with a key of its own.

    Lanes start and end each work together, so they wait for the longest client of a chunk; see
    `map_clients`. If lanes were in different works at the same time, each would execute both at every
    step. An algorithm that uses this work gives `most_slots` and `lane_bytes` of both works; those of
    `local_sgd` are of one.

    Args:
      first: work such as `local_training` returns.
      second: the work after it.
      link: `link(params_2, trained_1) -> params`, with which `second` starts; by default `params_2`.
    """

    def key_of(i: int, key: jax.Array) -> jax.Array:
        return jax.random.fold_in(key, i)

    def run(params: tuple[Any, Any], client: Client, key: jax.Array, rate: tuple[Any, Any]):
        trained = first.run(params[0], client, key_of(0, key), rate[0])
        start = link(params[1], trained)
        return trained, second.run(start, client, key_of(1, key), rate[1])

    def slots(sizes: jax.Array, keys: jax.Array) -> jax.Array:
        # Not by vmap, under which some kinds of keys draw other numbers.
        of_each = [
            work.slots(sizes, jax.lax.map(functools.partial(key_of, i), keys))
            for i, work in enumerate((first, second))
        ]
        return jnp.concatenate(of_each, axis=1)

    return ClientWork(run, slots)
