"""Networks: a model of any kind with the decoding of its inputs, as functions of batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.task_checks import described
from fedjax_sim.core.types import Batch, Params, Ratio, Task, Variables
from fedjax_sim.models.kinds import as_model
from fedjax_sim.models.modules import Model
from fedjax_sim.models.precision import follow

Decode = Callable[[jax.Array], jax.Array]


class Network(NamedTuple):
    """A model of any kind, as functions of batches.

    Attributes:
      init: `init(key) -> params`.
      outputs: `outputs(params, batch, key) -> [B, *shape]` float32, with dropout unless `key` is None.
      train: `train(params, batch, real [B] bool, key) -> (outputs, state)`, the new state of a model
        that keeps any; None for others. See `Task.loss_and_state`.
      shape: shape of the outputs for one example.
    """

    init: Callable[[jax.Array], Params]
    outputs: Callable[[Params, Batch, jax.Array | None], jax.Array]
    train: Callable[[Variables, Batch, jax.Array, jax.Array], tuple[jax.Array, Any]] | None
    shape: tuple[int, ...]

    def task(
        self,
        loss: Callable[[jax.Array, Batch], Ratio],
        metrics: Callable[[jax.Array, Batch], dict[str, Ratio]],
        predict: Callable[[jax.Array], jax.Array],
        *,
        num_classes: int | None = None,
    ) -> Task:
        """Returns the task of this network with these functions of its outputs `[B, *shape]`.

        Args:
          loss: `loss(outputs, batch) -> (total [B], count [B])`.
          metrics: `metrics(outputs, batch) -> {name: (total, count)}`, beside the loss itself.
          predict: `predict(outputs) -> [B, ...]`.
          num_classes: see `Task`.
        """

        def loss_and_state(params: Variables, batch: Batch, real: jax.Array, key: jax.Array):
            outputs, state = self.train(params, batch, real, key)
            return loss(outputs, batch), state

        def all_metrics(params: Params, batch: Batch) -> dict[str, Ratio]:
            outputs = self.outputs(params, batch, None)
            return {"loss": loss(outputs, batch)} | metrics(outputs, batch)

        return Task(
            self.init,
            lambda params, batch, key: loss(self.outputs(params, batch, key), batch),
            all_metrics,
            num_classes,
            lambda params, batch: predict(self.outputs(params, batch, None)),
            None if self.train is None else loss_and_state,
        )


def network(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    integer_inputs: bool,
    decode: Decode | None,
    wanted: str,
    fits: Callable[[tuple[int, ...]], bool],
) -> Network:
    """Makes a network that reads `batch["x"]` `[B, *input_shape]`.

    Args:
      model: see `classifier`; likewise `input_shape`, `integer_inputs` and `decode`.
      wanted: outputs that the task needs, for the error.
      fits: function from the shape of one example's outputs to whether it is such.

    Raises:
      ValueError: see `classifier`.
    """
    decode = decode or (as_stored if integer_inputs else scale_pixels)
    stored = jax.ShapeDtypeStruct((1, *input_shape), jnp.int32 if integer_inputs else jnp.float32)
    decoded = jax.eval_shape(decode, stored)
    example = jnp.zeros(decoded.shape, decoded.dtype)
    (init, apply, train), outputs = _built(model, example)
    shape = tuple(getattr(outputs, "shape", ()))
    if shape[:1] != (1,) or not fits(shape[1:]):
        got = shape or described(outputs)
        raise ValueError(f"the model maps inputs {example.shape} to {got}; wanted {wanted}")

    def of_batch(params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        return apply(params, follow(decode(batch["x"]), params), key).astype(jnp.float32)

    def in_training(params: Variables, batch: Batch, real: jax.Array, key: jax.Array):
        outputs, state = train(params, follow(decode(batch["x"]), params), real, key)
        return outputs.astype(jnp.float32), state

    return Network(init, of_batch, None if train is None else in_training, shape[1:])


def _built(model: Any, example: jax.Array) -> tuple[Model, Any]:
    """Returns the model, and the shapes of its outputs for one example."""

    def built(example: jax.Array) -> tuple[Model, Any]:
        functions = as_model(model, example)
        params = jax.eval_shape(functions.init, jax.random.key(0))
        return functions, jax.eval_shape(lambda p: functions.apply(p, example, None), params)

    try:
        return built(example)
    except Exception as error:
        if jnp.issubdtype(example.dtype, jnp.integer):
            raise
        try:
            built(example.astype(jnp.int32))
        except Exception:
            raise error from None
        raise ValueError(
            "the model fails on floats and accepts integers, such as an embedding's tokens; write "
            "integer_inputs=True, so that stored integers reach it as they are, and give `decode`, if "
            "there is one, an integer result"
        ) from error


def scale_pixels(x: jax.Array) -> jax.Array:
    """Scales bytes to floats in [0, 1] and makes booleans floats; floats pass unchanged.

    Raises:
      ValueError: `x` holds other integers, which may be no pixels.
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype == jnp.bool_:
        return x.astype(jnp.float32)
    if x.dtype != jnp.uint8:
        raise ValueError(
            f"column 'x' holds {x.dtype}, and only uint8 is read as pixels, divided by 255; wanted "
            ".astype(np.uint8) for pixels, .astype(np.float32) for other numbers, or "
            "integer_inputs=True for tokens, which the model reads as they are"
        )
    return x.astype(jnp.float32) * jnp.float32(1 / 255)


def as_stored(x: jax.Array) -> jax.Array:
    """Returns integers unchanged.

    Raises:
      ValueError: `x` holds floats or booleans.
    """
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"column 'x' holds {x.dtype}, and the model reads integers; wanted tokens as integers: call "
            ".astype(np.int32), or leave out integer_inputs"
        )
    return x
