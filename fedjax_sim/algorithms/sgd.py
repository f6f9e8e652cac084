"""Sequential mini-batch SGD on the pooled data of all clients: the centralised baseline."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.common import client_rate, parts
from fedjax_sim.core.checks import check_count, check_rates
from fedjax_sim.core.permutation import permutation
from fedjax_sim.core.task_checks import check_task
from fedjax_sim.core.types import Algorithm, Client, Cohort, Params, Task
from fedjax_sim.engine.client import train_step
from fedjax_sim.engine.gradients import batch_slots, no_losses
from fedjax_sim.engine.optimizers import Rate, as_factory, rate_of

_LIMIT = 2**31  # the first count that overflows an int32


class SGDState(NamedTuple):
    """State of sequential SGD.

    Attributes:
      params: the model.
      optimizer: the optimizer's state, kept across rounds.
      step: `[]` int32, the number of completed steps.
      round: `[]` int32, the number of completed rounds.
      key: PRNG key of the run; it determines each epoch's order.
      hparams: name -> `[]` float32.
    """

    params: Params
    optimizer: Any
    step: jax.Array
    round: jax.Array
    key: jax.Array
    hparams: Mapping[str, jax.Array]


def sgd(
    task: Task,
    optimizer: Any = optax.sgd,
    *,
    batch_size: int,
    steps_per_round: int = 1,
    client_lr: Rate = None,
    lr_decay: float = 1.0,
) -> Algorithm:
    """Trains on all rows of the federation, in a new random order each epoch; nothing is sent.

    Steps are sequential, so more devices do not help: give `simulate` a layout of one device.

    Args:
      task: the model and its loss.
      optimizer: an optax optimizer, or a function from a rate to one, such as `optax.sgd`.
      batch_size: `B`, the examples in a batch.
      steps_per_round: number of steps that count as a round.
      client_lr: the learning rate of `optimizer`; omit it for a built optimizer, such as
        `optax.adam(0.001)`. It may vary without recompiling, as may `lr_decay`. An
        optax schedule is followed from round to round, and a sweep's `client_lr` multiplies it.
      lr_decay: decay factor per round; the rate in round t is `client_lr * lr_decay ** t`.

    Raises:
      ValueError: a setting is out of its range, or the rate is given twice or not at all.
    """
    check_task(task)
    batch_size = check_count("batch_size", batch_size)
    steps_per_round = check_count("steps_per_round", steps_per_round)
    if batch_size * steps_per_round >= _LIMIT:
        raise ValueError(
            f"a round of {steps_per_round} steps of {batch_size} examples is too long to count; wanted "
            f"fewer than {_LIMIT} examples"
        )
    hparams = rate_of("client_lr", client_lr, optimizer) | {"lr_decay": lr_decay}
    check_rates(hparams)
    make_optimizer = as_factory(optimizer)

    def init(key: jax.Array, hparams: Mapping, num_clients: int, params: Any = None) -> SGDState:
        params_key, order_key = jax.random.split(key)
        params = task.init(params_key) if params is None else params
        state = make_optimizer(hparams.get("client_lr", 1.0)).init(params)
        zero = jnp.zeros((), jnp.int32)
        return SGDState(params, state, zero, zero, order_key, dict(hparams))

    def round_fn(key: jax.Array, state: SGDState, own: Any, data: Any, cohort: Cohort):
        del cohort  # every round uses all clients' data
        n, zero = data.offsets[-1], jnp.zeros((), jnp.int32)
        everything = Client(data.examples, start=zero, size=n, id=zero)
        steps_per_epoch = -(-n // batch_size)
        eta = client_rate(state.hparams, state.round, client_lr)

        def batch(i):
            epoch, within = (state.step + i) // steps_per_epoch, (state.step + i) % steps_per_epoch
            order = permutation(jax.random.fold_in(state.key, epoch), n)
            slots, real = batch_slots(within, batch_size, n)
            return order(slots), real

        carry = (state.params, state.optimizer, no_losses(), batch(zero))
        step = train_step(
            task, make_optimizer(eta), lambda _, chosen: everything.take(chosen), batch, key
        )
        params, optimizer, losses, _ = jax.lax.fori_loop(0, steps_per_round, step, carry)
        info = {
            "train_loss": losses.total / jnp.maximum(losses.count, 1),
            "examples": losses.examples,
            "slots": jnp.asarray(steps_per_round * batch_size, jnp.int32),
        }
        state = state._replace(
            params=params,
            optimizer=optimizer,
            step=state.step + steps_per_round,
            round=state.round + 1,
        )
        return state, own, info

    def check(data: Any, num_rounds: int) -> None:
        if num_rounds * steps_per_round >= _LIMIT:
            raise ValueError(
                f"{num_rounds} rounds of {steps_per_round} steps are too many to count; wanted fewer "
                f"than {_LIMIT} steps"
            )

    settings = {
        "algorithm": "sgd",
        "batch_size": str(batch_size),
        "steps_per_round": steps_per_round,
    }
    return Algorithm(
        init,
        round_fn,
        lambda state: {},
        hparams,
        settings,
        needs_all_data=True,
        check=check,
        num_classes=task.num_classes,
        parts=functools.partial(parts, task, {"optimizer": make_optimizer}),
    )
