"""Calls of flax's layers: those that differ between training and evaluation, checked and masked."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

OFF_IN_TRAINING = ("deterministic", "use_running_average")
FLAGS = ("train", "training", "is_training", "is_train", *OFF_IN_TRAINING)
_CURE = (
    f"have the model's __call__ take one of {', '.join(FLAGS)}, which are set in training and "
    "evaluation, and pass it on to each"
)


def check_linen_call(training: bool, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Checks a linen module's call of a layer, as an interceptor.

    Raises:
      ValueError: dropout is off in training or on in evaluation, or BatchNorm does the opposite.
    """
    layer = context.module
    if context.method_name == "__call__" and _switches(layer):
        _check_call(layer, "/".join(layer.path), context.orig_method, args, kwargs, training)
    return call(*args, **kwargs)


def mask_linen_call(real: jax.Array, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Leaves rows that are not `real` `[B]` out of BatchNorm's statistics, as an interceptor."""
    layer = context.module
    if context.method_name == "__call__" and isinstance(layer, nn.BatchNorm):
        kwargs = _masked(real, "/".join(layer.path), context.orig_method, args, kwargs)
    return call(*args, **kwargs)


def watch(module: nnx.Module, training: bool) -> dict[str, float]:
    """Checks each later call of the module's dropout and BatchNorm layers, see `check_linen_call`.

    Returns:
      The rate of each dropout layer by name; calling a layer removes it.
    """
    uncalled = {}

    def before(name, method, layer, args, kwargs):
        _check_call(layer, name, method, args, kwargs, training)
        uncalled.pop(name, None)
        return kwargs

    for path, layer in nnx.iter_modules(module):
        if _switches(layer):
            name = "/".join(map(str, path))
            if _rate(layer) > 0:
                uncalled[name] = _rate(layer)
            _call_before(layer, functools.partial(before, name))
    return uncalled


def mask_nnx_calls(module: nnx.Module, real: jax.Array) -> None:
    """Leaves rows that are not `real` `[B]` out of the statistics of the module's BatchNorm layers."""

    def before(name, method, layer, args, kwargs):
        return _masked(real, name, method, args, kwargs)

    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, nnx.BatchNorm):
            _call_before(layer, functools.partial(before, "/".join(map(str, path))))


def _call_before(layer: nnx.Module, before: Callable) -> None:
    """Has a layer call `before(method, layer, args, kwargs) -> kwargs` before each of its calls."""
    original = type(layer)

    @functools.wraps(original.__call__)
    def call(self, *args, **kwargs):
        kwargs = before(functools.partial(original.__call__, self), self, args, kwargs)
        return original.__call__(self, *args, **kwargs)

    # nnx has no interceptors. Calls look up the class, not an attribute of the object, and the class
    # survives the copies that nnx.jit or nnx.scan make.
    object.__setattr__(layer, "__class__", type(original.__name__, (original,), {"__call__": call}))


def _masked(real: jax.Array, name: str, method: Callable, args: tuple, kwargs: dict) -> dict:
    """Returns the arguments of BatchNorm with a mask of the real rows."""
    given = inspect.signature(method).bind(*args, **kwargs).arguments
    x, mask = given["x"], given.get("mask")
    if x.shape[:1] != real.shape:
        raise ValueError(
            f"BatchNorm {name} gets inputs {x.shape} for a batch of {len(real)} examples; wanted an "
            "axis of examples first, so that rows which pad a batch can be left out of its statistics"
        )
    rows = real.reshape(-1, *[1] * (x.ndim - 1))
    return kwargs | {"mask": rows if mask is None else rows & mask}


def _check_call(
    layer: Any, name: str, method: Callable, args: tuple, kwargs: dict, training: bool
) -> None:
    flag = "use_running_average" if _is_norm(layer) else "deterministic"
    off = inspect.signature(method).bind(*args, **kwargs).arguments.get(flag)
    if off is None:
        off = getattr(layer, flag)
    # flax itself refuses a layer without a flag.
    if off is None or bool(off) != training:
        return
    if _is_norm(layer):
        fault = "its running averages in training" if training else "a batch's statistics in evaluation"
        raise ValueError(
            f"BatchNorm {name} uses {fault}; {_CURE} BatchNorm, such as `use_running_average=not train`"
        )
    fault = "stays off in training" if training else "stays on in evaluation"
    raise ValueError(complaint(name, _rate(layer), fault))


def complaint(name: str, rate: float, fault: str) -> str:
    """Returns the error of a dropout layer, with the cure."""
    return (
        f"the dropout of {name or 'the model'} with rate {rate} {fault}; {_CURE} dropout, such as "
        "`deterministic=not train`"
    )


def _switches(layer: Any) -> bool:
    return _is_norm(layer) or _rate(layer) > 0


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, nn.BatchNorm | nnx.BatchNorm)


def _rate(layer: Any) -> float:
    if isinstance(layer, nn.Dropout | nnx.Dropout):
        return layer.rate
    if isinstance(layer, nn.MultiHeadDotProductAttention | nnx.MultiHeadAttention):
        return layer.dropout_rate
    return 0.0
