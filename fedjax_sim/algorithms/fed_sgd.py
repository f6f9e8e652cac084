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
import optax

from fedjax_sim.aggregation import Aggregator
from fedjax_sim.aggregation.aggregator import as_aggregator
from fedjax_sim.algorithms.common import (
    ServerState,
    aggregation_fields,
    aggregator_settings,
    client_rate,
    client_weight,
    parts,
    round_info,
    server_step,
    start_server,
    view_of,
)
from fedjax_sim.core.types import Algorithm, Cohort, Task
from fedjax_sim.engine.chunks import map_clients
from fedjax_sim.engine.client import most_slots
from fedjax_sim.engine.full_data import full_gradient
from fedjax_sim.engine.memory import lane_bytes
from fedjax_sim.engine.optimizers import Rate, as_factory, rate_of


def fed_sgd(
    task: Task,
    optimizer: Any = optax.sgd,
    *,
    client_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "examples",
    aggregator: Aggregator | None = None,
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
      aggregator: what lies between the clients' gradients and the server's step; see `fs.aggregate`. By
        default the weighted mean.

    Raises:
      ValueError: a setting is out of its range, the rate is given twice or not at all, or the aggregator
        does not go with the weighting.
    """
    chain = as_aggregator(aggregator)
    hparams = rate_of("client_lr", client_lr, optimizer) | {"lr_decay": lr_decay} | chain.hparams
    chain.check(hparams)
    weighting = chain.weighting(weighting)
    weight_of = client_weight(weighting)
    make_optimizer = as_factory(optimizer)
    gradient = full_gradient(task)

    def init(key: jax.Array, hparams: Mapping, num_clients: int, params: Any = None) -> ServerState:
        params = task.init(key) if params is None else params
        state = start_server(params, make_optimizer(hparams.get("client_lr", 1.0)), hparams)
        return state._replace(extra=chain.init(hparams))

    def client(shared, own_k, client, key):
        w, view = shared
        g_k, losses = gradient.run(w, client, key)
        return chain.send(view, own_k, g_k, weight_of(client.size), losses, key)

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        view = view_of(chain, state)
        shared = (state.params, view)
        result = map_clients(client, shared, data, cohort, key=key, work=gradient.slots, own=own)
        eta = client_rate(state.hparams, state.round, client_lr)
        received = chain.receive(view, result.message, result.rows, key)
        state = server_step(state, make_optimizer(eta), received.update, received.weight)
        info = round_info(result, cohort) | received.report
        return state._replace(extra=received.states), result.own, info

    return Algorithm(
        init,
        round_fn,
        hparams=hparams,
        settings={"algorithm": "fed_sgd", "weighting": weighting} | aggregator_settings(aggregator),
        # Clients have no optimizer; `optax.sgd` stands in, as it has no state.
        lane_bytes=functools.partial(lane_bytes, task, optax.sgd, math.inf),
        most_slots=functools.partial(most_slots, local_epochs=1, batch_size=math.inf),
        num_classes=task.num_classes,
        parts=functools.partial(parts, task, {"optimizer": make_optimizer}),
        **aggregation_fields(chain),
    )
