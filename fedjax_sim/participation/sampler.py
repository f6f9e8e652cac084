"""The contract of samplers, which choose the clients of each round."""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from fedjax_sim.core.types import Cohort


def _no_state(key: jax.Array, sizes: jax.Array) -> tuple[()]:
    """Returns the state of a sampler that remembers nothing."""
    return ()


class Sampler(NamedTuple):
    """The choice of each round's clients: pure functions that see no training.

    Cohorts can therefore be drawn ahead, are the same wherever the data lies, and repeat when a run
    resumes.

    Attributes:
      most: `most(num_clients) -> K`, the places of a cohort, where `num_clients` is `N`; raises
        ValueError for a federation that does not suit the sampler.
      draw: `draw(key, r, state, sizes) -> (cohort, state, info)`. `key` is the PRNG key of round `r`,
        `[]` int32, and `sizes` is `[N]` int32, `n_k` of each client. The cohort is a `Cohort` with `ids`
        and, if they apply, `lag` and `count`. `info` is as in `Algorithm.round`.
      settings: name -> JSON value; a workdir recognises its run by them and by the program of `draw`.
      init: `init(key, sizes) -> state`, the state before the first round, such as a virtual clock. A run
        saves it with its own state.
      errors: see `Algorithm`.
    """

    most: Callable[[int], int]
    draw: Callable[[jax.Array, jax.Array, Any, jax.Array], tuple[Cohort, Any, dict[str, jax.Array]]]
    settings: Mapping[str, Any]
    init: Callable[[jax.Array, jax.Array], Any] = _no_state
    errors: Mapping[str, str] = types.MappingProxyType({})
