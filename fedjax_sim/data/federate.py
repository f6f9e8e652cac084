"""The division of a data set among clients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_sim.data.dataset import Dataset
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.partition import Assignment, Partition


def federate(
    dataset: Dataset, partition: Partition | Assignment | Sequence[np.ndarray]
) -> FederatedData:
    """Gathers the rows of a data set client by client.

    Args:
      dataset: data set to divide.
      partition: a partition of this package, such as `iid(num_clients=100)`; any function from a
        `Dataset` to an `Assignment` or to one array of row numbers per client; or such an assignment
        or arrays directly. Rows that no client owns are left out.

    Returns:
      A `FederatedData` of NumPy arrays. Within a client, rows keep the order of the partition.

    Raises:
      ValueError: a row is out of range or owned twice, no client owns a row, or there are more rows
        than 32-bit offsets can count.
    """
    owned = partition(dataset) if callable(partition) else partition
    if not isinstance(owned, Assignment):
        owned = Assignment.from_lists(owned)
    _check_assignment(dataset, owned)
    return FederatedData(
        examples={name: column[owned.rows] for name, column in dataset.examples.items()},
        offsets=owned.offsets.astype(np.int32),
        client_ids=owned.client_ids,
        num_classes=dataset.num_classes,
        name=dataset.name,
    )


def _check_assignment(dataset: Dataset, owned: Assignment) -> None:
    limit = np.iinfo(np.int32).max
    if len(owned.rows) > limit:
        raise ValueError(
            f"the clients own {len(owned.rows)} rows; 32-bit offsets count to {limit}: take fewer."
        )
    if len(owned.rows) == 0:
        raise ValueError(f"none of the {len(owned.client_ids)} clients owns a row; at least one must.")
    outside = (owned.rows < 0) | (owned.rows >= len(dataset))
    if outside.any():
        raise ValueError(
            f"client {_owner_of(owned, outside)} owns row {owned.rows[np.argmax(outside)]}; "
            f"{dataset.name} has rows 0 to {len(dataset) - 1}."
        )
    times = np.bincount(owned.rows, minlength=len(dataset))
    if times.max() > 1:
        row = int(np.argmax(times > 1))
        raise ValueError(
            f"row {row} is owned {times[row]} times, first by client "
            f"{_owner_of(owned, owned.rows == row)}; a row has one owner: list it once."
        )


def _owner_of(owned: Assignment, marked: np.ndarray) -> Any:
    """Returns the id of the client that owns the first row marked True in `marked` `[total]`."""
    client = np.searchsorted(owned.offsets, np.argmax(marked), side="right") - 1
    return owned.client_ids[client]
