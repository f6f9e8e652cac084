"""The FedAvg paper's figure 1: averages of two models.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629.
"""

import time
from typing import Any

import jax
import numpy as np
import optax

from fedjax_sim import Task, evaluator, fed_avg, simulate
from fedjax_sim.data import Dataset, federate
from fedjax_sim.reporting import five_digits, provenance

FIGURE_1_RECORD = "figure1"
FIGURE_1_SENTENCE = (
    "The paper: the average of two models that started from different random values is far worse than "
    "either; if they started from the same values, it is better than both parents, which are at "
    "theta = 0 and 1."
)
THETAS = np.linspace(-0.2, 1.2, 50)


def average_two_models(task: Task, train: Dataset, *, seed: int = 0) -> dict[str, Any]:
    """Computes figure 1: the loss on all training data of `theta * w + (1 - theta) * w'`, for 50 theta.

    Each parent trains on 600 examples of its own: 20 epochs of batches of 50 at rate 0.1, which is
    240 updates. The parents start once from different initial models and once from the same.

    Args:
      task: task of the 2NN.
      train: MNIST's training set, `[n, ...]` with n at least 1200.
      seed: seed of the choice of examples and of the parents' initial models.

    Returns:
      "theta" `[50]`, the losses "different" and "shared" `[50]`, and their provenance.
    """
    started, origin = time.perf_counter(), provenance()
    rows = np.random.default_rng(seed).permutation(len(train))[:1200]
    algorithm = fed_avg(task, optax.sgd, local_epochs=20, batch_size=50, client_lr=0.1)
    evaluate = evaluator(task, train, prefix="full_train")

    def parent(own, start):
        alone = federate(train, [own])
        return simulate(algorithm, alone, key=jax.random.key(start), num_rounds=1).params

    def losses(starts):
        w, other = (parent(own, start) for own, start in zip(np.split(rows, 2), starts, strict=True))
        mixed = (jax.tree.map(lambda a, b, t=t: t * a + (1 - t) * b, w, other) for t in THETAS)
        return [five_digits(evaluate(params)["full_train_loss"]) for params in mixed]

    return {
        "cell": {"figure": 1, "dataset": train.name, "model": "2nn", "seed": seed},
        "theta": [round(float(theta), 4) for theta in THETAS],
        "different": losses((seed, seed + 1)),
        "shared": losses((seed, seed)),
        "seconds": round(time.perf_counter() - started, 1),
        **origin,
        "runs": [],
    }
