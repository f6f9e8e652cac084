"""Federated Averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1
with the weights of arXiv version 4: n_k over the examples of the SELECTED clients.
"""

import functools
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
from fedjax_sim.engine.client import local_training, most_slots
from fedjax_sim.engine.memory import lane_bytes
from fedjax_sim.engine.optimizers import as_factory, rate_of
from fedjax_sim.engine.queues import train_clients
from fedjax_sim.engine.results import weigh


def fed_avg(
    task: Task,
    client_optimizer: Any = optax.sgd,
    server_optimizer: Any = optax.sgd,
    *,
    local_epochs: int,
    batch_size: float,
    client_lr: float | None = None,
    server_lr: float | None = None,
    lr_decay: float = 1.0,
    weighting: str = "examples",
    shuffle: str = "each_epoch",
) -> Algorithm:
    """Clients train on their own data for `E` epochs of `B`-batches; the server averages the models.

    With the default server optimizer and rate 1 the average replaces the model, as in the paper; any
    other optimizer takes `w - average` as its gradient (Reddi et al., "Adaptive federated
    optimization", ICLR 2021, https://arxiv.org/abs/2003.00295).

    Args:
      task: what is learned.
      client_optimizer: an optax optimizer, or a function from a rate to one such as `optax.sgd`.
      server_optimizer: likewise.
      local_epochs: `E`.
      batch_size: `B`, or `math.inf`.
      client_lr: `eta`, the rate of `client_optimizer`; not of one that is already built, such as
        `optax.adam(0.001)`. May vary without compiling again, like the next two.
      server_lr: the rate of `server_optimizer`, likewise; by default 1 for `optax.sgd`.
      lr_decay: the client's rate in round t is `client_lr * lr_decay ** t`.
      weighting: "examples" for n_k / sum of n_k over the cohort, "uniform" for one vote each.
      shuffle: "each_epoch", "once" or "never".

    Raises:
      ValueError: a setting is out of its range, or a rate is given twice or not at all.
    """
    if server_lr is None and server_optimizer is optax.sgd:
        server_lr = 1.0
    client_rates = rate_of("client_lr", client_lr, client_optimizer)
    server_rates = rate_of("server_lr", server_lr, server_optimizer)
    hparams = client_rates | server_rates | {"lr_decay": lr_decay}
    check_rates(hparams)
    weight_of = client_weight(weighting)
    make_client, make_server = as_factory(client_optimizer), as_factory(server_optimizer)
    client_update = local_training(
        task, client_optimizer, local_epochs=local_epochs, batch_size=batch_size, shuffle=shuffle
    )

    def init(key: jax.Array, hparams: Mapping, num_clients: int, params: Any = None) -> ServerState:
        params = task.init(key) if params is None else params
        return start_server(params, make_server(hparams.get("server_lr", 1.0)), hparams)

    def leave(shared, own_k, client, trained, key):
        (w, _), (w_k, losses) = shared, trained
        return ClientOutput(weigh(trees.subtract(w_k, w), weight_of(client.size)), losses)

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        shared = (state.params, client_rate(state.hparams, state.round))
        result = train_clients(client_update, shared, data, cohort, key=key, leave=leave)
        update, weight = result.message
        pseudo_gradient = trees.scale(update, -1 / jnp.maximum(weight, 1e-30))
        optimizer = make_server(state.hparams.get("server_lr", 1.0))
        return server_step(state, optimizer, pseudo_gradient, weight), own, round_info(result, cohort)

    settings = {
        "algorithm": "fed_avg",
        "local_epochs": local_epochs,
        "batch_size": str(batch_size),
        "weighting": weighting,
        "shuffle": shuffle,
    }
    optimizers = {"client optimizer": make_client, "server optimizer": make_server}
    return Algorithm(
        init,
        round_fn,
        model_exchange,
        hparams,
        settings,
        lane_bytes=functools.partial(lane_bytes, task, make_client, batch_size),
        most_slots=functools.partial(most_slots, local_epochs=local_epochs, batch_size=batch_size),
        num_classes=task.num_classes,
        parts=functools.partial(parts, task, optimizers),
    )
