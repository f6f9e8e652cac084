"""FedProx: a proximal term keeps local training near the shared model.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated optimization in
heterogeneous networks", MLSys 2020, https://arxiv.org/abs/1812.06127, algorithm 2. Clients are sampled
uniformly and weighted by n_k, as in the authors' code; the paper samples them by n_k and takes the
plain mean.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregation import Aggregator
from fedjax_sim.algorithms.common import ServerState, local_sgd
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_shares
from fedjax_sim.core.types import Algorithm, Task
from fedjax_sim.engine.optimizers import Rate, with_changed_gradients


def fed_prox(
    task: Task,
    client_optimizer: Any = optax.sgd,
    server_optimizer: Any = optax.sgd,
    *,
    local_epochs: int,
    batch_size: float,
    mu: float,
    client_lr: Rate = None,
    server_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "examples",
    shuffle: str = "each_epoch",
    stragglers: float = 0.0,
    drop_stragglers: bool = False,
    aggregator: Aggregator | None = None,
) -> Algorithm:
    """Runs FedAvg, except that client k descends `h_k(w_k) = F_k(w_k) + mu / 2 ||w_k - w||^2`.

    Args:
      mu: weight of the proximal term; may vary without recompiling. 0 is FedAvg.
      stragglers: probability that a client is a straggler, drawn anew in each round. Stragglers complete
        1 to `E - 1` epochs, drawn uniformly. In the paper exactly this share of a cohort are stragglers.
      drop_stragglers: whether the server discards their updates, as the paper's FedAvg does.

    Other arguments are those of `fed_avg`.

    Raises:
      ValueError: a setting is out of its range, a rate is given twice or not at all, or the aggregator
        does not go with the weighting.
    """
    check_shares({"stragglers": stragglers})
    if stragglers and local_epochs == 1:
        raise ValueError(
            f"stragglers is {stragglers} with local_epochs=1, and a straggler completes 1 to E - 1 "
            "epochs; wanted at least 2 local epochs, or no stragglers"
        )

    def epochs(key: jax.Array) -> jax.Array:
        which, count = jax.random.split(key)
        some = jax.random.randint(count, (), 1, local_epochs)
        return jnp.where(jax.random.bernoulli(which, stragglers), some, local_epochs)

    def pull(rate, gradient, w_k):
        _, mu, w = rate
        return jax.tree.map(lambda g, a, b: g + (mu * (a - b)).astype(g.dtype), gradient, w_k, w)

    training = {"local_epochs": local_epochs, "batch_size": batch_size, "shuffle": shuffle}
    rates = {"client_lr": client_lr, "server_lr": server_lr, "lr_decay": lr_decay}
    means = {"weighting": weighting, "aggregator": aggregator}
    work = {"wrap": with_changed_gradients(pull), "epochs": epochs if stragglers else None}
    local = local_sgd(task, client_optimizer, server_optimizer, **training, **rates, **means, **work)

    def leave(shared, own_k, client, trained, key):
        (w, _, view), (w_k, losses) = shared, trained
        weight = local.weight_of(client.size)
        if drop_stragglers:
            weight = jnp.where(losses.examples < local_epochs * client.size, 0.0, weight)
        update = trees.subtract(w_k, w)
        return local.aggregator.send(view, own_k, update, weight, losses, key)

    def rate(state: ServerState):
        return local.client_rate(state), state.hparams["mu"], state.params

    settings = {"stragglers": stragglers, "drop_stragglers": drop_stragglers}
    return local.algorithm("fed_prox", local.round(leave, rate), hparams={"mu": mu}, settings=settings)
