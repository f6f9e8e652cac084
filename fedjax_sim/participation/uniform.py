"""Uniform participation, drawn inside the compiled program."""

import jax
import jax.numpy as jnp


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
