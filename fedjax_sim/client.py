"""ONE client: its gradients and its local training, written without any client axis."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import trees
from fedjax_sim.base import Batch, Client, Params, Task
from fedjax_sim.checks import check_count
from fedjax_sim.permutation import permutation

OptimizerFactory = Callable[[Any], optax.GradientTransformation]

SHUFFLES = ("each_epoch", "once", "never")

# An infinite batch is worked on in large pieces, where a matrix product runs near its peak, and what
# is left in small ones, so that a small client wastes little.
LARGE_PIECE, SMALL_PIECE = 200, 50


class LossSums(NamedTuple):
    """Sums over examples: of their losses, of their terms, and of themselves; `[]` each."""

    total: jax.Array
    count: jax.Array
    examples: jax.Array


class LocalWork(NamedTuple):
    """What a client does in a round, and what it costs.

    Attributes:
      run: a function of one client.
      slots: `slots(sizes [K]) -> [K, P]` int32: the example slots, padding included, that clients of
        these sizes execute in each of their P loops. Lanes walk a loop together.
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


def describe(optimizer: Any) -> str:
    """A name for an optimizer by which to recognise it: of a function or a `functools.partial`.

    What is inside an optimizer that is already built cannot be seen; it is called "built".
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return "built"
    if isinstance(optimizer, functools.partial):
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(optimizer.keywords.items()))
        return f"{describe(optimizer.func)}({settings})"
    return getattr(optimizer, "__qualname__", type(optimizer).__name__)


def full_gradient(task: Task) -> LocalWork:
    """The gradient of a client's mean loss over all its examples, as a sum over pieces.

    `run(params, client, key) -> (gradient, LossSums)`; the gradient of an empty client is zero.
    """

    def run(params: Params, client: Client, key: jax.Array):
        def add_piece(i, sums, width, first):
            gradient, losses = sums
            chosen, real = batch_slots(i, width, client.size, first)
            piece_key = jax.random.fold_in(key, first + i * width)
            more, new = sum_gradient(task, params, client.take(chosen), real, piece_key)
            return trees.add(gradient, more), trees.add(losses, new)

        def add_pieces(count, sums, width, first):
            add = functools.partial(add_piece, width=width, first=first)
            return jax.lax.fori_loop(0, count, add, sums)

        large = client.size // LARGE_PIECE
        done = large * LARGE_PIECE
        sums = (trees.zeros_like(params), no_losses())
        sums = add_pieces(large, sums, LARGE_PIECE, jnp.zeros_like(done))
        sums = add_pieces(_ceil_div(client.size - done, SMALL_PIECE), sums, SMALL_PIECE, done)
        gradient, losses = sums
        return trees.scale(gradient, 1 / jnp.maximum(losses.count, 1)), losses

    def slots(sizes):
        large = LARGE_PIECE * (sizes // LARGE_PIECE)
        return jnp.stack([large, SMALL_PIECE * _ceil_div(sizes - large, SMALL_PIECE)], axis=-1)

    return LocalWork(run, slots)


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
    its loss is the mean over the examples it has. The optimizer starts afresh from `rate`, which may
    be whatever an optimizer function of your own takes.

    Args:
      task: what is learned.
      optimizer: see `as_factory`.
      local_epochs: `E`, at least 1.
      batch_size: `B`, at least 1, or `math.inf` for all of a client's examples at once.
      shuffle: "each_epoch", "once" (as in the pseudo-code of McMahan et al., 2017) or "never".

    Raises:
      ValueError: `E`, `B` or `shuffle` is none of these.
    """
    local_epochs = check_count("local_epochs", local_epochs)
    infinite = batch_size == math.inf
    width = 0 if infinite else check_count("batch_size", batch_size)
    if shuffle not in SHUFFLES:
        raise ValueError(f"shuffle is {shuffle!r}; wanted one of {', '.join(SHUFFLES)}")
    make_optimizer = as_factory(optimizer)
    whole = full_gradient(task)

    def epoch_of_one_step(e, carry, client, order_key, step_key, optimizer):
        del order_key  # all examples at once have no order
        params, state, losses = carry
        gradient, new = whole.run(params, client, jax.random.fold_in(step_key, e))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, trees.add(losses, new)

    def epoch_of_batches(e, carry, client, order_key, step_key, optimizer):
        if shuffle == "each_epoch":
            order_key = jax.random.fold_in(order_key, e)
        order = permutation(order_key, jnp.maximum(client.size, 1))

        def batch(i):
            chosen, real = batch_slots(i, width, client.size)
            return chosen if shuffle == "never" else order(chosen), real

        steps = _ceil_div(client.size, width)
        epoch_key = jax.random.fold_in(step_key, e)
        return descend(task, optimizer, carry, client, batch, steps, epoch_key)

    epoch = epoch_of_one_step if infinite else epoch_of_batches

    def run(params: Params, client: Client, key: jax.Array, rate: Any):
        optimizer = make_optimizer(rate)
        constants = {
            "client": client,
            "order_key": jax.random.fold_in(key, 0),
            "step_key": jax.random.fold_in(key, 1),
            "optimizer": optimizer,
        }
        carry = (params, optimizer.init(params), no_losses())
        body = functools.partial(epoch, **constants)
        params, _, losses = jax.lax.fori_loop(0, local_epochs, body, carry)
        return params, losses

    def slots(sizes):
        one_epoch = whole.slots(sizes) if infinite else width * _ceil_div(sizes, width)[:, None]
        return local_epochs * one_epoch

    return LocalWork(run, slots)


def descend(
    task: Task,
    optimizer: optax.GradientTransformation,
    carry: tuple[Params, Any, LossSums],
    client: Client,
    batch: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    steps: jax.Array | int,
    key: jax.Array,
) -> tuple[Params, Any, LossSums]:
    """Steps of mini-batch descent.

    Args:
      task: what is learned.
      optimizer: takes the gradient of a batch's mean loss.
      carry: params, the optimizer's state, and the sums so far.
      client: whose rows.
      batch: `batch(i) -> (chosen [B] int32, real [B] bool)`, the rows of step i.
      steps: how many; may be traced.
      key: for the task's randomness.

    Returns:
      The carry after the steps.
    """

    def step(i, carry):
        params, state, losses, (chosen, real) = carry
        step_key = jax.random.fold_in(key, i)
        gradient, new = sum_gradient(task, params, client.take(chosen), real, step_key)
        gradient = trees.scale(gradient, 1 / jnp.maximum(new.count, 1) + _zero_after(gradient))
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        # The next rows are chosen one step ahead: XLA would otherwise fuse the choice into the gather
        # and repeat it for every feature of every row.
        return params, state, trees.add(losses, new), batch(i + 1)

    *carry, _ = jax.lax.fori_loop(0, steps, step, (*carry, batch(jnp.zeros((), jnp.int32))))
    return tuple(carry)


def sum_gradient(
    task: Task, params: Params, batch: Batch, real: jax.Array, key: jax.Array
) -> tuple[Params, LossSums]:
    """The gradient of a batch's summed loss, and the batch's sums.

    Args:
      task: what is learned.
      params: where.
      batch: column name -> `[B, ...]`.
      real: `[B]` bool; other rows pad the batch and count nothing.
      key: for the task's randomness.

    Returns:
      The gradient, like `params`, and the sums over the real rows.
    """

    def summed(params):
        total, count = task.loss(params, batch, key)
        losses = LossSums(
            jnp.sum(jnp.where(real, total, 0)),
            jnp.sum(jnp.where(real, count, 0)),
            jnp.sum(real, dtype=jnp.int32),
        )
        return losses.total, losses

    return jax.grad(summed, has_aux=True)(params)


def _zero_after(tree: Any) -> jax.Array:
    """Zero, known only when all leaves are.

    Who uses it for an update tells XLA that by then nobody reads the parameters any more. Otherwise
    it copies them at every step, lest the update of one layer overtake the backward pass through it.
    """
    total = sum(leaf.ravel()[0] for leaf in jax.tree.leaves(tree))
    return 0 * jnp.where(jnp.isfinite(total), total, 0)


def batch_slots(
    i: jax.Array, width: int, size: jax.Array, first: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """The positions of one batch among a client's examples.

    Args:
      i: `[]` int32, which batch.
      width: `B`.
      size: `[]` int32, `n_k`.
      first: where batch 0 begins.

    Returns:
      Positions `[B]` int32, and `[B]` bool, whether they are real. Those beyond the end repeat the last
      position, so that they gather a row of the same client, always one the model can bear.
    """
    slots = first + i * width + jnp.arange(width, dtype=jnp.int32)
    return jnp.clip(slots, 0, jnp.maximum(size - 1, 0)), slots < size


def no_losses() -> LossSums:
    """Where sums begin."""
    return LossSums(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))


def _ceil_div(a: jax.Array, b: int) -> jax.Array:
    return (a + (b - 1)) // b
