"""Uniform participation, drawn inside the compiled program."""

import math

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Cohort
from fedjax_sim.participation.sampler import Sampler


def cohort_size(num_clients: int, client_fraction: float) -> int:
    """Returns `m = max(C * K, 1)` of the FedAvg paper, the number of clients in a round.

    Raises:
      ValueError: there are no clients, or the fraction lies outside [0, 1].
    """
    if num_clients < 1:
        raise ValueError("the federation has no clients; wanted at least one")
    if not 0 <= client_fraction <= 1:
        raise ValueError(f"client_fraction is {client_fraction}; wanted a number in [0, 1]")
    # Rounded first, so that 0.29 of 100 clients is 29 despite binary fractions.
    return max(math.floor(round(client_fraction * num_clients, 6)), 1)


def uniform(client_fraction: float | None = None, *, clients_per_round: int | None = None) -> Sampler:
    """Returns a sampler of equally many clients each round, every set of them equally likely.

    Args:
      client_fraction: `C`; a round has `cohort_size(N, C)` clients.
      clients_per_round: `K`, in place of a fraction.

    Raises:
      ValueError: both arguments are given, or neither, or one is out of range.
    """
    if (client_fraction is None) == (clients_per_round is None):
        raise ValueError(
            f"client_fraction is {client_fraction} and clients_per_round is {clients_per_round}; wanted "
            "one of them"
        )
    if clients_per_round is None:
        settings = {"client_fraction": client_fraction}
        cohort_size(1, client_fraction)
    else:
        settings = {"clients_per_round": check_count("clients_per_round", clients_per_round)}

    def most(num_clients: int) -> int:
        if clients_per_round is None:
            return cohort_size(num_clients, client_fraction)
        if clients_per_round > num_clients:
            raise ValueError(
                f"clients_per_round is {clients_per_round}; wanted at most the federation's "
                f"{num_clients} clients"
            )
        return int(clients_per_round)

    def draw(key: jax.Array, r: jax.Array, state: tuple, sizes: jax.Array):
        return Cohort(sample_cohort(key, sizes.size, most(sizes.size))), state, {}

    return Sampler(most, draw, settings)


def sample_cohort(key: jax.Array, num_clients: int, cohort_size: int) -> jax.Array:
    """Draws `cohort_size` of `num_clients` clients, uniformly and without replacement.

    Time and memory depend on the cohort alone: a million clients cost no more than a hundred.

    Args:
      key: PRNG key.
      num_clients: `N`, static.
      cohort_size: `K`, static, at most `N`.

    Returns:
      `[K]` int32, in ascending order if all clients are taken.

    Raises:
      ValueError: the cohort is empty or larger than the federation.

    Source: R. W. Floyd in J. Bentley, "Programming pearls: a sample of brilliance", Communications
    of the ACM 30(9), 1987, https://doi.org/10.1145/30401.315746
    """
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(
            f"a cohort of {cohort_size} cannot be drawn from {num_clients} clients; "
            f"choose a size from 1 to {num_clients}"
        )
    if cohort_size == num_clients:
        return jnp.arange(num_clients, dtype=jnp.int32)

    def draw(i, chosen):
        newest = num_clients - cohort_size + i
        candidate = jax.random.randint(jax.random.fold_in(key, i), (), 0, newest + 1, jnp.int32)
        taken = jnp.any(chosen == candidate)
        return chosen.at[i].set(jnp.where(taken, newest, candidate).astype(jnp.int32))

    nobody = jnp.full((cohort_size,), -1, jnp.int32)
    return jax.lax.fori_loop(0, cohort_size, draw, nobody)
