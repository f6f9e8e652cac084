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
    _check_at_least_one(num_clients=num_clients)
    check_seed(seed)

    def partition(dataset: Dataset) -> Assignment:
        _check_enough_rows(dataset, num_clients, f"num_clients={num_clients}")
        rows = _generator(seed).permutation(len(dataset))
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
    _check_at_least_one(num_clients=num_clients, shards_per_client=shards_per_client)
    check_seed(seed)
    num_shards = num_clients * shards_per_client

    def partition(dataset: Dataset) -> Assignment:
        labels = _row_labels(dataset)
        needs = f"num_clients * shards_per_client = {num_shards} shards"
        _check_enough_rows(dataset, num_shards, needs)
        pieces = np.array_split(np.argsort(labels, kind="stable"), num_shards)
        hands = _generator(seed).permutation(num_shards).reshape(num_clients, shards_per_client)
        return Assignment.from_lists([np.concatenate([pieces[i] for i in hand]) for hand in hands])

    return partition


def dirichlet(*, num_clients: int, alpha: float, seed: int = 0) -> Partition:
    """Deals each label's rows out in proportions drawn from a symmetric Dirichlet(alpha).

    Yurochkin, Agarwal, Ghosh, Greenewald, Hoang and Khazaeni, "Bayesian Nonparametric Federated
    Learning of Neural Networks", ICML 2019, https://arxiv.org/abs/1905.12022. A small `alpha` gives
    nearly all of a label to one client; a large one shares it evenly. Every row has an owner; sizes
    vary and clients may be empty. (Hsu, Qi and Brown, https://arxiv.org/abs/1909.06335, instead draw
    label proportions for each client, with equal sizes.)

    Raises:
      ValueError: `num_clients` is below 1, `alpha` is not finite and positive or, when applied,
        labels are not `[n]`.
    """
    _check_at_least_one(num_clients=num_clients)
    check_seed(seed)
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha is {alpha}; wanted a finite number above 0 (for an even split use iid)."
        )

    def partition(dataset: Dataset) -> Assignment:
        labels, generator = _row_labels(dataset), _generator(seed)
        owners = np.empty(len(dataset), np.int64)
        for label in range(dataset.num_classes):
            rows = generator.permutation(np.flatnonzero(labels == label))
            sizes = apportion(_log_gamma(generator, alpha, num_clients), len(rows))
            owners[rows] = np.repeat(np.arange(num_clients), sizes)
        return _by_owner(owners, np.arange(num_clients))

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
    _check_at_least_one(num_clients=num_clients)
    check_seed(seed)
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma is {sigma}; wanted a finite number of at least 0.")

    def partition(dataset: Dataset) -> Assignment:
        _check_enough_rows(dataset, num_clients, f"num_clients={num_clients}")
        generator = _generator(seed)
        rows = generator.permutation(len(dataset))
        draws = generator.standard_normal(num_clients)
        # Relative to the largest draw, so that no sigma makes the exponential overflow.
        log_weights = _scaled(draws - draws.max(), sigma)
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
        return _by_owner(*_numbered(dataset.keys[key]))

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


def _by_owner(owners: np.ndarray, client_ids: np.ndarray) -> Assignment:
    """Returns the assignment that gives row i to client `owners[i]`; `owners`: `[n]`."""
    sizes = np.bincount(owners, minlength=len(client_ids))
    return Assignment(np.argsort(owners, kind="stable"), _offsets(sizes), client_ids)


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def apportion(log_weights: np.ndarray, total: int) -> np.ndarray:
    """Returns integers `[N]` that sum to `total`, proportional to `exp(log_weights)` up to rounding."""
    shares = np.cumsum(np.exp(log_weights - log_weights.max()))
    cuts = np.rint(shares / shares[-1] * total).astype(np.int64)
    return np.diff(cuts, prepend=0)


def _log_gamma(generator: np.random.Generator, alpha: float, num_clients: int) -> np.ndarray:
    """Draws logarithms `[N]` of Gamma(alpha) variables, up to a common constant.

    Normalised, such draws are Dirichlet(alpha). Gamma(alpha) is Gamma(alpha + 1) times U^(1/alpha)
    with U uniform (Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS
    26(3), 2000, section 6). Without logarithms, draws underflow for small alpha and shares are 0/0.
    """
    minus_log_u = generator.standard_exponential(num_clients)
    # Relative to the smallest, so that at least one logarithm is finite for every alpha.
    log_boosts = -_scaled(minus_log_u - minus_log_u.min(), 1 / max(alpha, np.finfo(float).tiny))
    return np.log(generator.standard_gamma(alpha + 1, num_clients)) + log_boosts


def _scaled(values: np.ndarray, factor: float) -> np.ndarray:
    """Returns `values * factor`, which may be infinite."""
    with np.errstate(over="ignore"):
        return values * factor


def _generator(seed: int) -> np.random.Generator:
    # PCG64 by name: default_rng may change its algorithm between versions of NumPy.
    return np.random.Generator(np.random.PCG64(seed))


def _row_labels(dataset: Dataset) -> np.ndarray:
    labels = dataset.examples["y"]
    if labels.ndim != 1:
        raise ValueError(
            f"{dataset.name}: labels have shape {labels.shape}; dividing by label needs [n], one "
            "per row: use iid, lognormal or natural instead."
        )
    return labels


def _check_at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; wanted an integer of at least 1.")


def _check_enough_rows(dataset: Dataset, wanted: int, what: str) -> None:
    if wanted > len(dataset):
        raise ValueError(
            f"{dataset.name} has {len(dataset)} rows and {what} need at least one row each: ask "
            "for fewer, or load more data."
        )
