"""FederatedSGD: one step on the average of the clients' full gradients.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 2.
It equals FedAvg with E = 1 and B = infinity; here it is written as the paper first states it.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import trees
from fedjax_sim.algorithms.common import (
    ServerState,
    client_weight,
    round_info,
    server_step,
    start_server,
)
from fedjax_sim.base import Algorithm, ClientOutput, Cohort, Task
from fedjax_sim.checks import check_rates
from fedjax_sim.client import full_gradient
from fedjax_sim.lanes import map_clients
from fedjax_sim.ledger import model_exchange
from fedjax_sim.memory import lane_bytes
from fedjax_sim.optimizers import as_factory, describe


def fed_sgd(
    task: Task,
    optimizer: Any = optax.sgd,
    *,
    client_lr: float = 1.0,
    lr_decay: float = 1.0,
    weighting: str = "examples",
) -> Algorithm:
    """`w <- w - eta * sum_k (n_k / m_t) g_k`, `g_k` the gradient of client k's mean loss at `w`.

    Args:
      task: what is learned.
      optimizer: the server's, which takes the mean gradient: an optax optimizer, or a function from a
        rate to one such as `optax.sgd`.
      client_lr: `eta`; multiplies the updates of an optimizer that is already built. May vary
        without compiling again, like the next.
      lr_decay: the rate in round t is `client_lr * lr_decay ** t`.
      weighting: "examples" for n_k / sum of n_k over the cohort, "uniform" for one vote each.

    Raises:
      ValueError: a setting is out of its range.
    """
    hparams = {"client_lr": client_lr, "lr_decay": lr_decay}
    check_rates(hparams)
    weight_of = client_weight(weighting)
    make_optimizer = as_factory(optimizer)
    gradient = full_gradient(task)

    def init(key: jax.Array, hparams: Mapping[str, jax.Array]) -> ServerState:
        return start_server(task.init(key), make_optimizer(hparams["client_lr"]), hparams)

    def round_fn(key: jax.Array, state: ServerState, data: Any, cohort: Cohort):
        def client(w, client, key):
            g_k, losses = gradient.run(w, client, key)
            return ClientOutput(g_k, weight_of(client.size), losses._asdict())

        sums = map_clients(client, state.params, data, cohort, key=key, work=gradient.slots)
        eta = state.hparams["client_lr"] * state.hparams["lr_decay"] ** state.round.astype(jnp.float32)
        g = trees.scale(sums.update, 1 / jnp.maximum(sums.weight, 1e-30))
        return server_step(state, make_optimizer(eta), g, sums.weight), round_info(sums, cohort)

    settings = {
        "algorithm": "fed_sgd",
        "server_optimizer": describe(optimizer),
        "weighting": weighting,
    }
    # Clients have no optimizer; plain descent has no memory either.
    needs = functools.partial(lane_bytes, task, optax.sgd, math.inf)
    return Algorithm(init, round_fn, model_exchange, hparams, settings, lane_bytes=needs)
