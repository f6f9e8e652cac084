"""FedBuff: clients work at their own pace, and the server steps once for a buffer of their updates.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated learning with
buffered asynchronous aggregation", AISTATS 2022, https://arxiv.org/abs/2106.06639, algorithm 1 with
the weights s(tau) = 1 / sqrt(1 + tau).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.common import ServerState, local_sgd, round_info
from fedjax_sim.core import ring, trees
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Algorithm, ClientOutput, Cohort, Task
from fedjax_sim.engine.optimizers import Rate
from fedjax_sim.engine.queues import train_clients
from fedjax_sim.engine.results import weigh
from fedjax_sim.participation.arrivals import arrivals, check_arrivals, half_normal


def fed_buff(
    task: Task,
    client_optimizer: Any = optax.sgd,
    server_optimizer: Any = optax.sgd,
    *,
    concurrency: int,
    buffer: int,
    max_staleness: int | None = None,
    local_epochs: int,
    batch_size: float,
    client_lr: Rate = None,
    server_lr: Rate = None,
    lr_decay: float = 1.0,
    shuffle: str = "each_epoch",
) -> Algorithm:
    """Steps along the mean of K updates `(w_k - w_b) / sqrt(1 + tau_k)`; client k began with `w_b`.

    Clients without data do not count; a client's rate is that of the round in which it began. By default
    durations are `participation.half_normal(1.0)`; for others, give `simulate` `arrivals` as `cohorts`.

    Args:
      concurrency: clients at work.
      buffer: `K`, updates in a server step.
      max_staleness: an update that began earlier, with a model that the server no longer keeps, ends the
        run with an error; by default 8 times `concurrency / buffer`, rounded up.

    Other arguments are those of `fed_avg`.

    Raises:
      ValueError: a setting is out of its range, or a rate is given twice or not at all.
    """
    cohorts = arrivals(concurrency, buffer, half_normal(1.0))
    if max_staleness is None:
        max_staleness = 8 * -(-concurrency // buffer)
    max_staleness = check_count("max_staleness", max_staleness)
    training = {"local_epochs": local_epochs, "batch_size": batch_size, "shuffle": shuffle}
    rates = {"client_lr": client_lr, "server_lr": server_lr, "lr_decay": lr_decay}
    local = local_sgd(task, client_optimizer, server_optimizer, weighting="uniform", **training, **rates)

    def enter(state, lag, client, key):
        began = state._replace(round=state.round - lag)
        return ring.read(state.extra, began.round), local.client_rate(began)

    def leave(state, lag, client, trained, key):
        w_k, losses = trained
        update = trees.subtract(w_k, ring.read(state.extra, state.round - lag))
        update = trees.scale(update, 1 / jnp.sqrt(1 + lag.astype(jnp.float32)))
        return ClientOutput(weigh(update, local.weight_of(client.size)), losses, own=lag)

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        clients = {"enter": enter, "leave": leave, "own": cohort.lag}
        result = train_clients(local.work, state, data, cohort, key=key, **clients)
        update, too_stale = result.message, jnp.max(cohort.lag) > max_staleness
        state = local.server_step(state, update.mean(), update.weight)
        state = state._replace(extra=ring.write(state.extra, state.round, state.params))
        return state, own, round_info(result, cohort) | {"too_stale": too_stale}

    return local.algorithm(
        "fed_buff",
        round_fn,
        settings={"buffer": buffer, "max_staleness": max_staleness},
        extra=lambda params, num_clients: ring.start(params, max_staleness + 1),
        cohorts=cohorts,
        check_cohort=functools.partial(check_arrivals, buffer=buffer),
        errors={"too_stale": f"an update is over max_staleness = {max_staleness} steps old; raise it"},
    )
