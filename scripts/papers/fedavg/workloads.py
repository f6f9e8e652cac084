"""Workloads of the FedAvg paper: its models, their data, and the clients that own it.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3.
"""

import functools
import types
from collections.abc import Callable
from typing import NamedTuple

from fedjax_sim import Task
from fedjax_sim.data import Partition, iid, natural, shards
from fedjax_sim.models import char_lstm, cifar_cnn, mnist_2nn, mnist_cnn, word_lstm

IID, NON_IID = "iid", "noniid"


class Workload(NamedTuple):
    """A model and the data that it learns from.

    Attributes:
      title: title of the model.
      dataset: name for `data.load`.
      task: function that makes the task.
      num_clients: `K`, or None if the data decides.
      num_examples: `n`, of all clients together, or None if the data decides.
      non_iid: function from a seed to the partition "noniid"; None if the paper has none.
      non_iid_title: title of that partition.
      cohort_size: clients of a round, if the paper fixes their number instead of `C`.
      test_rows: number of test rows to evaluate on, drawn at random once; None for all.
      note: what a reader of its tables should know.
    """

    title: str
    dataset: str
    task: Callable[[], Task]
    num_clients: int | None
    num_examples: int | None
    non_iid: Callable[[int], Partition] | None = None
    non_iid_title: str = ""
    cohort_size: int | None = None
    test_rows: int | None = None
    note: str = ""

    def partition(self, name: str, seed: int) -> Partition:
        """Returns the partition "iid" or "noniid"; `seed` decides what the data does not."""
        return iid(num_clients=self.num_clients, seed=seed) if name == IID else self.non_iid(seed)

    def panel_title(self, partition: str) -> str:
        """Returns the title of a partition in plots."""
        return "IID" if partition == IID else self.non_iid_title


def _two_shards(seed: int) -> Partition:
    return shards(num_clients=100, shards_per_client=2, seed=seed)


_mnist = functools.partial(
    Workload,
    dataset="mnist",
    num_clients=100,
    num_examples=60_000,
    non_iid=_two_shards,
    non_iid_title="non-IID, two digits each",
)
# An example of Shakespeare is a line. `data/sources/shakespeare.py` finds 85,113, with exactly the
# paper's number of characters. The paper prints no number of lines, but its updates u agree with it.
WORKLOADS = types.MappingProxyType(
    {
        "2nn": _mnist(
            title="2NN",
            task=mnist_2nn,
            note="The paper does not say how it scales inputs; here they lie in [0, 1]. In [-0.5, 0.5], "
            "as in TensorFlow's example with the layers of the paper's CNN, FedSGD takes 1459 rounds, "
            "E=1/B=10 takes 74 to 79, and with two digits each 437 to 473: see "
            "benchmarks/initialisation.py.",
        ),
        "cnn": _mnist(title="CNN", task=mnist_cnn),
        "lstm": Workload(
            title="LSTM",
            dataset="shakespeare",
            task=char_lstm,
            num_clients=1146,
            num_examples=85_113,
            non_iid=lambda seed: natural("role"),
            non_iid_title="non-IID, a role of a play each",
        ),
        "cifar": Workload(
            title="CIFAR-10 CNN",
            dataset="cifar10",
            task=cifar_cnn,
            num_clients=100,
            num_examples=50_000,
        ),
        # The paper's posts are not public, so clients and examples come from the messages given.
        "word": Workload(
            title="Word LSTM",
            dataset="messages",
            task=word_lstm,
            num_clients=None,
            num_examples=None,
            non_iid=lambda seed: natural("author"),
            non_iid_title="authors",
            cohort_size=200,
            test_rows=10_000,
        ),
    }
)
