"""IFCA: each client trains the one of k models that fits its data best.

A. Ghosh, J. Chung, D. Yin, K. Ramchandran, "An efficient framework for clustered federated learning",
NeurIPS 2020, https://arxiv.org/abs/2006.04088, algorithm 1 with model averaging.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.common import ServerState, local_sgd, round_info
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.messages import model_exchange
from fedjax_sim.core.types import Algorithm, ClientOutput, Cohort, Task
from fedjax_sim.engine import full_loss, map_clients, train_clients, weigh
from fedjax_sim.engine.optimizers import Rate


def ifca(
    task: Task,
    client_optimizer: Any = optax.sgd,
    *,
    num_clusters: int,
    local_epochs: int,
    batch_size: float,
    client_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "uniform",
    shuffle: str = "each_epoch",
) -> Algorithm:
    """Averages each cluster's models; a client belongs to the cluster whose model has the least loss.

    Clients choose anew in every round, by their loss on all of their examples before training. A
    cluster that nobody chooses keeps its model. `state.params` holds the k models, `[k, ...]`; see
    `fs.simulation.cluster_evaluator`. A client receives all models, and sends one and its choice.

    Args:
      num_clusters: `k`. 1 is FedAvg.
      weighting: weights of a cluster's clients: "uniform", as in the paper, or "examples".

    Other arguments are those of `fed_avg`.

    Raises:
      ValueError: a setting is out of its range, or a rate is given twice or not at all.
    """
    k = check_count("num_clusters", num_clusters)

    def init_params(key):
        return jax.vmap(task.init)(jnp.stack([key, *jax.random.split(key, k - 1)]))

    training = {"local_epochs": local_epochs, "batch_size": batch_size, "shuffle": shuffle}
    rates = {"client_lr": client_lr, "lr_decay": lr_decay}
    more = {"weighting": weighting, "init_params": init_params}
    local = local_sgd(task, client_optimizer, **training, **rates, **more)
    loss = full_loss(task)

    def choose(models, own_k, client, key):
        losses = jax.vmap(lambda w: loss.run(w, client, key))(models)
        means = losses.total / jnp.maximum(losses.count, 1)
        return ClientOutput((), (), row=jnp.argmin(means).astype(jnp.int32))

    def enter(shared, j, client, key):
        models, eta = shared
        return jax.tree.map(lambda w: w[j], models), eta

    def leave(shared, j, client, trained, key):
        (models, _), (w_k, losses) = shared, trained
        weights = jnp.where(jnp.arange(k) == j, local.weight_of(client.size), 0)
        of_clusters = jax.vmap(lambda w, weight: weigh(trees.subtract(w_k, w), weight))
        return ClientOutput(of_clusters(models, weights), losses, own=j)

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        models, eta = state.params, local.client_rate(state)
        chosen = map_clients(choose, models, data, cohort, key=key, work=loss.slots)
        clients = {"enter": enter, "leave": leave, "own": chosen.rows}
        result = train_clients(local.work, (models, eta), data, cohort, key=key, **clients)
        updates = result.message
        mean = jax.vmap(lambda update: update.mean())(updates)
        state = local.server_step(state, mean, updates.weight.sum())
        return state, own, round_info(result, cohort)

    def message_bytes(state: ServerState) -> dict[str, int]:
        size = model_exchange(state)["down_model"]
        return {"down_model": size, "up_update": size // k + 4}

    fields = {"settings": {"num_clusters": k}, "message_bytes": message_bytes, "model_of": None}
    return local.algorithm("ifca", round_fn, **fields)
