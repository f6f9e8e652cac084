"""Sums over all examples of ONE client, in pieces, written without a client axis."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.task_checks import check_task, refuse_state
from fedjax_sim.core.types import Client, Params, Task
from fedjax_sim.engine.gradients import (
    PIECES,
    LossSums,
    batch_slots,
    count_pieces,
    loss_sums,
    no_losses,
    sum_gradient,
)
from fedjax_sim.engine.work import ClientWork

_IN_PIECES = (
    "all examples of a client are processed in pieces, each with statistics of its own; wanted fed_avg "
    "or another algorithm of batches with a finite batch_size"
)


def full_gradient(task: Task, of_pieces: Callable | None = None) -> ClientWork:
    """Returns the work of computing the gradient of a client's mean loss, as a sum over pieces.

    `run(params, client, key) -> (gradient, LossSums)`; the gradient of an empty client is zero.

    Args:
      task: the model and its loss.
      of_pieces: `of_pieces(params, batch, real, key) -> (gradient, LossSums)`, summed over the examples
        of a piece; by default `sum_gradient`.

    Raises:
      ValueError: `task` is no task, or its model keeps state.
    """
    check_task(task)
    refuse_state(task, _IN_PIECES)
    find = functools.partial(sum_gradient, task) if of_pieces is None else of_pieces

    def run(params: Params, client: Client, key: jax.Array):
        def of_piece(batch, real, key):
            return find(params, batch, real, key)

        sums = over_pieces(of_piece, (trees.zeros_like(params), no_losses()), client, key)
        gradient, losses = sums
        return trees.scale(gradient, 1 / jnp.maximum(losses.count, 1)), losses

    return ClientWork(run, _slots)


def full_loss(task: Task) -> ClientWork:
    """Returns the work of computing a client's loss on all of its examples.

    `run(params, client, key) -> LossSums`.

    Args:
      task: the model and its loss.

    Raises:
      ValueError: `task` is no task, or its model keeps state.
    """
    check_task(task)
    refuse_state(task, _IN_PIECES)

    def run(params: Params, client: Client, key: jax.Array) -> LossSums:
        def of_piece(batch, real, key):
            return loss_sums(task, params, batch, real, key)[1]

        return over_pieces(of_piece, no_losses(), client, key)

    return ClientWork(run, _slots)


def over_pieces(of_piece: Callable, zero: Any, client: Client, key: jax.Array) -> Any:
    """Sums `of_piece(batch, real, key)` over a client's data, from `zero`.

    Args:
      of_piece: function of a piece's rows `[B, ...]`, whether each is real `[B]`, and a key.
      zero: what an empty client gets.
      client: one client.
      key: PRNG key; each piece folds in the position of its first row.
    """

    def add_piece(i, sums, width, first):
        chosen, real = batch_slots(i, width, client.size, first)
        piece_key = jax.random.fold_in(key, first + i * width)
        return trees.add(sums, of_piece(client.take(chosen), real, piece_key))

    sums, done = zero, jnp.zeros((), jnp.int32)
    for width, count in zip(PIECES, count_pieces(client.size), strict=True):
        add = functools.partial(add_piece, width=width, first=done)
        sums = jax.lax.fori_loop(0, count, add, sums)
        done = done + width * count
    return sums


def _slots(sizes: jax.Array, keys: jax.Array) -> jax.Array:
    del keys
    return jnp.stack([w * count for w, count in zip(PIECES, count_pieces(sizes), strict=True)], axis=-1)
