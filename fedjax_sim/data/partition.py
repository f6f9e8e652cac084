"""Partitions: ways of dividing the rows of a `Dataset` among clients.

Each factory returns a `Partition`, a function from a data set to an `Assignment`. Its draws come
from a PCG64 generator with the given seed, so they are reproducible.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from fedjax_sim.core.checks import check_seed
from fedjax_sim.data.dataset import Dataset
from fedjax_sim.data.draws import apportion, generator_of, log_gamma, scaled

_MOST_DRAWS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Assignment:
    """The rows that each of `N` clients owns.

    Attributes:
      rows: `[total]` int64, row numbers, client after client.
      offsets: `[N + 1]` int64; client k owns `rows[offsets[k]:offsets[k + 1]]`.
      client_ids: `[N]` integers or strings, the data set's name for each client.

    Raises:
      ValueError: the three arrays are inconsistent.
    """

    rows: np.ndarray
    offsets: np.ndarray
    client_ids: np.ndarray

    def __post_init__(self):
        offsets = self.offsets
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(self.rows):
            raise ValueError(
                f"offsets are {offsets}; wanted at least one client, from 0 to the number of rows, "
                f"{len(self.rows)}."
            )
        if (np.diff(offsets) < 0).any():
            raise ValueError(
                f"offsets fall at client {np.argmax(np.diff(offsets) < 0)}; wanted ascending ones."
            )
        if len(self.client_ids) != len(offsets) - 1:
            raise ValueError(
                f"there are {len(self.client_ids)} client_ids for {len(offsets) - 1} clients; give "
                "one for each."
            )

    @classmethod
    def from_lists(cls, lists: Sequence[np.ndarray], client_ids: Sequence | None = None) -> "Assignment":
        """Makes an assignment from one array of row numbers per client.

        Args:
          lists: N integer arrays `[n_k]`, some possibly empty.
          client_ids: names of the clients `[N]`, by default 0 to N - 1.

        Raises:
          ValueError: there are no clients, an array is not integers `[n_k]`, or the number of
            `client_ids` is not N.
        """
        arrays = [np.asarray(rows) for rows in lists]
        if not arrays:
            raise ValueError("there are no clients; give at least one array of row numbers.")
        for client, rows in enumerate(arrays):
            if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
                raise ValueError(
                    f"the rows of client {client} are {rows.dtype} of shape {rows.shape}; wanted "
                    "integers of shape [n_k] (for a boolean mask: np.flatnonzero(mask))."
                )
        rows = np.concatenate([rows.astype(np.int64) for rows in arrays])
        ids = np.arange(len(arrays)) if client_ids is None else np.asarray(client_ids)
        return cls(rows, _offsets([len(rows) for rows in arrays]), ids)


Partition = Callable[[Dataset], Assignment]


def iid(*, num_clients: int, seed: int = 0) -> Partition:
    """Shuffles the rows and deals them out evenly: sizes differ by at most one.

    Raises:
      ValueError: `num_clients` is below 1 or, when applied, exceeds the number of rows.
    """
    check_at_least_one(num_clients=num_clients)
    check_seed(seed)

    def partition(dataset: Dataset) -> Assignment:
        check_enough_rows(dataset, num_clients, f"num_clients={num_clients}")
        rows = generator_of(seed).permutation(len(dataset))
        return Assignment.from_lists(np.array_split(rows, num_clients))

    return partition


def shards(*, num_clients: int, shards_per_client: int = 2, seed: int = 0) -> Partition:
    """Sorts the rows by label, cuts them into shards and deals each client a few at random.

    The pathological non-IID partition of McMahan, Moore, Ramage, Hampson and Agüera y Arcas,
    "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    https://arxiv.org/abs/1602.05629, section 3: 200 shards of 300 digits, 2 for each of 100
    clients, so most clients hold two digits. Shard sizes differ by at most one.

    Raises:
      ValueError: a setting is below 1 or, when applied, labels are not `[n]` or there are more
        shards than rows.
    """
    check_at_least_one(num_clients=num_clients, shards_per_client=shards_per_client)
    check_seed(seed)
    num_shards = num_clients * shards_per_client

    def partition(dataset: Dataset) -> Assignment:
        labels = row_labels(dataset)
        needs = f"num_clients * shards_per_client = {num_shards} shards"
        check_enough_rows(dataset, num_shards, needs)
        pieces = np.array_split(np.argsort(labels, kind="stable"), num_shards)
        hands = generator_of(seed).permutation(num_shards).reshape(num_clients, shards_per_client)
        return Assignment.from_lists([np.concatenate([pieces[i] for i in hand]) for hand in hands])

    return partition


def dirichlet(*, num_clients: int, alpha: float, min_size: int = 0, seed: int = 0) -> Partition:
    """Deals each label's rows out in proportions drawn from a symmetric Dirichlet(alpha).

    Yurochkin, Agarwal, Ghosh, Greenewald, Hoang and Khazaeni, "Bayesian Nonparametric Federated
    Learning of Neural Networks", ICML 2019, https://arxiv.org/abs/1905.12022. A small `alpha` gives
    nearly all of a label to one client; a large one shares it evenly. Every row has an owner; sizes
    vary and clients may be empty. (Hsu, Qi and Brown, https://arxiv.org/abs/1909.06335, instead draw
    label proportions for each client, with equal sizes.)

    Everything is drawn again, up to 1,000 times, until each client has `min_size` rows. The code of
    NIID-Bench, https://github.com/Xtra-Computing/NIID-Bench, does so with 10 rows. It also gives no
    further label to clients that already have n / N rows, which this partition does not.

    Raises:
      ValueError: `num_clients` is below 1, `alpha` is not finite and positive, `min_size` is no integer
        of at least 0 or, when applied, labels are not `[n]` or no draw gives each client `min_size`.
    """
    check_at_least_one(num_clients=num_clients)
    check_dirichlet(alpha, min_size, seed)

    def partition(dataset: Dataset) -> Assignment:
        labels, generator = row_labels(dataset), generator_of(seed)
        by_label = [np.flatnonzero(labels == label) for label in range(dataset.num_classes)]

        def draw() -> np.ndarray:
            owners = np.empty(len(dataset), np.int64)
            for rows in map(generator.permutation, by_label):
                sizes = apportion(log_gamma(generator, alpha, num_clients), len(rows))
                owners[rows] = np.repeat(np.arange(num_clients), sizes)
            return owners

        return with_min_size(dataset, draw, num_clients, min_size)

    return partition


def lognormal(*, num_clients: int, sigma: float, seed: int = 0) -> Partition:
    """Deals out shuffled rows in sizes proportional to draws from LogNormal(0, sigma).

    The unbalanced IID partition of Acar, Zhao, Matas, Mattina, Whatmough and Saligrama, "Federated
    Learning Based on Dynamic Regularization", ICLR 2021, https://arxiv.org/abs/2111.04263. Every
    client gets one row first, then its share of the rest. With `sigma` 0 this is the even split of
    `iid`.

    Raises:
      ValueError: `num_clients` is below 1, `sigma` is negative or not finite or, when applied, there
        are more clients than rows.
    """
    check_at_least_one(num_clients=num_clients)
    check_seed(seed)
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma is {sigma}; wanted a finite number of at least 0.")

    def partition(dataset: Dataset) -> Assignment:
        check_enough_rows(dataset, num_clients, f"num_clients={num_clients}")
        generator = generator_of(seed)
        rows = generator.permutation(len(dataset))
        draws = generator.standard_normal(num_clients)
        # Relative to the largest draw, so that no sigma makes the exponential overflow.
        log_weights = scaled(draws - draws.max(), sigma)
        sizes = 1 + apportion(log_weights, len(dataset) - num_clients)
        return Assignment.from_lists(np.split(rows, np.cumsum(sizes)[:-1]))

    return partition


def natural(key: str) -> Partition:
    """Gives each distinct value of a key column, such as `"writer"`, its own client.

    `client_ids` are the sorted values; each client's rows keep their order.

    Raises:
      ValueError: when applied, the data set has no such key.
    """

    def partition(dataset: Dataset) -> Assignment:
        if key not in dataset.keys:
            raise ValueError(
                f"{dataset.name} has no key {key!r}; its keys are {sorted(dataset.keys)}: load a "
                "data set that has one, such as 'qmnist', or give keys= to from_arrays."
            )
        return by_owner(*_numbered(dataset.keys[key]))

    return partition


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index of each of `values` `[n]` among the distinct ones, and these in order."""
    if values.dtype.kind != "O":
        distinct, numbers = np.unique(values, return_inverse=True)
        return numbers, distinct
    # Hashed, since NumPy would sort all n Python strings.
    distinct = sorted(set(values))
    number_of = {value: number for number, value in enumerate(distinct)}
    numbers = np.fromiter(map(number_of.__getitem__, values), np.int64, len(values))
    return numbers, np.array(distinct, object)


def by_owner(owners: np.ndarray, client_ids: np.ndarray) -> Assignment:
    """Returns the assignment that gives row i to client `owners[i]`; `owners`: `[n]`."""
    sizes = np.bincount(owners, minlength=len(client_ids))
    return Assignment(np.argsort(owners, kind="stable"), _offsets(sizes), client_ids)


def with_min_size(
    dataset: Dataset, draw: Callable[[], np.ndarray], num_clients: int, min_size: int
) -> Assignment:
    """Draws owners `[n]` until each client has at least `min_size` rows.

    Raises:
      ValueError: there are too few rows, or none of many draws is good.
    """
    if num_clients * min_size > len(dataset):
        raise ValueError(
            f"{dataset.name} has {len(dataset)} rows, too few to give each of {num_clients} clients "
            f"min_size={min_size}: ask for fewer clients or a smaller min_size."
        )
    smallest = 0
    for _ in range(_MOST_DRAWS):
        owners = draw()
        size = int(np.bincount(owners, minlength=num_clients).min())
        if size >= min_size:
            return by_owner(owners, np.arange(num_clients))
        smallest = max(smallest, size)
    raise ValueError(
        f"{dataset.name}: in {_MOST_DRAWS} draws, the smallest client had {smallest} rows at best; "
        f"wanted min_size={min_size}: ask for a larger alpha, fewer of the {num_clients} clients, or a "
        "smaller min_size."
    )


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def row_labels(dataset: Dataset) -> np.ndarray:
    """Returns the labels `[n]`.

    Raises:
      ValueError: there are several labels per row, or floats.
    """
    labels = dataset.examples["y"]
    if labels.dtype.kind == "f":
        raise ValueError(
            f"{dataset.name}: 'y' holds floats, and dividing by label needs integer labels; use iid, "
            "lognormal or natural instead."
        )
    if labels.ndim != 1:
        raise ValueError(
            f"{dataset.name}: labels have shape {labels.shape}; dividing by label needs [n], one "
            "per row: use iid, lognormal or natural instead."
        )
    return labels


def check_dirichlet(alpha: float, min_size: int, seed: int) -> None:
    """Checks the settings of partitions that draw from a Dirichlet distribution.

    Raises:
      ValueError: a setting is out of range.
    """
    check_seed(seed)
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha is {alpha}; wanted a finite number above 0 (for an even split use iid)."
        )
    if not isinstance(min_size, int | np.integer) or min_size < 0:
        raise ValueError(f"min_size is {min_size!r}; wanted an integer of at least 0.")


def check_at_least_one(**settings: int) -> None:
    """Checks settings that count something.

    Raises:
      ValueError: a setting is no integer of at least 1.
    """
    for name, value in settings.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; wanted an integer of at least 1.")


def check_enough_rows(dataset: Dataset, wanted: int, what: str) -> None:
    """Refuses a data set with fewer than `wanted` rows, for which `what` asks.

    Raises:
      ValueError: there are too few rows.
    """
    if wanted > len(dataset):
        raise ValueError(
            f"{dataset.name} has {len(dataset)} rows and {what} need at least one row each: ask "
            "for fewer, or load more data."
        )
