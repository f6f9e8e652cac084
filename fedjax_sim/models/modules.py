"""Flax modules, linen and nnx, as pure functions: dropout in training only, state where there is any."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_sim.core import trees
from fedjax_sim.core.types import Params, Variables
from fedjax_sim.models.layer_calls import (
    FLAGS,
    OFF_IN_TRAINING,
    check_linen_call,
    complaint,
    mask_linen_call,
    mask_nnx_calls,
    watch,
)


class Model(NamedTuple):
    """A model as the engine needs it: `init(key) -> params`, `apply(params, x, key) -> outputs`.

    `apply` gets a key in training and None in evaluation, where dropout is off and BatchNorm uses its
    running statistics.

    A model that keeps state has parameters of the type `Variables`, and
    `train(params, x, real [B] bool, key) -> (outputs, state)`, where the state does not depend on what
    BatchNorm gets for rows that are not real. It is None for other models.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array, jax.Array | None], jax.Array]
    train: Callable[[Variables, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]] | None = None


def from_linen(module: nn.Module, example: jax.Array) -> Model:
    """Makes a model from a linen module.

    Args:
      module: module that maps inputs `[B, ...]` to outputs `[B, ...]`.
      example: one input `[1, ...]`.

    Raises:
      ValueError: the module keeps integers as state, takes an unknown argument, has dropout that stays
        off in training or on in evaluation, or BatchNorm that does the opposite.
    """
    training = _flags(module, training=True)
    evaluation = _flags(module, training=False)

    def variables(key):
        return module.init(key, example, **evaluation)

    shapes = jax.eval_shape(variables, jax.random.key(0))
    kept = sorted(set(shapes) - {"params"})
    _check_state({name: shapes[name] for name in kept})

    def init(key):
        made = variables(key)
        params = made.get("params", {})  # a module may have none
        return Variables(params, {name: made[name] for name in kept}) if kept else params

    abstract = jax.eval_shape(init, jax.random.key(0))

    def collections(params):
        return {"params": params.params, **params.state} if kept else {"params": params}

    def apply(params, x, key):
        if key is None:
            return module.apply(collections(params), x, **evaluation)
        if kept:
            return train(params, x, jnp.ones(len(x), bool), key)[0]
        return module.apply(collections(params), x, rngs={"dropout": key}, **training)

    def train(params, x, real, key):
        with nn.intercept_methods(functools.partial(mask_linen_call, real)):
            outputs, state = module.apply(
                collections(params), x, rngs={"dropout": key}, mutable=kept, **training
            )
        return outputs, dict(state)

    for key in (jax.random.key(0), None):
        with nn.intercept_methods(functools.partial(check_linen_call, key is not None)):
            jax.eval_shape(lambda params, key=key: apply(params, example, key), abstract)
    return Model(init, apply, train if kept else None)


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module], example: jax.Array) -> Model:
    """Makes a model from a function that builds an nnx module.

    Args:
      build: function of random streams that returns a module, which maps inputs `[B, ...]` to
        outputs `[B, ...]`.
      example: one input `[1, ...]`.

    Raises:
      ValueError: `build` does not return an nnx module; or the module keeps integers as state, takes an
        unknown argument, has dropout that stays off in training or on in evaluation, or BatchNorm that
        does the opposite.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise ValueError(
            f"the function given as a model returned {type(abstract).__name__}; wanted an nnx module"
        )
    flags = {training: _flags(abstract, training=training) for training in (True, False)}
    graph, _, streams, kept = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    _check_state({type(leaf).__name__: leaf.get_value() for _, leaf in nnx.to_flat_state(kept)})
    keeps = bool(jax.tree.leaves(kept))

    def init(key):
        _, params, _, state = nnx.split(build(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return Variables(params, state) if keeps else params

    abstract_params = jax.eval_shape(init, jax.random.key(0))

    def module_of(params, key):
        # Random streams are made anew from each step's key, so they are not client state.
        weights, state = params if keeps else (params, kept)
        module = nnx.merge(graph, weights, _fresh_streams(streams, key), state)
        if key is None:
            module.eval()
        else:
            module.train()
        return module

    def apply(params, x, key):
        if key is not None and keeps:
            return train(params, x, jnp.ones(len(x), bool), key)[0]
        return module_of(params, key)(x, **flags[key is not None])

    def train(params, x, real, key):
        module = module_of(params, key)
        mask_nnx_calls(module, real)
        outputs = module(x, **flags[True])
        return outputs, nnx.split(module, nnx.Param, nnx.RngState, ...)[3]

    def check(params, key):
        training = key is not None
        module = module_of(params, key)
        never_called = watch(module, training)
        logits = module(example, **flags[training])
        if training and never_called:
            name, rate = never_called.popitem()
            raise ValueError(complaint(name, rate, "is never called, so it stays off in training"))
        return logits

    for key in (jax.random.key(0), None):
        jax.eval_shape(functools.partial(check, key=key), abstract_params)
    return Model(init, apply, train if keeps else None)


def _flags(module: Any, *, training: bool) -> dict[str, bool]:
    """Returns the flags that `module.__call__` takes besides its input, for training or evaluation."""
    flags = {}
    for parameter in list(inspect.signature(module.__call__).parameters.values())[1:]:
        name, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in FLAGS:
            flags[name] = training != (name in OFF_IN_TRAINING)
        elif default is parameter.empty or isinstance(default, bool):
            raise ValueError(
                f"{type(module).__name__}.__call__ takes {name!r}, which nothing sets; if it switches "
                f"between training and evaluation, name it one of {', '.join(FLAGS)}, otherwise pass a "
                f"module of your own that calls this one with {name!r} set"
            )
    return flags


def _fresh_streams(streams: nnx.State, key: jax.Array | None) -> nnx.State:
    leaves, structure = jax.tree.flatten(streams)
    key = jax.random.key(0) if key is None else key
    fresh = [
        jax.random.fold_in(key, i) if trees.is_key(leaf) else jnp.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


def _check_state(kinds: Mapping[str, Any]) -> None:
    """Refuses state, name -> shapes, that cannot be averaged."""
    for name, shapes in kinds.items():
        whole = [leaf.dtype for leaf in jax.tree.leaves(shapes) if not _is_float(leaf)]
        if whole:
            raise ValueError(
                f"the model keeps state beside its parameters, {name}, that holds {whole[0]}; wanted "
                "floats, since the server averages the clients' states"
            )


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
