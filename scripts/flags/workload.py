"""Flags of the data, its partition, the model and the server, and the objects they define."""

import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import optax
from absl import flags

import fedjax_sim as fs
from flags import catalogue, devices, kinds, limits, plot

_COMPUTE_DTYPES = {"float32": lambda task: task, "bfloat16": fs.models.bfloat16}
_SERVER_OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": functools.partial(optax.adam, b2=0.99, eps=1e-3),
    "yogi": functools.partial(optax.yogi, b2=0.99, eps=1e-3),
}
_PARTITIONS = {
    "iid": lambda n, seed: fs.data.iid(num_clients=n, seed=seed),
    "shards": lambda n, seed: fs.data.shards(
        num_clients=n, shards_per_client=_SHARDS_PER_CLIENT.value, seed=seed
    ),
    "dirichlet": lambda n, seed: fs.data.dirichlet(num_clients=n, alpha=_ALPHA.value, seed=seed),
    "lognormal": lambda n, seed: fs.data.lognormal(num_clients=n, sigma=_SIGMA.value, seed=seed),
    "natural": lambda n, seed: fs.data.natural(_PARTITION_KEY.value),
}

DATASET = flags.DEFINE_string(
    "dataset",
    "mnist5k",
    "Data set: mnist5k (installed with the package); mnist, qmnist, fashion_mnist, emnist/balanced and "
    "the like, cifar10, shakespeare or messages (files in --data_dir); tfds:<name>; synthetic (a "
    "population of --num_clients); graphical_model (streams for --algorithm=dynamic_averaging); or "
    "stored (written by fedjax_sim.data.synthetic or save_federated into train and test, subfolders of "
    "--data_dir).",
)
_DATA_DIR = kinds.define(kinds.TEXT, "data_dir", None, "Folder of the data set's files.")
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
    "Type of the loss and its gradient: float32 or bfloat16. Weights, messages and metrics are float32.",
)
PARTITION = kinds.define(
    kinds.Word("partition", _PARTITIONS),
    "partition",
    "shards",
    "How examples are divided among clients: iid; shards (sorted by label, --shards_per_client pieces "
    "each); dirichlet (--alpha); lognormal (IID of unequal sizes, --sigma); natural (--partition_key). "
    "Ignored for synthetic, graphical_model and stored, which come with their clients.",
)
_NUM_CLIENTS = kinds.define(
    kinds.COUNT, "num_clients", 100, "N, number of clients; ignored by --partition=natural."
)
_NUM_EXAMPLES = kinds.define(
    kinds.COUNT, "num_examples", None, "n, examples of --dataset=synthetic; by default 20 per client."
)
_SHARDS_PER_CLIENT = kinds.define(kinds.COUNT, "shards_per_client", 2, "Pieces per client.")
_ALPHA = kinds.define(
    kinds.POSITIVE, "alpha", 0.5, "Dirichlet concentration; if small, clients have few labels."
)
_SIGMA = kinds.define(kinds.NOT_NEGATIVE, "sigma", 1.0, "Spread of the lognormal client sizes.")
_PARTITION_KEY = kinds.define(
    kinds.TEXT,
    "partition_key",
    "writer",
    "Column that names the owner: writer for qmnist, role for shakespeare, author for messages.",
)
_PARTITION_SEED = kinds.define(
    kinds.SEED, "partition_seed", None, "Seed of the partition; by default the (first) seed of the run."
)
LR_DECAY = kinds.define(kinds.RATE, "lr_decay", 1.0, "Factor on the clients' rate after each round.")
_SERVER_LR = kinds.define(
    kinds.RATE, "server_lr", 1.0, "Rate of fed_avg's server; 1 replaces the model by the average."
)
_SERVER_OPTIMIZER = kinds.define(
    kinds.Word("server_optimizer", _SERVER_OPTIMIZERS),
    "server_optimizer",
    "sgd",
    "Optimizer of the server: sgd, momentum, adam or yogi.",
)
WEIGHTING = kinds.define(
    kinds.Word("weighting", ("examples", "uniform")),
    "weighting",
    "examples",
    "Weights of clients: examples (their number) or uniform.",
)
_SHUFFLE = kinds.define(
    kinds.Word("shuffle", ("each_epoch", "once", "never")),
    "shuffle",
    "each_epoch",
    "When clients shuffle their examples: each_epoch, once or never.",
)
# Newer flags identify a workdir only if they differ from the default, so that older workdirs match.
_NEWER = ("compute_dtype", "matmul_precision")


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
    data = DATASET.value
    catalogue.check_model(MODEL.value, data)
    if data == "graphical_model" and not learners:
        raise ValueError(
            "--dataset=graphical_model is for scripts/train.py --algorithm=dynamic_averaging only"
        )
    if data == "stored" and _DATA_DIR.value is None:
        raise ValueError("--dataset=stored needs --data_dir, with subfolders train and test")
    if data == "synthetic":
        limits.check_population(_NUM_CLIENTS.value, _NUM_EXAMPLES.value)
    if data not in catalogue.WITH_CLIENTS:
        catalogue.check_partition(PARTITION.value, _PARTITION_KEY.value, data)


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
    limits.check_decay(LR_DECAY.value, rates, num_rounds)
    # In other data, clients may be empty, or their number depends on the data.
    everybody_has_some = DATASET.value == "synthetic" or (
        DATASET.value not in catalogue.WITH_CLIENTS and PARTITION.value in ("iid", "shards", "lognormal")
    )
    for local_epochs, batch_size, fraction in works:
        clients = fs.participation.cohort_size(_NUM_CLIENTS.value, fraction) if everybody_has_some else 1
        limits.check_work(local_epochs, batch_size, clients)


def known_clients() -> int | None:
    """Returns the number of clients, or None where only the data tells."""
    natural = DATASET.value not in catalogue.WITH_CLIENTS and PARTITION.value == "natural"
    return None if DATASET.value == "stored" or natural else _NUM_CLIENTS.value


def load(seed: int, make_streams: Callable[[int, int], fs.data.FederatedData] | None = None) -> Workload:
    """Loads the workload that the flags define, once `check` has passed.

    Args:
      seed: seed of the partition or of synthetic data, unless --partition_seed gives another.
      make_streams: function from a number of learners and a seed to the data of
        --dataset=graphical_model.

    Raises:
      ValueError: the data is damaged, or does not suit a flag.
    """
    seed = seed if _PARTITION_SEED.value is None else _PARTITION_SEED.value
    if DATASET.value == "graphical_model":
        clients, test = make_streams(_NUM_CLIENTS.value, seed), None
    else:
        clients, test = _load_clients(seed)
    if DATASET.value == "stored":
        catalogue.check_stored(MODEL.value, clients.examples)
    task = catalogue.MODELS[MODEL.value].make(clients.num_classes, clients.examples["x"].shape[1:])
    return Workload(clients, test, _COMPUTE_DTYPES[_COMPUTE_DTYPE.value](task))


def _load_clients(seed: int) -> tuple[fs.data.FederatedData, fs.data.Dataset | fs.data.FederatedData]:
    if DATASET.value == "synthetic":
        return fs.data.synthetic(
            num_clients=_NUM_CLIENTS.value, num_examples=_NUM_EXAMPLES.value, seed=seed
        )
    if DATASET.value == "stored":
        folder = pathlib.Path(_DATA_DIR.value)
        return fs.data.open_federated(folder / "train"), fs.data.open_federated(folder / "test")
    partition = _PARTITIONS[PARTITION.value](_NUM_CLIENTS.value, seed)
    train, test = fs.data.load(DATASET.value, data_dir=_DATA_DIR.value, **devices.unpacking())
    return fs.data.federate(train, partition), test


def fed_avg(task: fs.Task, local_epochs: int, batch_size: float, client_lr: float) -> fs.Algorithm:
    """Returns Federated Averaging with the flags' server."""
    return fs.fed_avg(
        task,
        optax.sgd,
        server_optimizer(),
        local_epochs=local_epochs,
        batch_size=batch_size,
        client_lr=client_lr,
        server_lr=_SERVER_LR.value,
        lr_decay=LR_DECAY.value,
        weighting=WEIGHTING.value,
        shuffle=_SHUFFLE.value,
    )


def server_optimizer():
    """Returns the optimizer that --server_optimizer names."""
    return _SERVER_OPTIMIZERS[_SERVER_OPTIMIZER.value]


def title(algorithm: str) -> str:
    """Returns the title of plots."""
    return f"{algorithm}, {MODEL.value} on {DATASET.value}, {_division()}"


def default_workdir(prefix: str, known: dict) -> str:
    """Returns a folder of runs/ named after the workload and all settings."""
    name = "-".join((prefix, DATASET.value, MODEL.value, _division()))
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
    left_out |= {flag.name for flag in own if flag.name in _NEWER and flag.value == flag.default}
    return {flag.name: flag.value for flag in own if flag.name not in left_out}


def _division() -> str:
    return "natural" if DATASET.value in catalogue.WITH_CLIENTS else PARTITION.value
