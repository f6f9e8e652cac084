"""Optimizers as users give them: optax's own, or functions that make them from a learning rate."""

import functools
from collections.abc import Callable
from typing import Any

import optax

OptimizerFactory = Callable[[Any], optax.GradientTransformation]


def as_factory(optimizer: Any) -> OptimizerFactory:
    """A function from a (traced) learning rate to an optimizer.

    Args:
      optimizer: such a function (`optax.sgd`, `functools.partial(optax.sgd, momentum=0.9)`), or an
        optimizer already built, whose updates the rate then multiplies.

    Raises:
      ValueError: it is neither.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return lambda rate: optax.chain(optimizer, optax.scale(rate))
    if callable(optimizer):
        return optimizer
    raise ValueError(
        f"got an optimizer of type {type(optimizer).__name__}; wanted an optax optimizer or a "
        "function from a learning rate to one, such as optax.sgd"
    )


def describe(optimizer: Any) -> str:
    """A name for an optimizer by which to recognise it: of a function or a `functools.partial`.

    What is inside an optimizer that is already built cannot be seen; it is called "built".
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return "built"
    if isinstance(optimizer, functools.partial):
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(optimizer.keywords.items()))
        return f"{describe(optimizer.func)}({settings})"
    return getattr(optimizer, "__qualname__", type(optimizer).__name__)
