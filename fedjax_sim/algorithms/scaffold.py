"""SCAFFOLD: control variates correct the drift of local training.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "SCAFFOLD: stochastic
controlled averaging for federated learning", ICML 2020, https://arxiv.org/abs/1910.06378, algorithm 1
with option II.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.common import ServerState, local_sgd, round_info
from fedjax_sim.core import trees
from fedjax_sim.core.messages import model_exchange
from fedjax_sim.core.types import Algorithm, ClientOutput, Cohort, Task
from fedjax_sim.engine import train_clients, weigh
from fedjax_sim.engine.optimizers import Rate, with_changed_gradients


def scaffold(
    task: Task,
    server_optimizer: Any = optax.sgd,
    *,
    local_epochs: int,
    batch_size: float,
    client_lr: float | optax.Schedule,
    server_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "uniform",
    shuffle: str = "each_epoch",
) -> Algorithm:
    """Trains clients along `g_k(y) - c_k + c`; `c_k` estimates client k's gradient, `c` their mean.

    Clients run plain SGD, so `(x - y) / (K eta)` is the mean of a client's corrected gradients. Its
    control variate `c_k` is client state, initially zero. A message holds a model and a control variate.
    It takes no aggregator, which would see the models but not the control variates.

    Args:
      client_lr, server_lr: `eta` and `eta_g`; `server_lr` is 1 by default for `optax.sgd`.
      weighting: weights of the mean update: "uniform", as in the paper, or "examples". The mean of the
        control variates is always uniform.

    Other arguments are those of `fed_avg`.

    Raises:
      ValueError: a setting is out of its range, or a rate is given twice or not at all.
    """

    def corrected(rate, gradient, y):
        return trees.add(gradient, rate[1])

    training = {"local_epochs": local_epochs, "batch_size": batch_size, "shuffle": shuffle}
    rates = {"client_lr": client_lr, "server_lr": server_lr, "lr_decay": lr_decay}
    more = {"weighting": weighting, "wrap": with_changed_gradients(corrected)}
    local = local_sgd(task, optax.sgd, server_optimizer, **training, **rates, **more)

    def enter(shared, c_k, client, key):
        x, c, eta = shared
        return x, (eta, trees.subtract(c, c_k))

    def leave(shared, c_k, client, trained, key):
        (x, c, eta), (y, losses) = shared, trained
        moved = local.num_steps(client).astype(jnp.float32) * eta  # K eta, zero for an empty client
        scale = 1 / jnp.maximum(moved, 1e-30)

        drift = jax.tree.map(
            lambda x, y, c: jnp.where(moved > 0, scale * (x - y) - c, 0).astype(c.dtype), x, y, c
        )
        update = weigh(trees.subtract(y, x), local.weight_of(client.size))
        return ClientOutput((update, drift), losses, own=trees.add(c_k, drift))

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        c, num_clients = state.extra
        shared = (state.params, c, local.client_rate(state))
        clients = {"enter": enter, "leave": leave, "own": own}
        result = train_clients(local.work, shared, data, cohort, key=key, **clients)
        update, drift = result.message
        state = local.server_step(state, update.mean(), update.weight)
        c = jax.tree.map(lambda c, d: c + (d / num_clients).astype(c.dtype), c, drift)
        return state._replace(extra=(c, num_clients)), result.own, round_info(result, cohort)

    return local.algorithm(
        "scaffold",
        round_fn,
        extra=lambda params, num_clients: (trees.zeros_like(params), jnp.float32(num_clients)),
        memory=lambda key, params: trees.zeros_like(params),
        message_bytes=lambda state: {name: 2 * n for name, n in model_exchange(state).items()},
    )
