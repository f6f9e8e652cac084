"""Skews of labels and sizes, from a benchmark of federated learning on non-IID data.

Q. Li, Y. Diao, Q. Chen, B. He, "Federated learning on non-IID data silos: an experimental study", ICDE
2022, https://arxiv.org/abs/2102.02079, section 4. Details that its text leaves open are those of its
code, https://github.com/Xtra-Computing/NIID-Bench. Its label skew by a Dirichlet distribution is
`dirichlet`, its noise `add_noise`.
"""

import numpy as np

from fedjax_sim.core.checks import check_seed
from fedjax_sim.data.dataset import Dataset
from fedjax_sim.data.draws import apportion, generator_of, log_gamma
from fedjax_sim.data.partition import (
    Assignment,
    Partition,
    by_owner,
    check_at_least_one,
    check_dirichlet,
    row_labels,
    with_min_size,
)


def label_subsets(*, num_clients: int, labels_per_client: int, seed: int = 0) -> Partition:
    """Gives each client rows of exactly `labels_per_client` labels, the paper's #C = k.

    Client i holds label i mod C, of the C labels that occur, and others drawn at random. If there are
    fewer clients than labels, it holds labels i, i + N, i + 2N, ... first, so that every label is held.
    The shuffled rows of a label are divided evenly among the clients that hold it. Unlike `shards`, no
    client ever has another number of labels, but sizes vary.

    Raises:
      ValueError: a setting is below 1 or, when applied, labels are not `[n]`, there are fewer labels
        than each client is to hold or more than all clients can hold, or a label has fewer rows than
        clients that are to hold it.
    """
    check_at_least_one(num_clients=num_clients, labels_per_client=labels_per_client)
    check_seed(seed)

    def partition(dataset: Dataset) -> Assignment:
        occurring, labels = np.unique(row_labels(dataset), return_inverse=True)
        num_labels, generator = len(occurring), generator_of(seed)
        if not -(-num_labels // num_clients) <= labels_per_client <= num_labels:
            raise ValueError(
                f"labels_per_client is {labels_per_client} for {num_clients} clients; {dataset.name} "
                f"has {num_labels} labels, so wanted {-(-num_labels // num_clients)} to {num_labels}."
            )
        is_held = np.zeros((num_clients, num_labels), bool)
        rounds = np.arange(max(num_clients, num_labels))
        is_held[rounds % num_clients, rounds % num_labels] = True
        for held in is_held:
            others = np.flatnonzero(~held)
            held[generator.permutation(others)[: labels_per_client - held.sum()]] = True
        owners = np.empty(len(dataset), np.int64)
        for label, holders in enumerate(map(np.flatnonzero, is_held.T)):
            rows = generator.permutation(np.flatnonzero(labels == label))
            if len(rows) < len(holders):
                raise ValueError(
                    f"{dataset.name} has {len(rows)} rows of label {occurring[label]}, too few for the "
                    f"{len(holders)} clients that are to hold it: ask for fewer clients or labels."
                )
            for client, part in zip(holders, np.array_split(rows, len(holders)), strict=True):
                owners[part] = client
        return by_owner(owners, np.arange(num_clients))

    return partition


def dirichlet_sizes(*, num_clients: int, alpha: float, min_size: int = 0, seed: int = 0) -> Partition:
    """Deals shuffled rows out in sizes proportional to a draw from a symmetric Dirichlet(alpha).

    The paper's quantity skew, q ~ Dir(beta), where `alpha` is its beta: labels are IID, sizes are not.
    The sizes are drawn again, up to 1,000 times, until each client has `min_size` rows; the paper's code
    demands 10.

    Raises:
      ValueError: `num_clients` is below 1, `alpha` is not finite and positive, `min_size` is no integer
        of at least 0 or, when applied, no draw gives each client `min_size` rows.
    """
    check_at_least_one(num_clients=num_clients)
    check_dirichlet(alpha, min_size, seed)

    def partition(dataset: Dataset) -> Assignment:
        generator = generator_of(seed)
        rows = generator.permutation(len(dataset))

        def draw() -> np.ndarray:
            sizes = apportion(log_gamma(generator, alpha, num_clients), len(dataset))
            owners = np.empty(len(dataset), np.int64)
            owners[rows] = np.repeat(np.arange(num_clients), sizes)
            return owners

        return with_min_size(dataset, draw, num_clients, min_size)

    return partition
