"""FedNova: each update is normalised by the local steps behind it.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the objective inconsistency problem in
heterogeneous federated optimization", NeurIPS 2020, https://arxiv.org/abs/2007.07481, equation 7.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregation import Aggregator
from fedjax_sim.algorithms.common import ServerState, local_sgd, round_info, view_of
from fedjax_sim.core import trees
from fedjax_sim.core.task_checks import check_task, refuse_state
from fedjax_sim.core.types import Algorithm, Cohort, Task
from fedjax_sim.engine import train_clients, weigh
from fedjax_sim.engine.optimizers import OptimizerFactory, Rate, as_factory, check_linear


def fed_nova(
    task: Task,
    client_optimizer: Any = optax.sgd,
    server_optimizer: Any = optax.sgd,
    *,
    local_epochs: int,
    batch_size: float,
    client_lr: Rate = None,
    server_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "examples",
    shuffle: str = "each_epoch",
    aggregator: Aggregator | None = None,
) -> Algorithm:
    """Adds `tau_eff * sum of p_k Delta_k / a_k`, so that more local steps do not mean more weight.

    `a_k` is the L1 norm of the weights with which client k's gradients enter its update: `tau_k` for
    plain SGD, more with momentum. `tau_eff` is the mean of `a_k`, as in the authors' code, so clients
    with equally many steps make this FedAvg; in the paper's text it is the mean of `tau_k`. `a_k` is
    measured by optimizing one number under a constant gradient of 1, which is exact for optimizers that
    are linear in their gradients; others, such as Adam, are refused.

    Arguments are those of `fed_avg`; the aggregator takes `Delta_k / a_k`. Each message carries one
    extra number, which the ledger omits, and `tau_eff` is its weighted mean under any aggregator.

    Raises:
      ValueError: a setting is out of its range, a rate is given twice or not at all, the client
        optimizer is not linear in its gradients, or the aggregator does not go with the weighting.
    """
    check_task(task)
    refuse_state(task, "an update divided by a_k has no meaning for it; wanted fed_avg")
    make_client = as_factory(client_optimizer)
    check_linear(make_client, jax.eval_shape(task.init, jax.random.key(0)))
    training = {"local_epochs": local_epochs, "batch_size": batch_size, "shuffle": shuffle}
    rates = {"client_lr": client_lr, "server_lr": server_lr, "lr_decay": lr_decay}
    means = {"weighting": weighting, "aggregator": aggregator}
    local = local_sgd(task, client_optimizer, server_optimizer, **training, **rates, **means)

    def leave(shared, own_k, client, trained, key):
        (w, _, view), (w_k, losses) = shared, trained
        a = jnp.maximum(total_weight(make_client, local.num_steps(client)), 1e-30)
        weight = local.weight_of(client.size)
        normalised = trees.scale(trees.subtract(w_k, w), 1 / a)
        output = local.aggregator.send(view, own_k, normalised, weight, losses, key)
        return output._replace(message=(output.message, weigh(a, weight)))

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        view = view_of(local.aggregator, state)
        shared = (state.params, local.client_rate(state), view)
        result = train_clients(local.work, shared, data, cohort, key=key, leave=leave, own=own)
        message, sum_of_a = result.message
        received = local.aggregator.receive(view, message, result.rows, key)
        direction, tau_eff = received.update, sum_of_a.mean()
        state = local.server_step(state, trees.scale(direction, tau_eff), received.weight)
        info = round_info(result, cohort) | received.report
        return state._replace(extra=received.states), result.own, info

    return local.algorithm("fed_nova", round_fn)


def total_weight(make_optimizer: OptimizerFactory, steps: jax.Array) -> jax.Array:
    """Returns how far `steps` `[]` gradients of 1 move a number that starts at 0, at rate 1."""
    optimizer = make_optimizer(1.0)

    def step(_, carry):
        moved, state = carry
        update, state = optimizer.update(jnp.ones(()), state, moved)
        return moved + update, state

    start = jnp.zeros(())
    return -jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]
