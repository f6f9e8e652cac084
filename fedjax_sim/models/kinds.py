"""Models of every kind, as pure functions; models of other libraries are refused with the cure."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from fedjax_sim.models.modules import Model, from_linen, from_nnx

_SAME_LAYERS = "it keeps its weights inside; write the same layers as a flax module"
# Package -> what its models are, and what to write in their place. None of them is imported.
_FOREIGN = types.MappingProxyType(
    {
        "haiku": (
            "a Haiku transform",
            "write the pair (lambda key: model.init(key, x), hk.without_apply_rng(model).apply), where "
            "x is an example with a leading axis, [1, ...]",
        ),
        "equinox": (
            "an Equinox module",
            "write the pair (lambda key: eqx.filter(MyModel(key=key), eqx.is_inexact_array), "
            "lambda params, x: jax.vmap(eqx.combine(params, model))(x))",
        ),
        "torch": ("a PyTorch module", _SAME_LAYERS),
        "keras": ("a Keras model", _SAME_LAYERS),
    }
)
_KEYS = frozenset({"key", "rng", "rngs", "rng_key", "prng_key"})


def as_model(model: Any, example: jax.Array) -> Model:
    """Returns a model of any supported kind as pure functions.

    Args:
      model: see `classifier`.
      example: one input `[1, ...]`.

    Raises:
      ValueError: the model is of another kind, takes other arguments, or keeps state.
    """
    if isinstance(model, nn.Module):
        return from_linen(model, example)
    _refuse_foreign(model)
    if isinstance(model, nnx.Module):
        raise ValueError(
            "got an nnx module that already has its parameters; pass a function that builds it, "
            "such as `lambda rngs: MyModule(rngs=rngs)`, so that each seed starts anew"
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ValueError(f"got the class {model.__name__}; pass a module, such as {model.__name__}(...)")
    pair = (getattr(model, "init", None), getattr(model, "apply", None))
    if isinstance(model, tuple) and len(model) == 2:
        pair = model
    if all(map(callable, pair)):
        return _from_pair(*pair)
    if callable(model):
        return from_nnx(model, example)
    raise ValueError(
        f"got a model of type {type(model).__name__}; wanted a flax linen module, a function from "
        "nnx.Rngs to an nnx module, or a pair of functions (init, apply)"
    )


def _from_pair(init: Callable, apply: Callable) -> Model:
    taken = arguments(init)
    if taken is not None and not _accepts(taken, 1):
        raise ValueError(
            f"the model's init takes ({', '.join(taken.parameters)}); wanted init(key) -> params: fix "
            "its other arguments, as in lambda key: init(key, ...)"
        )
    taken = arguments(apply)
    if taken is not None and (not _accepts(taken, 2) or _KEYS.intersection([*taken.parameters][1:2])):
        raise ValueError(
            f"the model's apply takes ({', '.join(taken.parameters)}); wanted apply(params, x) -> "
            "outputs, such as lambda params, x: apply(params, None, x) where it takes a key second"
        )
    return Model(init, lambda params, x, key: apply(params, x))


def arguments(function: Callable) -> inspect.Signature | None:
    """Returns a function's arguments; None if Python does not know them."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _accepts(taken: inspect.Signature, count: int) -> bool:
    try:
        taken.bind(*range(count))
    except TypeError:
        return False
    return True


def _refuse_foreign(model: Any) -> None:
    """Refuses models of other libraries, recognised by the modules of their types."""
    for base in (model if isinstance(model, type) else type(model)).__mro__:
        package = base.__module__.split(".")[0]
        if package in _FOREIGN:
            what, cure = _FOREIGN[package]
            raise ValueError(f"the model is {what}: {cure}")
