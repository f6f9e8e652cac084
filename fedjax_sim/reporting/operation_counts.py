"""Counts of a model's useful floating-point operations."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Task

_WINOGRAD = "winograd_convolve"  # the function of models/ops/winograd.py, which would import flax


def training_flops(task: Task, examples: dict[str, Any]) -> int:
    """Returns the useful operations of one example's forward and backward pass.

    Counts the matrix products and convolutions of the forward pass, two operations per
    multiplication and addition, times three, since the backward pass does each twice, however they are
    computed. A `cond` counts
    as its longer branch, and the body of a `while` counts once, since its iterations are unknown.

    Args:
      task: task to count.
      examples: column name -> `[n, ...]`; only shapes and dtypes matter.
    """
    key = jax.random.key(0)
    batch = {name: jnp.zeros((1, *column.shape[1:]), column.dtype) for name, column in examples.items()}
    params = jax.eval_shape(task.init, key)
    jaxpr = jax.make_jaxpr(task.loss)(params, batch, key)
    return 3 * _count(jaxpr.jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, settings = equation.primitive.name, equation.params
        shapes = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
        out = math.prod(getattr(equation.outvars[0].aval, "shape", ()))
        if name == "dot_general":
            (contracted, _), _ = settings["dimension_numbers"]
            total += 2 * out * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = settings["dimension_numbers"].rhs_spec
            total += 2 * out * math.prod(shapes[1][axis] for axis in kernel[1:])
        elif settings.get("name") == _WINOGRAD:  # counts as the direct convolution
            total += 2 * out * math.prod(shapes[1][:3])
        elif name == "cond":
            total += max(_count(branch) for branch in _inner_jaxprs(settings))
        else:
            repeats = settings.get("length", 1) if name == "scan" else 1
            total += repeats * sum(_count(inner) for inner in _inner_jaxprs(settings))
    return total


def _inner_jaxprs(settings: dict[str, Any]):
    for value in settings.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner
