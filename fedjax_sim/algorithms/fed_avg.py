"""Federated Averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1
with the weights of arXiv version 4: n_k over the examples of the SELECTED clients.
"""

from typing import Any

import optax

from fedjax_sim.aggregation import Aggregator
from fedjax_sim.algorithms.common import local_sgd
from fedjax_sim.core import trees
from fedjax_sim.core.types import Algorithm, Task
from fedjax_sim.engine.optimizers import Rate


def fed_avg(
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
    """Trains clients for `E` local epochs in batches of `B`; the server averages their models.

    With the default server optimizer and rate 1, the average replaces the model, as in the paper; any
    other server optimizer takes `w - average` as its gradient (Reddi et al., "Adaptive federated
    optimization", ICLR 2021, https://arxiv.org/abs/2003.00295).

    Args:
      task: the model and its loss.
      client_optimizer: an optax optimizer, or a function from a rate to one, such as `optax.sgd`.
      server_optimizer: likewise.
      local_epochs: `E`, the number of local epochs.
      batch_size: `B`, or `math.inf` for full batches.
      client_lr: `eta`, the learning rate of `client_optimizer`; omit it for a built optimizer, such as
        `optax.adam(0.001)`. It may vary without recompiling, as may `server_lr` and `lr_decay`. An
        optax schedule is followed from round to round, and a sweep's `client_lr` multiplies it.
      server_lr: the learning rate of `server_optimizer`, likewise; by default 1 for `optax.sgd`.
      lr_decay: decay factor per round; the clients' rate in round t is `client_lr * lr_decay ** t`.
      weighting: "examples" for n_k / sum of n_k over the cohort, "uniform" for equal weights.
      shuffle: "each_epoch", "once" or "never".
      aggregator: what lies between the clients' updates and the server's step, such as clipping,
        compression or a median; see `fs.aggregate`. By default the weighted mean.

    Raises:
      ValueError: a setting is out of its range, a rate is given twice or not at all, or the aggregator
        does not go with the weighting.
    """
    local = local_sgd(
        task,
        client_optimizer,
        server_optimizer,
        local_epochs=local_epochs,
        batch_size=batch_size,
        client_lr=client_lr,
        server_lr=server_lr,
        lr_decay=lr_decay,
        weighting=weighting,
        shuffle=shuffle,
        aggregator=aggregator,
    )

    def leave(shared, own_k, client, trained, key):
        (w, _, view), (w_k, losses) = shared, trained
        update, weight = trees.subtract(w_k, w), local.weight_of(client.size)
        return local.aggregator.send(view, own_k, update, weight, losses, key)

    return local.algorithm("fed_avg", local.round(leave))
