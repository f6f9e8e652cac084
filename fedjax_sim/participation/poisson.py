"""Poisson participation: every client decides for itself."""

import math

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import as_float, check_count
from fedjax_sim.core.types import ABSENT, Cohort
from fedjax_sim.participation.sampler import Sampler

# The most likely that one round may draw more clients than it has places.
_OVERFLOW = 1e-9
_VALUES = 2**32  # of the random integer that decides for a client


def poisson(q: float, most: int) -> Sampler:
    """Returns a sampler in which each client takes part with probability `q`, independently of others.

    A round may have no clients at all. A draw takes time and memory in the order of `N`.

    Args:
      q: probability, rounded to a multiple of `2**-32`; another value compiles nothing.
      most: places of a cohort. One round must draw more clients with a probability of at most 1e-9, by
        Chernoff's bound; if it happens nevertheless, the run ends with an error.

    Raises:
      ValueError: `q` is not in (0, 1], or `most` is not a positive integer. A run raises it too if
        `most` is too small for its federation.

    Source of the bound: H. Chernoff, "A measure of asymptotic efficiency for tests of a hypothesis based
    on the sum of observations", Annals of Mathematical Statistics 23(4), 1952,
    https://doi.org/10.1214/aoms/1177729330
    """
    q = as_float("q", q)
    numerator = round(q * _VALUES) if 0 < q <= 1 else 0
    if numerator < 1:
        raise ValueError(f"q is {q}; wanted a probability from 2**-32 to 1")
    most = check_count("most", most)
    # A closed-over array is an argument of the compiled program.
    last = jnp.asarray(numerator - 1, jnp.uint32)

    def places(num_clients: int) -> int:
        if _overflow(num_clients, q, most) > _OVERFLOW:
            enough = next(k for k in range(most, num_clients + 1) if _fits(num_clients, q, k))
            raise ValueError(
                f"most is {most}, but {num_clients} clients with q = {q} may be more: wanted at least "
                f"{enough}, so that a round overflows with a probability below {_OVERFLOW}"
            )
        return min(most, num_clients)

    def draw(key: jax.Array, r: jax.Array, state: tuple, sizes: jax.Array):
        size = min(most, sizes.size)
        drawn = jax.random.bits(key, sizes.shape, jnp.uint32) <= last
        count = jnp.sum(drawn, dtype=jnp.int32)
        (ids,) = jnp.nonzero(drawn, size=size, fill_value=ABSENT)
        cohort = Cohort(ids.astype(jnp.int32), count=jnp.minimum(count, size))
        return cohort, state, {"overflow": count > size}

    message = f"more clients were drawn than most = {most}; repeat the run with a larger `most`"
    settings = {"cohorts": "poisson", "q": q, "most": most}
    return Sampler(places, draw, settings, errors={"overflow": message})


def _fits(num_clients: int, q: float, most: int) -> bool:
    return _overflow(num_clients, q, most) <= _OVERFLOW


def _overflow(num_clients: int, q: float, most: int) -> float:
    """Bounds the probability that more than `most` of `N` clients are drawn, by Chernoff."""
    if most >= num_clients:
        return 0.0
    share = (most + 1) / num_clients
    if share <= q:
        return 1.0
    divergence = share * math.log(share / q)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - q))
    return math.exp(-num_clients * divergence)
