"""FederatedSGD: one server step along the average of the clients' full gradients.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 2.
It equals FedAvg with E = 1 and B = infinity; this file follows the paper's first form.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.common import (
    ServerState,
    client_rate,
    client_weight,
    parts,
    round_info,
    server_step,
    start_server,
)
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_rates
from fedjax_sim.core.messages import model_exchange
from fedjax_sim.core.types import Algorithm, ClientOutput, Cohort, Task
from fedjax_sim.engine.chunks import map_clients
from fedjax_sim.engine.client import most_slots
from fedjax_sim.engine.full_data import full_gradient
from fedjax_sim.engine.memory import lane_bytes
from fedjax_sim.engine.optimizers import Rate, as_factory, rate_of
from fedjax_sim.engine.results import weigh


def fed_sgd(
    task: Task,
    optimizer: Any = optax.sgd,
    *,
    client_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "examples",
) -> Algorithm:
    """Steps `w <- w - eta * sum_k (n_k / m_t) g_k`; `g_k` is the gradient of client k's mean loss.

    Args:
      task: the model and its loss.
      optimizer: the server's optax optimizer of the mean gradient, or a function from a rate to one,
        such as `optax.sgd`.
      client_lr: `eta`, the learning rate of `optimizer`; omit it for a built optimizer, such as
        `optax.adam(0.001)`. It may vary without recompiling, as may `lr_decay`. An
        optax schedule is followed from round to round, and a sweep's `client_lr` multiplies it.
      lr_decay: decay factor per round; the rate in round t is `client_lr * lr_decay ** t`.
      weighting: "examples" for n_k / sum of n_k over the cohort, "uniform" for equal weights.

    Raises:
      ValueError: a setting is out of its range, or the rate is given twice or not at all.
    """
    hparams = rate_of("client_lr", client_lr, optimizer) | {"lr_decay": lr_decay}
    check_rates(hparams)
    weight_of = client_weight(weighting)
    make_optimizer = as_factory(optimizer)
    gradient = full_gradient(task)

    def init(key: jax.Array, hparams: Mapping, num_clients: int, params: Any = None) -> ServerState:
        params = task.init(key) if params is None else params
        return start_server(params, make_optimizer(hparams.get("client_lr", 1.0)), hparams)

    def client(w, own_k, client, key):
        g_k, losses = gradient.run(w, client, key)
        return ClientOutput(weigh(g_k, weight_of(client.size)), losses)

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        result = map_clients(client, state.params, data, cohort, key=key, work=gradient.slots)
        eta = client_rate(state.hparams, state.round, client_lr)
        update, weight = result.message
        g = trees.scale(update, 1 / jnp.maximum(weight, 1e-30))
        return server_step(state, make_optimizer(eta), g, weight), own, round_info(result, cohort)

    return Algorithm(
        init,
        round_fn,
        model_exchange,
        hparams,
        {"algorithm": "fed_sgd", "weighting": weighting},
        # Clients have no optimizer; `optax.sgd` stands in, as it has no state.
        lane_bytes=functools.partial(lane_bytes, task, optax.sgd, math.inf),
        most_slots=functools.partial(most_slots, local_epochs=1, batch_size=math.inf),
        num_classes=task.num_classes,
        parts=functools.partial(parts, task, {"optimizer": make_optimizer}),
    )
