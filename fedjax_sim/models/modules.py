"""Flax modules, linen and nnx, as pure functions with dropout in training only."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_sim.core import trees
from fedjax_sim.core.types import Params

_FLAGS = ("train", "training", "is_training", "is_train", "deterministic")


class Model(NamedTuple):
    """A model as the engine needs it: `init(key) -> params`, `apply(params, x, key) -> outputs`.

    `apply` gets a key in training and None in evaluation, where dropout is off.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array, jax.Array | None], jax.Array]


def from_linen(module: nn.Module, example: jax.Array) -> Model:
    """Makes a model from a linen module.

    Args:
      module: module that maps inputs `[B, ...]` to outputs `[B, ...]`.
      example: one input `[1, ...]`.

    Raises:
      ValueError: the module keeps state, takes an unknown argument, or has dropout that stays off in
        training or on in evaluation.
    """
    training = _flags(module, training=True)
    evaluation = _flags(module, training=False)

    def variables(key):
        return module.init(key, example, **evaluation)

    def init(key):
        return variables(key).get("params", {})  # a module may have none

    _reject_state(set(jax.eval_shape(variables, jax.random.key(0))) - {"params"})
    abstract = jax.eval_shape(init, jax.random.key(0))

    def apply(params, x, key):
        if key is None:
            return module.apply({"params": params}, x, **evaluation)
        return module.apply({"params": params}, x, rngs={"dropout": key}, **training)

    for key in (jax.random.key(0), None):
        with nn.intercept_methods(functools.partial(_check_linen_call, key is not None)):
            jax.eval_shape(lambda params, key=key: apply(params, example, key), abstract)
    return Model(init, apply)


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module], example: jax.Array) -> Model:
    """Makes a model from a function that builds an nnx module.

    Args:
      build: function of random streams that returns a module, which maps inputs `[B, ...]` to
        outputs `[B, ...]`.
      example: one input `[1, ...]`.

    Raises:
      ValueError: `build` does not return an nnx module; or the module keeps state, takes an unknown
        argument, or has dropout that stays off in training or on in evaluation.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise ValueError(
            f"the function given as a model returned {type(abstract).__name__}; wanted an nnx module"
        )
    flags = {training: _flags(abstract, training=training) for training in (True, False)}
    graph, abstract_params, streams, other = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    _reject_state({type(variable).__name__ for _, variable in nnx.to_flat_state(other)})

    def init(key):
        return nnx.split(build(nnx.Rngs(key)), nnx.Param, ...)[1]

    def module_of(params, key):
        # Random streams are made anew from each step's key, so they are not client state.
        module = nnx.merge(graph, params, _fresh_streams(streams, key))
        if key is None:
            module.eval()
        else:
            module.train()
        return module

    def apply(params, x, key):
        return module_of(params, key)(x, **flags[key is not None])

    def check(params, key):
        training = key is not None
        module = module_of(params, key)
        never_called = _watch(module, training)
        logits = module(example, **flags[training])
        if training and never_called:
            name, rate = never_called.popitem()
            raise ValueError(_complaint(name, rate, "is never called, so it stays off in training"))
        return logits

    for key in (jax.random.key(0), None):
        jax.eval_shape(functools.partial(check, key=key), abstract_params)
    return Model(init, apply)


def _flags(module: Any, *, training: bool) -> dict[str, bool]:
    """Returns the flags that `module.__call__` takes besides its input, for training or evaluation."""
    flags = {}
    for parameter in list(inspect.signature(module.__call__).parameters.values())[1:]:
        name, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in _FLAGS:
            flags[name] = training != (name == "deterministic")
        elif default is parameter.empty or isinstance(default, bool):
            raise ValueError(
                f"{type(module).__name__}.__call__ takes {name!r}, which nothing sets; if it switches "
                f"between training and evaluation, name it one of {', '.join(_FLAGS)}, otherwise pass a "
                f"module of your own that calls this one with {name!r} set"
            )
    return flags


def _check_linen_call(training: bool, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    layer = context.module
    if context.method_name == "__call__" and _rate(layer) > 0:
        _check_call(layer, "/".join(layer.path), context.orig_method, args, kwargs, training)
    return call(*args, **kwargs)


def _watch(module: nnx.Module, training: bool) -> dict[str, float]:
    """Checks each later call of the module's dropout layers.

    Returns:
      The rate of each layer by name; calling a layer removes it.
    """
    uncalled = {}
    for path, layer in nnx.iter_modules(module):
        if _rate(layer) > 0:
            name = "/".join(map(str, path))
            uncalled[name] = _rate(layer)
            _watch_layer(layer, name, training, uncalled)
    return uncalled


def _watch_layer(layer: nnx.Module, name: str, training: bool, uncalled: dict[str, float]) -> None:
    original = type(layer)

    @functools.wraps(original.__call__)
    def call(self, *args, **kwargs):
        _check_call(self, name, functools.partial(original.__call__, self), args, kwargs, training)
        uncalled.pop(name, None)
        return original.__call__(self, *args, **kwargs)

    # nnx has no interceptors. Calls look up the class, not an attribute of the object, and the class
    # survives the copies that nnx.jit or nnx.scan make.
    object.__setattr__(layer, "__class__", type(original.__name__, (original,), {"__call__": call}))


def _check_call(
    layer: Any, name: str, method: Callable, args: tuple, kwargs: dict, training: bool
) -> None:
    deterministic = inspect.signature(method).bind(*args, **kwargs).arguments.get("deterministic")
    if deterministic is None:
        deterministic = layer.deterministic
    # flax itself refuses a layer without a flag.
    if deterministic is not None and bool(deterministic) == training:
        fault = "stays off in training" if training else "stays on in evaluation"
        raise ValueError(_complaint(name, _rate(layer), fault))


def _complaint(name: str, rate: float, fault: str) -> str:
    return (
        f"the dropout of {name or 'the model'} with rate {rate} {fault}; have the model's __call__ take "
        f"one of {', '.join(_FLAGS)}, which are set in training and evaluation, and pass it on to each "
        "dropout, such as `deterministic=not train`"
    )


def _rate(layer: Any) -> float:
    if isinstance(layer, nn.Dropout | nnx.Dropout):
        return layer.rate
    if isinstance(layer, nn.MultiHeadDotProductAttention | nnx.MultiHeadAttention):
        return layer.dropout_rate
    return 0.0


def _fresh_streams(streams: nnx.State, key: jax.Array | None) -> nnx.State:
    leaves, structure = jax.tree.flatten(streams)
    key = jax.random.key(0) if key is None else key
    fresh = [
        jax.random.fold_in(key, i) if trees.is_key(leaf) else jnp.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


def _reject_state(kinds: set[str]) -> None:
    if kinds:
        raise ValueError(
            f"the model keeps state beside its parameters: {', '.join(sorted(kinds))}; averaging it "
            "over clients has no meaning. Use a layer without state, such as GroupNorm or LayerNorm "
            "in place of BatchNorm"
        )
