"""Arithmetic on pytrees of arrays."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def is_key(leaf: jax.Array) -> bool:
    """Returns whether an array holds PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_key(data: jax.Array, like: jax.Array) -> jax.Array:
    """Returns the PRNG keys with this `jax.random.key_data`, of the same kind as `like`."""
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


def add(a: Tree, b: Tree) -> Tree:
    """Returns `a + b`, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """Returns `a - b`, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(tree: Tree, factor: jax.Array | float) -> Tree:
    """Returns `factor * tree`, each leaf in its own dtype."""
    return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), tree)


def squared_distance(a: Tree, b: Tree) -> jax.Array:
    """Returns `||a - b||^2` over all leaves, `[]`."""
    squares = jax.tree.map(lambda x, y: jnp.sum(jnp.square(x - y)), a, b)
    return sum(jax.tree.leaves(squares))


def zeros_like(tree: Tree) -> Tree:
    """Returns zeros with the shapes and dtypes of `tree`; its leaves may be abstract."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def all_finite(tree: Tree) -> jax.Array:
    """Returns whether no leaf holds a NaN or an infinity, `[]` bool."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def num_params(tree: Tree) -> int:
    """Returns the number of scalars in `tree`."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Tree) -> int:
    """Returns the size of `tree` in bytes, uncompressed."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
