"""FederatedSGD: one step on the average of the clients' full gradients.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 2.
It equals FedAvg with E = 1 and B = infinity; here it is written as the paper first states it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim import trees
from fedjax_sim.algorithms.common import check_hparams, client_weight, round_info
from fedjax_sim.base import Algorithm, ClientBytes, ClientOutput, Cohort, Params, Task
from fedjax_sim.client import full_gradient
from fedjax_sim.lanes import map_clients


class FedSGDState(NamedTuple):
    """The shared model `w`, the rounds done `t`, and name -> `[]` float32."""

    params: Params
    round: jax.Array
    hparams: Mapping[str, jax.Array]


def fed_sgd(
    task: Task, *, client_lr: float, lr_decay: float = 1.0, weighting: str = "examples"
) -> Algorithm:
    """`w <- w - eta * sum_k (n_k / m_t) g_k`, `g_k` the gradient of client k's mean loss at `w`.

    Args:
      task: what is learned.
      client_lr: `eta`; may vary without compiling again, like the next.
      lr_decay: the rate in round t is `client_lr * lr_decay ** t`.
      weighting: "examples" for n_k / sum of n_k over the cohort, "uniform" for one vote each.

    Raises:
      ValueError: a setting is out of its range.
    """
    hparams = {"client_lr": client_lr, "lr_decay": lr_decay}
    check_hparams(hparams)
    weight_of = client_weight(weighting)
    gradient = full_gradient(task)

    def init(key: jax.Array, hparams: Mapping[str, jax.Array]) -> FedSGDState:
        return FedSGDState(task.init(key), jnp.zeros((), jnp.int32), dict(hparams))

    def round_fn(key: jax.Array, state: FedSGDState, data: Any, cohort: Cohort):
        def client(w, client, key):
            g_k, losses = gradient.run(w, client, key)
            return ClientOutput(g_k, weight_of(client.size), losses._asdict())

        sums = map_clients(client, state.params, data, cohort, key=key, work=gradient.slots)
        eta = state.hparams["client_lr"] * state.hparams["lr_decay"] ** state.round.astype(jnp.float32)
        step = trees.scale(sums.update, eta / jnp.maximum(sums.weight, 1e-30))
        w = trees.subtract(state.params, step)
        return state._replace(params=w, round=state.round + 1), round_info(sums)

    def client_bytes(state: FedSGDState) -> ClientBytes:
        model = trees.num_bytes(state.params)
        return ClientBytes(up=model, down=model)

    return Algorithm(init, round_fn, client_bytes, hparams)
