"""Classification tasks from models that map inputs to logits."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fedjax_sim.core.types import Batch, Params, Task
from fedjax_sim.models.modules import Model, from_linen, from_nnx
from fedjax_sim.models.precision import follow


def classifier(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    decode: Callable[[jax.Array], jax.Array] | None = None,
) -> Task:
    """Makes the task of predicting `batch["y"]` `[B]` from `batch["x"]` `[B, *input_shape]`.

    The model gets its inputs in the dtype of its parameters; the loss is float32.

    A flax module whose `__call__` takes `train`, `training`, `is_training`, `is_train` (True in
    training) or `deterministic` (False in training) gets that flag; nnx modules are also switched by
    `train()` and `eval()`. flax's own dropout must then be on in training and off in evaluation.

    Args:
      model: a flax linen module; or a function that takes `nnx.Rngs` and returns a flax nnx module; or a
        pair `(init, apply)` with `init(key) -> params` and `apply(params, x) -> logits [B, classes]`,
        which gets no key and so cannot use dropout.
      input_shape: shape of one example, as stored.
      decode: function from stored inputs `[B, *input_shape]` to the model's floats, which runs inside
        the compiled step and may change the shape. The default divides integers by 255, to [0, 1], and
        leaves floats alone.

    Returns:
      A task with cross-entropy loss and the metrics "accuracy" and "loss".

    Raises:
      ValueError: the model is of another kind, keeps state beside its parameters (such as running
        batch statistics, which have no meaning as an average over clients), or does not return
        one vector of logits per example; or a flax module takes another argument that is required or
        a bool, or has dropout that stays off in training or on in evaluation.
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

    return Task(init, loss, metrics, logits.shape[-1])


def scale_pixels(x: jax.Array) -> jax.Array:
    """Scales bytes to floats in [0, 1]; floats pass unchanged."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(jnp.float32) * jnp.float32(1 / 255)


def _as_model(model: Any, example: jax.Array) -> Model:
    if isinstance(model, nn.Module):
        return from_linen(model, example)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init, apply = model
        return Model(init, lambda params, x, key: apply(params, x))
    if isinstance(model, nnx.Module):
        raise ValueError(
            "got an nnx module that already has its parameters; pass a function that builds it, "
            "such as `lambda rngs: MyModule(rngs=rngs)`, so that each seed starts anew"
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ValueError(f"got the class {model.__name__}; pass a module, such as {model.__name__}(...)")
    if callable(model):
        return from_nnx(model, example)
    raise ValueError(
        f"got a model of type {type(model).__name__}; wanted a flax linen module, a function from "
        "nnx.Rngs to an nnx module, or a pair of functions (init, apply)"
    )
