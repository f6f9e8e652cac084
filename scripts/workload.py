"""Flags of what is trained on whose data, and what is made of them."""

import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import axes
import machine
import optax
from absl import flags

import fedjax_sim as fs

DATASET = flags.DEFINE_string(
    "dataset",
    "mnist5k",
    "mnist5k (comes with the installation); mnist, qmnist, cifar10, shakespeare or messages (files in "
    "--data_dir); tfds:<name>; synthetic (a population of --num_clients); graphical_model (streams of "
    "--algorithm=dynamic_averaging); or stored (what fedjax_sim.data.synthetic or save_federated wrote "
    "into train and test, subfolders of --data_dir).",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data set's files.")
MODEL = flags.DEFINE_string(
    "model",
    "2nn",
    "2nn, cnn, dropout_cnn or logistic for images; cifar for larger ones; char_lstm for shakespeare; "
    "word_lstm, or small_word_lstm for quick rounds, for messages and synthetic.",
)
_COMPUTE_DTYPE = flags.DEFINE_string(
    "compute_dtype",
    "float32",
    "Of the loss and its gradient: float32 or bfloat16. Weights, messages and metrics are float32.",
)
PARTITION = flags.DEFINE_string(
    "partition",
    "shards",
    "Who owns which examples: iid; shards (sorted by label, --shards_per_client pieces each); "
    "dirichlet (--alpha); lognormal (IID of unequal sizes, --sigma); natural (--partition_key). Ignored "
    "for synthetic, graphical_model and stored, which come with their clients.",
)
_NUM_CLIENTS = flags.DEFINE_integer("num_clients", 100, "N; ignored by --partition=natural.")
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", None, "n of --dataset=synthetic; by default 20 for each client."
)
_SHARDS_PER_CLIENT = flags.DEFINE_integer("shards_per_client", 2, "Pieces each client receives.")
_ALPHA = flags.DEFINE_float("alpha", 0.5, "Dirichlet concentration; small means few labels each.")
_SIGMA = flags.DEFINE_float("sigma", 1.0, "Spread of the lognormal client sizes.")
_PARTITION_KEY = flags.DEFINE_string(
    "partition_key",
    "writer",
    "Column that names the owner: writer of qmnist, role of shakespeare, author of messages.",
)
_PARTITION_SEED = flags.DEFINE_integer(
    "partition_seed", None, "Fixes who owns what; by default the (first) seed of the run."
)
LR_DECAY = flags.DEFINE_float("lr_decay", 1.0, "Multiplies the clients' rate after each round.")
_SERVER_LR = flags.DEFINE_float(
    "server_lr", 1.0, "Rate of fed_avg's server; 1 replaces the model by the average."
)
_SERVER_OPTIMIZER = flags.DEFINE_string("server_optimizer", "sgd", "sgd, momentum, adam or yogi.")
WEIGHTING = flags.DEFINE_string("weighting", "examples", "Of clients: examples or uniform.")
_SHUFFLE = flags.DEFINE_string("shuffle", "each_epoch", "each_epoch, once or never.")
# Flags that came later count where they say something, so that older workdirs are recognised.
_NEWER = ("compute_dtype", "matmul_precision")

_MODELS = {
    "2nn": fs.models.mnist_2nn,
    "cnn": fs.models.mnist_cnn,
    "dropout_cnn": fs.models.dropout_cnn,
    "logistic": fs.models.logistic_regression,
    "cifar": fs.models.cifar_cnn,
    "char_lstm": lambda symbols, shape: fs.models.char_lstm(symbols, shape[0]),
    "word_lstm": lambda symbols, shape: fs.models.word_lstm(symbols, shape[0]),
    "small_word_lstm": lambda symbols, shape: fs.models.language_model(
        fs.models.StackedLSTM(symbols, embedding=16, units=32, layers=1), shape[0], padding=0, unknown=1
    ),
}
_COMPUTE_DTYPES = {"float32": lambda task: task, "bfloat16": fs.models.bfloat16}
# Data sets of symbols, and the models that know what their padding is; all others are images.
_WORD_MODELS = ("word_lstm", "small_word_lstm")
_MODELS_OF_SYMBOLS = {
    "shakespeare": ("char_lstm",),
    "messages": _WORD_MODELS,
    "synthetic": _WORD_MODELS,
}
_SERVER_OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": functools.partial(optax.adam, b2=0.99, eps=1e-3),
    "yogi": functools.partial(optax.yogi, b2=0.99, eps=1e-3),
}


class Workload(NamedTuple):
    """Data of clients, a test set if there is one, and the task that is learned on them."""

    clients: fs.data.FederatedData
    test: fs.data.Dataset | fs.data.FederatedData | None
    task: fs.Task


def load(seed: int, make_streams: Callable[[int, int], fs.data.FederatedData] | None = None) -> Workload:
    """Makes what the flags say; names are checked before any data is read.

    Args:
      seed: of the partition or of synthetic data, unless --partition_seed gives another.
      make_streams: from a number of learners and a seed to the data of --dataset=graphical_model; None
        where there are no learners.

    Raises:
      ValueError: a flag has no such value.
    """
    model = fs.choose("model", MODEL.value, _MODELS)
    in_dtype = fs.choose("compute_dtype", _COMPUTE_DTYPE.value, _COMPUTE_DTYPES)
    fitting = _MODELS_OF_SYMBOLS.get(DATASET.value)
    if fitting is not None and MODEL.value not in fitting:
        wanted = " or ".join(fitting)
        raise ValueError(f"--dataset={DATASET.value} wants --model={wanted}; got {MODEL.value}")
    meant = [data for data, names in _MODELS_OF_SYMBOLS.items() if MODEL.value in names]
    if fitting is None and meant and DATASET.value != "stored":
        raise ValueError(
            f"--model={MODEL.value} reads symbols, not the images of {DATASET.value}; wanted "
            f"--dataset={' or '.join(meant)}"
        )
    seed = seed if _PARTITION_SEED.value is None else _PARTITION_SEED.value
    if DATASET.value == "graphical_model":
        if make_streams is None:
            raise ValueError(
                "--dataset=graphical_model is for scripts/train.py --algorithm=dynamic_averaging only"
            )
        clients, test = make_streams(_NUM_CLIENTS.value, seed), None
    else:
        clients, test = _load_clients(seed)
    task = model(clients.num_classes, clients.examples["x"].shape[1:])
    return Workload(clients, test, in_dtype(task))


def _load_clients(seed: int) -> tuple[fs.data.FederatedData, fs.data.Dataset | fs.data.FederatedData]:
    if DATASET.value == "synthetic":
        return fs.data.synthetic(
            num_clients=_NUM_CLIENTS.value, num_examples=_NUM_EXAMPLES.value, seed=seed
        )
    if DATASET.value == "stored":
        if _DATA_DIR.value is None:
            raise ValueError("--dataset=stored wants --data_dir, with subfolders train and test")
        folder = pathlib.Path(_DATA_DIR.value)
        return fs.data.open_federated(folder / "train"), fs.data.open_federated(folder / "test")
    partition = _partition(seed)
    train, test = fs.data.load(DATASET.value, data_dir=_DATA_DIR.value)
    return fs.data.federate(train, partition), test


def fed_avg(task: fs.Task, local_epochs: int, batch_size: float, client_lr: float) -> fs.Algorithm:
    """Federated Averaging with the flags' server."""
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
    """The optimizer that --server_optimizer names."""
    return fs.choose("server_optimizer", _SERVER_OPTIMIZER.value, _SERVER_OPTIMIZERS)


def title(algorithm: str) -> str:
    """Of pictures."""
    return f"{algorithm}, {MODEL.value} on {DATASET.value}, {_division()}"


def default_workdir(prefix: str, known: dict) -> str:
    """A folder of runs/ named by the workload and by all settings."""
    name = "-".join((prefix, DATASET.value, MODEL.value, _division()))
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return f"runs/{name.replace(':', '_').replace('/', '_')}-{digest[:6]}"


def settings(left_out: tuple[str, ...]) -> dict:
    """All flags of the script that runs, by which a workdir recognises it.

    Args:
      left_out: those that do not change results. Where the data lies is none of them, nor what
        pictures are drawn over.
    """
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    left_out = {"data_dir", *axes.NAMES, *machine.NAMES, *left_out}
    left_out |= {flag.name for flag in own if flag.name in _NEWER and flag.value == flag.default}
    return {flag.name: flag.value for flag in own if flag.name not in left_out}


def _division() -> str:
    own = ("synthetic", "graphical_model", "stored")
    return "natural" if DATASET.value in own else PARTITION.value


def _partition(seed: int) -> fs.data.Partition:
    num_clients = _NUM_CLIENTS.value
    factories = {
        "iid": lambda: fs.data.iid(num_clients=num_clients, seed=seed),
        "shards": lambda: fs.data.shards(
            num_clients=num_clients, shards_per_client=_SHARDS_PER_CLIENT.value, seed=seed
        ),
        "dirichlet": lambda: fs.data.dirichlet(num_clients=num_clients, alpha=_ALPHA.value, seed=seed),
        "lognormal": lambda: fs.data.lognormal(num_clients=num_clients, sigma=_SIGMA.value, seed=seed),
        "natural": lambda: fs.data.natural(_PARTITION_KEY.value),
    }
    return fs.choose("partition", PARTITION.value, factories)()
