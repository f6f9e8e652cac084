"""Local training of ONE client, written without a client axis."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.permutation import draw, permuted
from fedjax_sim.core.task_checks import check_task
from fedjax_sim.core.types import Batch, Client, Params, Task
from fedjax_sim.engine.full_data import full_gradient
from fedjax_sim.engine.gradients import (
    PIECES,
    LossSums,
    batch_slots,
    ceil_div,
    mean_gradient,
    no_losses,
)
from fedjax_sim.engine.optimizers import OptimizerFactory, as_factory, descend, refuse_schedule
from fedjax_sim.engine.work import ClientWork, SteppedWork

SHUFFLES = ("each_epoch", "once", "never")

_EPOCHS = 2  # folded into a client's key; 0 and 1 are taken by orders and steps


# (params, rate, batch, real, key) -> (gradient, LossSums)
GradientFn = Callable[[Params, Any, Batch, jax.Array, jax.Array], tuple[Params, LossSums]]


def local_training(
    task: Task,
    optimizer: Any,
    *,
    local_epochs: int,
    batch_size: float,
    shuffle: str = "each_epoch",
    epochs: Callable[[jax.Array], jax.Array] | None = None,
    gradient: GradientFn | None = None,
) -> ClientWork:
    """Returns ClientUpdate: `E` epochs of mini-batch descent on the client's own examples.

    `run(params, client, key, rate) -> (params, LossSums)`. The last batch of an epoch may be short;
    its loss is the mean over its real examples. Each run initialises the optimizer from `rate`, which
    may be any pytree that a custom optimizer function takes.

    Args:
      task: the model and its loss.
      optimizer: see `as_factory`.
      local_epochs: `E`, at least 1.
      batch_size: `B`, at least 1, or `math.inf` for all of a client's examples at once.
      shuffle: "each_epoch", "once" (as in the pseudo-code of McMahan et al., 2017) or "never".
      epochs: `epochs(key) -> []` int32, number of epochs, from 1 to `E`, that a client completes, drawn
        for each client and round; by default `E`.
      gradient: `gradient(params, rate, batch, real, key) -> (gradient, LossSums)`, the gradient of a
        batch for the optimizer; by default `mean_gradient`. With infinite `B` it is called for pieces of
        the client's data, and their mean is weighted by their counts of loss terms.

    Raises:
      ValueError: `task` is no task; `E`, `B` or `shuffle` is out of its range; or, when traced, the
        optimizer has a schedule, which would restart in every round.
    """
    check_task(task)
    local_epochs = check_count("local_epochs", local_epochs)
    if shuffle not in SHUFFLES:
        raise ValueError(f"shuffle is {shuffle!r}; wanted one of {', '.join(SHUFFLES)}")
    make_optimizer = as_factory(optimizer)

    def epochs_of(key: jax.Array):
        if epochs is None:
            return local_epochs
        drawn = epochs(jax.random.fold_in(key, _EPOCHS))
        return jnp.clip(drawn, 1, local_epochs).astype(jnp.int32)

    def epochs_of_all(keys: jax.Array):
        if epochs is None:
            return local_epochs
        return jax.lax.map(epochs_of, keys)  # under vmap some kinds of keys draw other numbers

    if batch_size == math.inf:
        return _full_steps(task, make_optimizer, local_epochs, epochs and epochs_of, gradient)
    width = check_count("batch_size", batch_size)

    def shared(client: Client, key: jax.Array):
        """Returns what a client's steps share: orders `[E, ...]`, batches per epoch, and a key."""
        orders = None
        if shuffle != "never":
            keys = jax.random.fold_in(key, 0)[None]
            if shuffle == "each_epoch":
                keys = jax.vmap(jax.random.fold_in, (None, 0))(keys[0], jnp.arange(local_epochs))
            orders = jax.vmap(draw, (0, None))(keys, jnp.maximum(client.size, 1))
        per_epoch = jnp.maximum(ceil_div(client.size, width), 1)
        return orders, per_epoch, jax.random.fold_in(key, 1)

    def direction(rate: Any):
        return None if gradient is None else functools.partial(_swapped, gradient, rate)

    def batches(client: Client, orders: jax.Array | None, per_epoch: jax.Array):
        def batch(i):
            # `//` and `%` would check signs, in extra kernels.
            epoch = jax.lax.div(i, per_epoch)
            chosen, real = batch_slots(i - epoch * per_epoch, width, client.size)
            if orders is None:
                return chosen, real
            # The index clamps: with "once" there is one order, and the prefetch past the end is unused.
            order = jax.lax.dynamic_index_in_dim(orders, epoch, keepdims=False)
            return permuted(order, jnp.maximum(client.size, 1))(chosen), real

        return batch

    def begin(params: Params, client: Client, key: jax.Array, rate: Any):
        # Loop invariants are carried, as not every XLA backend hoists them.
        *which, step_key = shared(client, key)
        first = batches(client, *which)(jnp.zeros((), jnp.int32))
        state = make_optimizer(rate).init(params)
        refuse_schedule(state)
        return (params, state, no_losses(), first), (*which, step_key)

    def step(i: jax.Array, carry: Any, client: Client, rate: Any):
        training, (*which, step_key) = carry
        optimizer, batch = make_optimizer(rate), batches(client, *which)
        one_step = train_step(
            task, optimizer, lambda _, chosen: client.take(chosen), batch, step_key, direction(rate)
        )
        return one_step(i, training), carry[1]

    def end(carry: Any):
        (params, _, losses, _), _ = carry
        return params, losses

    def count(sizes: jax.Array, keys: jax.Array) -> jax.Array:
        return epochs_of_all(keys) * ceil_div(sizes, width)

    def run(params: Params, client: Client, key: jax.Array, rate: Any):
        one_step = functools.partial(step, client=client, rate=rate)
        carry = begin(params, client, key, rate)
        return end(jax.lax.fori_loop(0, epochs_of(key) * ceil_div(client.size, width), one_step, carry))

    def slots(sizes: jax.Array, keys: jax.Array) -> jax.Array:
        return width * count(sizes, keys)[:, None]

    return ClientWork(run, slots, SteppedWork(begin, step, end, count, width))


def _full_steps(
    task: Task,
    make_optimizer: OptimizerFactory,
    local_epochs: int,
    epochs_of: Callable | None,
    gradient: GradientFn | None,
) -> ClientWork:
    """Returns ClientUpdate with infinite `B`: each epoch is one step on all examples."""
    slots_of_epoch = full_gradient(task).slots

    def run(params: Params, client: Client, key: jax.Array, rate: Any):
        optimizer, step_key = make_optimizer(rate), jax.random.fold_in(key, 1)
        of_pieces = None if gradient is None else functools.partial(_summed, gradient, rate)
        whole = full_gradient(task, of_pieces)

        def epoch(e, carry):
            params, state, losses = carry
            step, new = whole.run(params, client, jax.random.fold_in(step_key, e))
            after = *descend(optimizer, step, state, params), trees.add(losses, new)
            if epochs_of is None:
                return after
            return jax.tree.map(functools.partial(jnp.where, e < epochs_of(key)), after, carry)

        state = optimizer.init(params)
        refuse_schedule(state)
        carry = (params, state, no_losses())
        # All clients execute E epochs, since lanes walk the pieces of an epoch together.
        params, _, losses = jax.lax.fori_loop(0, local_epochs, epoch, carry)
        return params, losses

    def slots(sizes: jax.Array, keys: jax.Array) -> jax.Array:
        return local_epochs * slots_of_epoch(sizes, keys)

    return ClientWork(run, slots)


def most_slots(sizes: np.ndarray, *, local_epochs: int, batch_size: float) -> np.ndarray:
    """Returns the most example slots that clients of these sizes execute in `local_training`.

    Args:
      sizes: `[K]`, `n_k`.
      local_epochs: `E`.
      batch_size: `B`, or `math.inf`.

    Returns:
      `[K]` float64, which cannot overflow.
    """
    width = PIECES[-1] if batch_size == math.inf else batch_size
    return float(local_epochs) * width * np.ceil(np.asarray(sizes, np.float64) / width)


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    take: Callable[[jax.Array, jax.Array], Batch],
    batch: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    key: jax.Array,
    gradient: Callable | None = None,
) -> Callable:
    """Returns a function that takes one step of mini-batch descent.

    Args:
      task: the model and its loss.
      optimizer: the optimizer, which takes the gradient of a batch's mean loss.
      take: `take(i, chosen [B]) -> batch`, the rows at these positions as step i sees them.
      batch: `batch(i) -> (chosen [B] int32, real [B] bool)`, the positions of step i.
      key: PRNG key for the task; each step folds in its index.
      gradient: `gradient(params, batch, real, key) -> (gradient, LossSums)`; by default `mean_gradient`.

    Returns:
      `step(i, carry) -> carry`; a carry is (params, optimizer state, sums so far, `batch(i)`).
    """

    find = functools.partial(mean_gradient, task) if gradient is None else gradient

    def step(i, carry):
        params, state, losses, (chosen, real) = carry
        step_key = jax.random.fold_in(key, i)
        direction, new = find(params, take(i, chosen), real, step_key)
        params, state = descend(optimizer, direction, state, params)
        # Rows are chosen one step ahead; otherwise XLA would fuse the choice into the gather and repeat
        # it for every feature of every row.
        return params, state, trees.add(losses, new), batch(i + 1)

    return step


def _swapped(gradient: GradientFn, rate: Any, params, batch, real, key):
    return gradient(params, rate, batch, real, key)


def _summed(gradient: GradientFn, rate: Any, params, batch, real, key):
    """Turns a gradient of mean losses into one of summed losses, so that pieces add up."""
    direction, losses = gradient(params, rate, batch, real, key)
    return trees.scale(direction, losses.count), losses
