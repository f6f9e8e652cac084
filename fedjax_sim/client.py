"""ONE client: its gradients and its local training, written without any client axis."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import trees
from fedjax_sim.base import Client, Params, Task
from fedjax_sim.permutation import permutation

OptimizerFactory = Callable[[Any], optax.GradientTransformation]

SHUFFLES = ("each_epoch", "once", "never")

# How many examples of an infinite batch are worked on at a time: large enough for a matrix product
# to run near its peak, small enough that a small client wastes little.
MICRO_BATCH = 50


class LossSums(NamedTuple):
    """Sums over examples: of their losses, of their terms, and of themselves; `[]` each."""

    total: jax.Array
    count: jax.Array
    examples: jax.Array


class LocalWork(NamedTuple):
    """What a client does in a round, and what it costs.

    Attributes:
      run: a function of one client.
      slots: `slots(sizes) -> int32`, like `sizes`: the example slots that clients of these sizes
        execute, padding of the last batch included. Increases with the size.
    """

    run: Callable
    slots: Callable[[jax.Array], jax.Array]


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


def full_gradient(task: Task) -> LocalWork:
    """The gradient of a client's mean loss over all its examples, as a sum over micro-batches.

    `run(params, client, key) -> (gradient, LossSums)`; the gradient of an empty client is zero.
    """

    def run(params: Params, client: Client, key: jax.Array):
        def add_micro_batch(i, sums):
            gradient, losses = sums
            micro_key = jax.random.fold_in(key, i)
            more, new = sum_gradient(task, params, client, _in_order, i, MICRO_BATCH, micro_key)
            return trees.add(gradient, more), trees.add(losses, new)

        start = (trees.zeros_like(params), no_losses())
        gradient, losses = jax.lax.fori_loop(
            0, _ceil_div(client.size, MICRO_BATCH), add_micro_batch, start
        )
        return trees.scale(gradient, 1 / jnp.maximum(losses.count, 1)), losses

    return LocalWork(run, lambda sizes: MICRO_BATCH * _ceil_div(sizes, MICRO_BATCH))


def local_training(
    task: Task,
    optimizer: Any,
    *,
    local_epochs: int,
    batch_size: float,
    shuffle: str = "each_epoch",
) -> LocalWork:
    """ClientUpdate: `E` epochs of mini-batch descent over the client's own examples.

    `run(params, client, key, rate) -> (params, LossSums)`. The last batch of an epoch may be short;
    its loss is the mean over the examples it has. The optimizer starts afresh.

    Args:
      task: what is learned.
      optimizer: see `as_factory`.
      local_epochs: `E`, at least 1.
      batch_size: `B`, at least 1, or `math.inf` for all of a client's examples at once.
      shuffle: "each_epoch", "once" (as in the pseudo-code of McMahan et al., 2017) or "never".

    Raises:
      ValueError: `E`, `B` or `shuffle` is none of these.
    """
    if isinstance(local_epochs, bool) or local_epochs != int(local_epochs) or local_epochs < 1:
        raise ValueError(f"local_epochs is {local_epochs}; wanted a whole number, at least 1")
    if batch_size != math.inf and (batch_size != int(batch_size) or batch_size < 1):
        raise ValueError(
            f"batch_size is {batch_size}; wanted a whole number, at least 1, or infinity"
        )
    if shuffle not in SHUFFLES:
        raise ValueError(f"shuffle is {shuffle!r}; wanted one of {', '.join(SHUFFLES)}")
    make_optimizer = as_factory(optimizer)
    width = MICRO_BATCH if batch_size == math.inf else int(batch_size)
    whole = full_gradient(task)

    def epoch_of_one_step(e, carry, client, key, make):
        params, state, losses = carry
        gradient, new = whole.run(params, client, jax.random.fold_in(key, e))
        updates, state = make.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, trees.add(losses, new)

    def epoch_of_batches(e, carry, client, key, make):
        epoch_key = jax.random.fold_in(key, e)
        order = _visiting_order(shuffle, key, epoch_key, client.size)

        def step(i, carry):
            params, state, losses = carry
            step_key = jax.random.fold_in(epoch_key, i)
            gradient, new = sum_gradient(task, params, client, order, i, width, step_key)
            gradient = trees.scale(gradient, 1 / jnp.maximum(new.count, 1))
            updates, state = make.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, trees.add(losses, new)

        return jax.lax.fori_loop(0, _ceil_div(client.size, width), step, carry)

    epoch = epoch_of_one_step if batch_size == math.inf else epoch_of_batches

    def run(params: Params, client: Client, key: jax.Array, rate: jax.Array):
        make = make_optimizer(rate)
        carry = (params, make.init(params), no_losses())
        params, _, losses = jax.lax.fori_loop(
            0, local_epochs, lambda e, carry: epoch(e, carry, client, key, make), carry
        )
        return params, losses

    return LocalWork(run, lambda sizes: local_epochs * width * _ceil_div(sizes, width))


def sum_gradient(
    task: Task,
    params: Params,
    client: Client,
    order: Callable[[jax.Array], jax.Array],
    i: jax.Array,
    width: int,
    key: jax.Array,
) -> tuple[Params, LossSums]:
    """The gradient of the summed loss of a client's batch `i`.

    Args:
      task: what is learned.
      params: where.
      client: whose rows.
      order: positions in the order of visits -> positions among the client's rows.
      i: `[]` int32, the number of the batch.
      width: the number of examples in a batch; the last may be short.
      key: for the task's randomness.

    Returns:
      The gradient, like `params`, and the batch's sums.
    """
    positions = i * width + jnp.arange(width, dtype=jnp.int32)
    real = positions < client.size
    # Slots beyond the client's end repeat one of its own rows: always a number the model can bear.
    batch = client.take(order(jnp.clip(positions, 0, jnp.maximum(client.size - 1, 0))))

    def summed(params):
        total, count = task.loss(params, batch, key)
        losses = LossSums(
            jnp.sum(jnp.where(real, total, 0)),
            jnp.sum(jnp.where(real, count, 0)),
            jnp.sum(real, dtype=jnp.int32),
        )
        return losses.total, losses

    return jax.grad(summed, has_aux=True)(params)


def no_losses() -> LossSums:
    """Where sums begin."""
    return LossSums(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))


def _visiting_order(shuffle, key, epoch_key, size):
    if shuffle == "never":
        return _in_order
    return permutation(key if shuffle == "once" else epoch_key, jnp.maximum(size, 1))


def _in_order(positions: jax.Array) -> jax.Array:
    return positions


def _ceil_div(a: jax.Array, b: int) -> jax.Array:
    return (a + (b - 1)) // b
