"""Turns any model that maps inputs to logits into a `Task`."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fedjax_sim.base import Batch, Params, Task
from fedjax_sim.models.precision import follow


class Model(NamedTuple):
    """A model as the engine needs it: `init(key) -> params`, `apply(params, x, key) -> logits`.

    `apply` gets a key in training and None in evaluation, where dropout is off.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array, jax.Array | None], jax.Array]


def classifier(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    decode: Callable[[jax.Array], jax.Array] | None = None,
) -> Task:
    """The task of predicting `batch["y"]` `[B]` from `batch["x"]` `[B, *input_shape]`.

    The model gets its inputs in the dtype of its parameters; the loss is float32.

    Args:
      model: one of
        a flax linen module;
        a function that takes `nnx.Rngs` and returns a flax nnx module;
        a pair `(init, apply)` with `init(key) -> params` and `apply(params, x) -> logits [B, classes]`.
      input_shape: the shape of one example, as stored.
      decode: stored inputs `[B, *input_shape]` -> the model's floats, inside the compiled step; it may
        change the shape. The default scales integers to [0, 1] by 255 and leaves floats alone.

    Returns:
      A task with cross-entropy loss and the metrics "accuracy" and "loss".

    Raises:
      ValueError: the model is of another kind, keeps state beside its parameters (such as running
        batch statistics, which have no meaning as an average over clients), or does not return
        one vector of logits for each example.
    """
    decode = decode or scale_pixels
    decoded = jax.eval_shape(decode, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    example = jnp.zeros(decoded.shape, jnp.float32)
    init, apply = _as_model(model, example)

    params = jax.eval_shape(init, jax.random.key(0))
    logits = jax.eval_shape(lambda p: apply(p, example, None), params)
    if getattr(logits, "ndim", None) != 2 or logits.shape[0] != 1:
        raise ValueError(
            f"the model maps inputs {example.shape} to {getattr(logits, 'shape', type(logits))}; "
            "wanted logits [B, classes]"
        )

    def scores(params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        return apply(params, follow(decode(batch["x"]), params), key).astype(jnp.float32)

    def loss(params: Params, batch: Batch, key: jax.Array):
        logits = scores(params, batch, key)
        total = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return total, jnp.ones_like(total)

    def metrics(params: Params, batch: Batch):
        logits = scores(params, batch, None)
        total = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        correct = (jnp.argmax(logits, axis=-1) == batch["y"]).astype(jnp.float32)
        ones = jnp.ones_like(total)
        return {"accuracy": (correct, ones), "loss": (total, ones)}

    return Task(init, loss, metrics)


def scale_pixels(x: jax.Array) -> jax.Array:
    """Bytes to floats in [0, 1]; floats pass unchanged."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(jnp.float32) * jnp.float32(1 / 255)


def _as_model(model: Any, example: jax.Array) -> Model:
    if isinstance(model, nn.Module):
        return _from_linen(model, example)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init, apply = model
        return Model(init, lambda params, x, key: apply(params, x))
    if isinstance(model, nnx.Module):
        raise ValueError(
            "got an nnx module that already has its parameters; pass a function that builds it, "
            "such as `lambda rngs: MyModule(rngs=rngs)`, so that each seed has its own start"
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ValueError(f"got the class {model.__name__}; pass a module, such as {model.__name__}(...)")
    if callable(model):
        return _from_nnx(model)
    raise ValueError(
        f"got a model of type {type(model).__name__}; wanted a flax linen module, a function from "
        "nnx.Rngs to an nnx module, or a pair of functions (init, apply)"
    )


def _from_linen(module: nn.Module, example: jax.Array) -> Model:
    # By convention linen modules with dropout take one of these flags in __call__.
    accepted = inspect.signature(module.__call__).parameters
    training = {"train": True, "training": True, "deterministic": False}
    training = {name: value for name, value in training.items() if name in accepted}
    evaluation = {name: not value for name, value in training.items()}

    def variables(key):
        return module.init(key, example, **evaluation)

    _reject_state(set(jax.eval_shape(variables, jax.random.key(0))) - {"params"})

    def apply(params, x, key):
        if key is None:
            return module.apply({"params": params}, x, **evaluation)
        return module.apply({"params": params}, x, rngs={"dropout": key}, **training)

    return Model(lambda key: variables(key)["params"], apply)


def _from_nnx(build: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise ValueError(
            f"the function given as a model returned {type(abstract).__name__}; wanted an nnx module"
        )
    graph, _, streams, other = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    _reject_state({type(variable).__name__ for _, variable in nnx.to_flat_state(other)})

    def init(key):
        return nnx.split(build(nnx.Rngs(key)), nnx.Param, ...)[1]

    def apply(params, x, key):
        # Random streams are made anew from each step's key, so that they are no state of the client.
        module = nnx.merge(graph, params, _fresh_streams(streams, key))
        if key is None:
            module.eval()
        else:
            module.train()
        return module(x)

    return Model(init, apply)


def _fresh_streams(streams: nnx.State, key: jax.Array | None) -> nnx.State:
    leaves, structure = jax.tree.flatten(streams)
    key = jax.random.key(0) if key is None else key
    fresh = [
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
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
