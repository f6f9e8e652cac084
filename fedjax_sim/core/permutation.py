"""A random permutation computed without a table: the order in which a client visits its examples."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Each round pairs up all values and swaps each pair by a coin flip, which halves the remaining bias.
# Uniformity tests with 400,000 draws detect bias after 12 rounds and none after 16.
_ROUNDS = 24


def permutation(key: jax.Array, size: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Returns a random permutation of `range(size)`, as a function from positions to values.

    Each value is computed on demand and no table is stored, so `size` may be traced and a client of
    ten examples does not pay for one of ten thousand.

    Args:
      key: PRNG key; together with `size` it determines the permutation.
      size: `[]` int32, at least 1.

    Returns:
      A function from positions `[...]` int32 in `[0, size)` to values `[...]` int32 in `[0, size)`,
      one to one.

    Source: V. T. Hoang, B. Morris, P. Rogaway, "An enciphering scheme based on a card shuffle",
    CRYPTO 2012, https://arxiv.org/abs/1208.1176
    """
    return permuted(draw(key, size), size)


def draw(key: jax.Array, size: jax.Array) -> jax.Array:
    """Draws the random numbers of `permutation`, `[2, R]` uint32, for a loop to keep."""
    pivots, salts = jax.random.bits(key, (2, _ROUNDS), jnp.uint32)
    return jnp.stack([pivots % size.astype(jnp.uint32), salts])


def permuted(drawn: jax.Array, size: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Returns the permutation that `draw` drew for this size."""

    def value_at(positions: jax.Array) -> jax.Array:
        x = positions.astype(jnp.uint32)
        for i in range(_ROUNDS):
            x = _swapped(drawn, size, i, x)
        return x.astype(jnp.int32)

    return value_at


def first_values(key: jax.Array, size: int, count: int) -> jax.Array:
    """Returns the first `count` values of a random permutation of `range(size)`, `[count]` int32.

    The rounds are a loop, since unrolled ones take long to compile for many values.
    """
    of_size = jnp.int32(size)
    step = functools.partial(_swapped, draw(key, of_size), of_size)
    return jax.lax.fori_loop(0, _ROUNDS, step, jnp.arange(count, dtype=jnp.uint32)).astype(jnp.int32)


def _swapped(drawn: jax.Array, size: jax.Array, i: int | jax.Array, x: jax.Array) -> jax.Array:
    """Takes the values through round `i`."""
    pivot, salt = drawn[0, i], drawn[1, i]
    partner = jnp.where(x <= pivot, pivot - x, pivot + size.astype(jnp.uint32) - x)
    # Both values of a pair use the larger one's coin, so they agree on the swap.
    coin = _mix(jnp.maximum(x, partner) ^ salt) >> 31
    return jnp.where(coin == 1, partner, x)


def _mix(x: jax.Array) -> jax.Array:
    """Applies a bijection of 32-bit words in which every input bit affects every output bit.

    Constants by C. Wellons, https://github.com/skeeto/hash-prospector
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
