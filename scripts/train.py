"""Trains one model by federated learning, in one compiled program a block of rounds.

With no flags: 100 clients with two digits each, by Federated Averaging, in well under a minute.

  python scripts/train.py
  python scripts/train.py --partition=dirichlet --alpha=0.1 --local_epochs=5
  python scripts/train.py --dataset=mnist --data_dir=DIR --model=cnn --partition=iid \
      --local_epochs=5 --client_lr=0.215 --target_accuracy=0.99 --workdir=runs/cnn
  python scripts/train.py --algorithm=fed_sgd --client_lr=0.5 --num_rounds=1000

The workdir receives config.json, metrics.jsonl (a row per evaluation), curve.png, clients.png,
checkpoints/, tensorboard/ (where tensorboardX is installed) and summary.json. The same command on
the same workdir continues an interrupted run and ends as if it had not been interrupted.
"""

import functools
import hashlib
import json
import math
import pathlib
import sys

import jax
import optax
from absl import app, flags, logging

import fedjax_sim as fs

_DATASET = flags.DEFINE_string(
    "dataset",
    "mnist5k",
    "mnist5k (comes with the installation), mnist or qmnist (files in --data_dir), or tfds:<name>.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data set's files.")
_MODEL = flags.DEFINE_string("model", "2nn", "2nn, cnn or logistic.")
_PARTITION = flags.DEFINE_string(
    "partition",
    "shards",
    "Who owns which examples: iid; shards (sorted by label, --shards_per_client pieces each); "
    "dirichlet (--alpha); lognormal (IID of unequal sizes, --sigma); natural (--partition_key).",
)
_NUM_CLIENTS = flags.DEFINE_integer("num_clients", 100, "N; ignored by --partition=natural.")
_SHARDS_PER_CLIENT = flags.DEFINE_integer("shards_per_client", 2, "Pieces each client receives.")
_ALPHA = flags.DEFINE_float("alpha", 0.5, "Dirichlet concentration; small means few labels each.")
_SIGMA = flags.DEFINE_float("sigma", 1.0, "Spread of the lognormal client sizes.")
_PARTITION_KEY = flags.DEFINE_string("partition_key", "writer", "Column that names the owner.")
_ALGORITHM = flags.DEFINE_string(
    "algorithm", "fed_avg", "fed_avg, fed_sgd, or sgd (sequential, on all clients' data pooled)."
)
_CLIENT_FRACTION = flags.DEFINE_float(
    "client_fraction", 0.1, "C; max(C * N, 1) clients take part in a round."
)
_LOCAL_EPOCHS = flags.DEFINE_integer("local_epochs", 5, "E, epochs a client trains in a round.")
_BATCH_SIZE = flags.DEFINE_string("batch_size", "10", "B, examples in a local batch, or inf.")
_CLIENT_LR = flags.DEFINE_float("client_lr", 0.1, "Learning rate of the clients.")
_LR_DECAY = flags.DEFINE_float("lr_decay", 1.0, "Multiplies the clients' rate after each round.")
_SERVER_LR = flags.DEFINE_float(
    "server_lr", 1.0, "Rate of fed_avg's server; 1 replaces the model by the average."
)
_SERVER_OPTIMIZER = flags.DEFINE_string("server_optimizer", "sgd", "sgd, momentum, adam or yogi.")
_WEIGHTING = flags.DEFINE_string("weighting", "examples", "Of clients: examples or uniform.")
_SHUFFLE = flags.DEFINE_string("shuffle", "each_epoch", "each_epoch, once or never.")
_NUM_ROUNDS = flags.DEFINE_integer("num_rounds", 200, "R, communication rounds at most.")
_EVAL_EVERY = flags.DEFINE_integer("eval_every", 1, "Rounds between evaluations.")
_EVAL_TRAIN = flags.DEFINE_bool("eval_train", False, "Evaluate on the whole train set as well.")
_EVAL_CLIENTS = flags.DEFINE_bool("eval_clients", False, "Report how accuracy varies over clients.")
_TARGET_ACCURACY = flags.DEFINE_float(
    "target_accuracy", None, "Stop at the first evaluation with this test accuracy, such as 0.97."
)
_SEED = flags.DEFINE_integer("seed", 0, "Fixes the partition and the run.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; by default a folder of runs/ named by the flags."
)
_CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds", 10.0, "The least time between two checkpoints; the last is always written."
)
_LANES = flags.DEFINE_integer("lanes", None, "Clients a device trains side by side.")

# Where files lie and when the state is saved do not change results; the clients' data has a digest.
_NOT_SETTINGS = ("data_dir", "workdir", "checkpoint_seconds")
# What an algorithm has no use for: FedSGD is one epoch of one batch, the baseline has no server.
_UNUSED = {
    "fed_avg": (),
    "fed_sgd": ("local_epochs", "batch_size", "shuffle", "server_lr"),
    "sgd": ("shuffle", "server_lr", "server_optimizer", "weighting"),
}

_MODELS = {
    "2nn": fs.models.mnist_2nn,
    "cnn": fs.models.mnist_cnn,
    "logistic": fs.models.logistic_regression,
}
_SERVER_OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": functools.partial(optax.adam, b2=0.99, eps=1e-3),
    "yogi": functools.partial(optax.yogi, b2=0.99, eps=1e-3),
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # not every step of JAX and orbax
    fs.use_all_cores()
    try:
        _train()
    except (ValueError, OSError, ImportError, fs.DivergenceError) as error:
        sys.exit(f"train.py: {error}")


def _train() -> None:
    # Names are checked before any data is read.
    batch_size = _parse_batch_size(_BATCH_SIZE.value)
    model = fs.choose("model", _MODEL.value, _MODELS)
    partition = _partition()
    make_algorithm = fs.choose("algorithm", _ALGORITHM.value, _ALGORITHMS)
    server_optimizer = fs.choose("server_optimizer", _SERVER_OPTIMIZER.value, _SERVER_OPTIMIZERS)
    for name in _UNUSED[_ALGORITHM.value]:
        if flags.FLAGS[name].present:
            print(f"--{name} has no meaning for {_ALGORITHM.value}; ignored", file=sys.stderr)

    train, test = fs.data.load(_DATASET.value, data_dir=_DATA_DIR.value)
    clients = fs.data.federate(train, partition)
    task = model(train.num_classes, train.examples["x"].shape[1:])
    algorithm = make_algorithm(task, clients, batch_size, server_optimizer)
    layout = fs.default_layout(_LANES.value)
    evaluate = [fs.accuracy(task, test, layout=layout)]
    if _EVAL_TRAIN.value:
        evaluate.append(fs.accuracy(task, clients, prefix="full_train", layout=layout))
    if _EVAL_CLIENTS.value:
        evaluate.append(fs.client_accuracy(task, clients, layout=layout))

    workdir = pathlib.Path(_WORKDIR.value or _default_workdir())
    print(clients.describe(), f"Writing to {workdir}", sep="\n", file=sys.stderr)
    result = fs.simulate(
        algorithm,
        clients,
        key=jax.random.key(_SEED.value),
        num_rounds=_NUM_ROUNDS.value,
        client_fraction=_CLIENT_FRACTION.value,
        evaluate=evaluate,
        eval_every=_EVAL_EVERY.value,
        stop_at=_TARGET_ACCURACY.value,
        # Sequential steps would only be repeated by more devices.
        layout=fs.Layout() if _ALGORITHM.value == "sgd" else layout,
        workdir=workdir,
        config=_settings(),
        checkpoint_seconds=_CHECKPOINT_SECONDS.value,
        progress=True,
    )
    fs.experiment.plot_labels(clients, workdir / "clients.png")
    summary = fs.experiment.write_report(
        result,
        workdir,
        title=f"{_ALGORITHM.value}, {_MODEL.value} on {_DATASET.value}, {_PARTITION.value}",
        flops_per_example=fs.experiment.training_flops(task, clients.examples),
    )
    print(json.dumps(summary, indent=2))


def _parse_batch_size(text: str) -> float:
    if text in ("inf", "infinity"):
        return math.inf
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--batch_size is {text!r}; wanted a whole number or inf") from None


def _partition() -> fs.data.Partition:
    num_clients, seed = _NUM_CLIENTS.value, _SEED.value
    factories = {
        "iid": lambda: fs.data.iid(num_clients=num_clients, seed=seed),
        "shards": lambda: fs.data.shards(
            num_clients=num_clients, shards_per_client=_SHARDS_PER_CLIENT.value, seed=seed
        ),
        "dirichlet": lambda: fs.data.dirichlet(num_clients=num_clients, alpha=_ALPHA.value, seed=seed),
        "lognormal": lambda: fs.data.lognormal(num_clients=num_clients, sigma=_SIGMA.value, seed=seed),
        "natural": lambda: fs.data.natural(_PARTITION_KEY.value),
    }
    return fs.choose("partition", _PARTITION.value, factories)()


def _fed_avg(task, clients, batch_size, server_optimizer) -> fs.Algorithm:
    return fs.fed_avg(
        task,
        optax.sgd,
        server_optimizer,
        local_epochs=_LOCAL_EPOCHS.value,
        batch_size=batch_size,
        client_lr=_CLIENT_LR.value,
        server_lr=_SERVER_LR.value,
        lr_decay=_LR_DECAY.value,
        weighting=_WEIGHTING.value,
        shuffle=_SHUFFLE.value,
    )


def _fed_sgd(task, clients, batch_size, server_optimizer) -> fs.Algorithm:
    return fs.fed_sgd(
        task,
        server_optimizer,
        client_lr=_CLIENT_LR.value,
        lr_decay=_LR_DECAY.value,
        weighting=_WEIGHTING.value,
    )


def _sgd(task, clients, batch_size, server_optimizer) -> fs.Algorithm:
    if batch_size == math.inf or batch_size < 1 or _LOCAL_EPOCHS.value < 1:
        raise ValueError("--algorithm=sgd wants a finite --batch_size and --local_epochs, at least 1")
    # A round handles as many examples as a cohort would, so that rounds cost the same.
    cohort = fs.cohort_size(clients.num_clients, _CLIENT_FRACTION.value)
    share = cohort / clients.num_clients * len(clients.examples["y"])
    return fs.sgd(
        task,
        optax.sgd,
        batch_size=batch_size,
        steps_per_round=math.ceil(_LOCAL_EPOCHS.value * share / batch_size),
        client_lr=_CLIENT_LR.value,
        lr_decay=_LR_DECAY.value,
    )


_ALGORITHMS = {"fed_avg": _fed_avg, "fed_sgd": _fed_sgd, "sgd": _sgd}


def _settings() -> dict:
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    left_out = (*_NOT_SETTINGS, *_UNUSED[_ALGORITHM.value])
    return {flag.name: flag.value for flag in own if flag.name not in left_out}


def _default_workdir() -> str:
    parts = (_DATASET.value, _MODEL.value, _PARTITION.value, _ALGORITHM.value)
    digest = hashlib.sha256(json.dumps(_settings(), sort_keys=True).encode()).hexdigest()
    return "runs/" + "-".join(parts).replace(":", "_").replace("/", "_") + "-" + digest[:6]


if __name__ == "__main__":
    app.run(main)
