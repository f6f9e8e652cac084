"""The synthetic data of FedProx: clients that differ in their models and in their inputs.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated optimization in
heterogeneous networks", MLSys 2020, https://arxiv.org/abs/1812.06127, section 5.1 and the authors' code,
https://github.com/litian96/FedProx, data/synthetic_1_1/generate_synthetic.py. That code draws
`np.random.normal(0, alpha)`, whose second argument is a standard deviation, and so does this; it has no
seed, so the paper's own data cannot be drawn again.
"""

import numpy as np

from fedjax_sim.core.checks import check_count, check_rates, check_seed
from fedjax_sim.data.federated import FederatedData

_FEATURES, _CLASSES = 60, 10
_LEAST, _MEAN, _SIGMA = 50, 4.0, 2.0  # of the sizes, 50 plus a log-normal number
_TRAIN_SHARE = 0.9


def synthetic_logistic(
    alpha: float, beta: float, *, num_clients: int = 30, iid: bool = False, seed: int = 0
) -> tuple[FederatedData, FederatedData]:
    """Draws clients that label their inputs by `argmax(W_k x + b_k)`, of 60 features and 10 classes.

    `W_k` and `b_k` have entries from N(u_k, 1) with u_k from N(0, alpha); inputs have means v_k, whose
    entries are from N(B_k, 1) with B_k from N(0, beta), and variances `j ** -1.2`.

    Args:
      alpha: standard deviation of u_k: how much clients' models differ.
      beta: standard deviation of B_k: how much clients' inputs differ.
      num_clients: number of clients, `N`.
      iid: whether all clients share one W and b, and inputs have mean zero.
      seed: seed of all draws.

    Returns:
      Training and test examples of the same clients, 90 % and 10 % of each; `"x"` `[n, 60]` float32,
      `"y"` `[n]` int32.

    Raises:
      ValueError: `alpha` or `beta` is not a finite number of at least 0, `num_clients` not a positive
        integer, or `seed` not an integer of at least 0.
    """
    check_rates({"alpha": alpha, "beta": beta})
    num_clients = check_count("num_clients", num_clients)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(_MEAN, _SIGMA, num_clients).astype(np.int64) + _LEAST
    deviations = np.arange(1, _FEATURES + 1) ** (-1.2 / 2)
    u, b_mean = rng.normal(0, alpha, num_clients), rng.normal(0, beta, num_clients)
    shared = rng.normal(size=(_FEATURES, _CLASSES)), rng.normal(size=_CLASSES)
    parts = []
    for k, size in enumerate(sizes):
        v = np.zeros(_FEATURES) if iid else rng.normal(b_mean[k], 1, _FEATURES)
        w, b = rng.normal(u[k], 1, (_FEATURES, _CLASSES)), rng.normal(u[k], 1, _CLASSES)
        w, b = shared if iid else (w, b)
        x = rng.normal(v, deviations, (size, _FEATURES))
        parts.append((x.astype(np.float32), np.argmax(x @ w + b, axis=1).astype(np.int32)))
    cuts = (sizes * _TRAIN_SHARE).astype(np.int64)

    def federation(rows, counts) -> FederatedData:
        x, y = (np.concatenate([part[c][rows(k)] for k, part in enumerate(parts)]) for c in (0, 1))
        offsets = np.cumsum([0, *counts]).astype(np.int32)
        return FederatedData(
            {"x": x, "y": y}, offsets, np.arange(num_clients), _CLASSES, name="synthetic_logistic"
        )

    train = federation(lambda k: slice(0, cuts[k]), cuts)
    return train, federation(lambda k: slice(cuts[k], None), sizes - cuts)
