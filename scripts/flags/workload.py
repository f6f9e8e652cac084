"""Flags of the data, its partition, the model and the server, and the objects they define."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from absl import flags

import fedjax_sim as fs
from flags import calls, catalogue, devices, kinds, limits, plot, training

_COMPUTE_DTYPES = {"float32": lambda task: task, "bfloat16": fs.models.bfloat16}
_PARTITIONS = calls.Calls(
    "partition",
    calls.functions_of([fs.data], [fs.data.Partition], ("num_clients", "key")),
    elsewhere=("num_clients", "key"),
)
# Populations that are drawn, with their clients.
_POPULATIONS = calls.Calls(
    "dataset",
    {"synthetic": fs.data.synthetic, "graphical_model": fs.data.random_graphical_model},
    elsewhere=("num_clients", "num_learners", "examples_per_learner", "drift_at", "folder"),
)


def _read_dataset(text: str) -> None:
    if text.partition(":")[0] in _POPULATIONS.functions:
        _POPULATIONS.read(text)
    else:
        catalogue.check_dataset(text)


_DATASET = kinds.define(
    calls.Written(_read_dataset),
    "dataset",
    "mnist5k",
    "Data set: mnist5k (installed with the package); mnist, qmnist, fashion_mnist, emnist/balanced and "
    "the like, cifar10, shakespeare or messages (files in --data_dir); tfds:<name>; "
    "synthetic:num_examples=5000 (a population of --num_clients, by default with 20 examples each); "
    "graphical_model (streams for --algorithm=dynamic_averaging); or stored (written by "
    "fedjax_sim.data.synthetic or save_federated into train and test, subfolders of --data_dir).",
)
_DATA_DIR = kinds.define(
    kinds.TEXT, "data_dir", None, "Folder of the data set's files; for messages, the folder or the file."
)
MODEL = kinds.define(
    kinds.Word("model", catalogue.MODELS),
    "model",
    "2nn",
    "Model: 2nn, cnn, dropout_cnn or logistic for images; cifar for larger ones; char_lstm for "
    "shakespeare; word_lstm, or small_word_lstm for quick rounds, for messages and synthetic.",
)
_COMPUTE_DTYPE = kinds.define(
    kinds.Word("compute_dtype", _COMPUTE_DTYPES),
    "compute_dtype",
    "float32",
    "Type of the loss and its gradient: float32, or bfloat16 for more speed on accelerators. Weights, "
    "messages and metrics are float32.",
)
PARTITION = kinds.define(
    calls.Written(_PARTITIONS.read),
    "partition",
    "shards:2",
    "How examples are divided among clients: iid; lognormal:1.0 (IID, of sizes that vary by sigma); "
    "dirichlet:0.1 (the smaller alpha, the fewer labels each); shards:2 (sorted by label, so many "
    "pieces each); natural (the data set's own writers, roles or authors). Draws follow --seed, unless "
    "seed=3, say, is an argument. Ignored for data that comes with its clients. Known: "
    f"{_PARTITIONS.describe()}.",
)
_NUM_CLIENTS = kinds.define(
    kinds.COUNT,
    "num_clients",
    100,
    "N, number of clients. --partition=natural and --dataset=stored have as many as the data.",
)


class Workload(NamedTuple):
    """The clients' data, a test set if there is one, and the task to learn."""

    clients: fs.data.FederatedData
    test: fs.data.Dataset | fs.data.FederatedData | None
    task: fs.Task


def check(*, learners: bool = False) -> None:
    """Checks the flags of data and model, before any data is read.

    Args:
      learners: whether learners keep models of their own; only they can read streams.

    Raises:
      ValueError: a data set is unknown, or two flags contradict each other.
    """
    data = dataset_name()
    catalogue.check_model(MODEL.value, data)
    if data == "graphical_model" and not learners:
        raise ValueError(
            "--dataset=graphical_model is for scripts/train.py --algorithm=dynamic_averaging only"
        )
    if data == "stored" and _DATA_DIR.value is None:
        raise ValueError("--dataset=stored needs --data_dir, with subfolders train and test")
    if data == "synthetic":
        limits.check_population(_NUM_CLIENTS.value, population().arguments.get("num_examples"))
    if data not in catalogue.WITH_CLIENTS:
        catalogue.check_partition(_division(), data)
        _partition(0)


def check_training(
    rates: Sequence[float],
    num_rounds: int,
    works: Iterable[tuple[int, float, float]],
) -> None:
    """Checks that a run's rates and counts remain in range, before any data is read.

    Args:
      rates: client rates of the first round.
      num_rounds: maximum number of rounds of the run.
      works: `(E, B, C)` of each kind of round.

    Raises:
      ValueError: a rate grows beyond float32, or a round beyond what int32 counts.
    """
    limits.check_decay(training.lr_decay(), rates, num_rounds)
    # In other data, clients may be empty, or their number depends on the data.
    everybody_has_some = dataset_name() == "synthetic" or _division() in ("iid", "shards", "lognormal")
    for local_epochs, batch_size, fraction in works:
        clients = fs.participation.cohort_size(_NUM_CLIENTS.value, fraction) if everybody_has_some else 1
        limits.check_work(local_epochs, batch_size, clients)


def dataset_name() -> str:
    """Returns the name of the data set, without arguments."""
    name, _, _ = _DATASET.value.partition(":")
    return name if name in _POPULATIONS.functions else _DATASET.value


def population() -> calls.Call:
    """Returns the function that draws the population which --dataset names, and its arguments."""
    return _POPULATIONS.read(_DATASET.value)


def known_clients() -> int | None:
    """Returns the number of clients, or None where only the data tells."""
    if dataset_name() in _POPULATIONS.functions:
        return _NUM_CLIENTS.value
    return None if _division() == "natural" else _NUM_CLIENTS.value


def load(seed: int, make_streams: Callable[[int, int], fs.data.FederatedData] | None = None) -> Workload:
    """Loads the workload that the flags define, once `check` has passed.

    Args:
      seed: seed of the partition or of synthetic data, unless the flag gives another.
      make_streams: function from a number of learners and a seed to the data of
        --dataset=graphical_model.

    Raises:
      ValueError: the data is damaged, or does not suit a flag.
    """
    if dataset_name() == "graphical_model":
        clients, test = make_streams(_NUM_CLIENTS.value, seed), None
    else:
        clients, test = _load_clients(seed)
    if dataset_name() == "stored":
        catalogue.check_stored(MODEL.value, clients.examples)
    task = catalogue.MODELS[MODEL.value].make(clients.num_classes, clients.examples["x"].shape[1:])
    return Workload(clients, test, _COMPUTE_DTYPES[_COMPUTE_DTYPE.value](task))


def _load_clients(seed: int) -> tuple[fs.data.FederatedData, fs.data.Dataset | fs.data.FederatedData]:
    if dataset_name() == "synthetic":
        return population().make(num_clients=_NUM_CLIENTS.value, seed=seed)
    if dataset_name() == "stored":
        folder = pathlib.Path(_DATA_DIR.value)
        return fs.data.open_federated(folder / "train"), fs.data.open_federated(folder / "test")
    train, test = fs.data.load(_DATASET.value, data_dir=_DATA_DIR.value, **devices.unpacking())
    return fs.data.federate(train, _partition(seed)), test


def _partition(seed: int) -> fs.data.Partition:
    """Returns the partition that the flags define, with this seed unless --partition gives another."""
    owner = catalogue.OWNERS.get(dataset_name())
    offered = {"num_clients": _NUM_CLIENTS.value, "seed": seed, "key": owner}
    try:
        return _PARTITIONS.read(PARTITION.value).make(**offered)
    except ValueError as error:
        raise ValueError(f"--partition={PARTITION.value}: {error}") from None


def title(algorithm: str) -> str:
    """Returns the title of plots."""
    return f"{algorithm}, {MODEL.value} on {dataset_name()}, {_division()}"


def default_workdir(prefix: str, known: dict) -> str:
    """Returns a folder of runs/ named after the workload and all settings."""
    name = "-".join((prefix, dataset_name(), MODEL.value, _division()))
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return f"runs/{name.replace(':', '_').replace('/', '_')}-{digest[:6]}"


def settings(left_out: tuple[str, ...]) -> dict:
    """Returns the flags of the running script that identify its workdir.

    Args:
      left_out: names of flags that do not change results, in addition to --data_dir and the flags of
        plots and devices.
    """
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    left_out = {"data_dir", *plot.NAMES, *devices.NAMES, *left_out}
    return {flag.name: flag.value for flag in own if flag.name not in left_out}


def _division() -> str:
    """Returns how clients come about: the name of the partition."""
    if dataset_name() in catalogue.WITH_CLIENTS:
        return "natural"
    return _PARTITIONS.read(PARTITION.value).name
