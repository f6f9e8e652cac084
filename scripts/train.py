r"""Trains one model by federated learning, in one compiled program a block of rounds.

With no flags: 100 clients with two digits each, by Federated Averaging, in well under a minute.

  python scripts/train.py
  python scripts/train.py --partition=dirichlet --alpha=0.1 --local_epochs=5
  python scripts/train.py --dataset=mnist --data_dir=DIR --model=cnn --partition=iid \
      --local_epochs=5 --client_lr=0.215 --target_accuracy=0.99 --workdir=runs/cnn
  python scripts/train.py --algorithm=fed_sgd --client_lr=0.5 --num_rounds=1000
  python scripts/train.py --plot_axis=seconds --up_mbps=2 --link_spread=0.5
  python scripts/train.py --algorithm=dynamic_averaging --delta=2 --sync_period=10
  python scripts/train.py --algorithm=dynamic_averaging --dataset=graphical_model --model=logistic \
      --drift_probability=0.001 --num_rounds=500 --sync_period=10 --delta=0.1
  srun --ntasks=4 python scripts/train.py --workdir=runs/on_four_hosts
  python scripts/train.py --dataset=synthetic --num_clients=100000 --model=small_word_lstm \
      --client_fraction=0.001 --local_epochs=1 --client_lr=1 --data_placement=host

The workdir receives config.json, metrics.jsonl (a row per evaluation), curve.png, clients.png,
checkpoints/, tensorboard/ (where tensorboardX is installed) and summary.json. The same command on
the same workdir continues an interrupted run and ends as if it had not been interrupted; with another
--plot_axis or link it draws curve.png anew.
"""

import json
import math
import pathlib

import averaging
import axes
import jax
import machine
import optax
import workload
from absl import flags
from common import batch_size, numbers, run, say

import fedjax_sim as fs

flags.adopt_module_key_flags(workload)
flags.adopt_module_key_flags(averaging)
flags.adopt_module_key_flags(axes)
flags.adopt_module_key_flags(machine)
_ALGORITHM = flags.DEFINE_string(
    "algorithm",
    "fed_avg",
    "fed_avg, fed_sgd, sgd (sequential, on all clients' data pooled), or dynamic_averaging (each client "
    "keeps a model of its own).",
)
_CLIENT_FRACTION = flags.DEFINE_float(
    "client_fraction",
    0.1,
    "C; max(C * N, 1) clients take part in a round. Of dynamic_averaging all do; C is for "
    "--protocol=fed_avg.",
)
_LOCAL_EPOCHS = flags.DEFINE_integer("local_epochs", 5, "E, epochs a client trains in a round.")
_BATCH_SIZE = flags.DEFINE_string("batch_size", "10", "B, examples in a local batch, or inf.")
_CLIENT_LR = flags.DEFINE_float("client_lr", 0.1, "Learning rate of the clients.")
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
_DATA_PLACEMENT = flags.DEFINE_string(
    "data_placement",
    "auto",
    "Where the data stays: device, host (cohorts are sent while others train), or auto (host for stored "
    "data and for what would fill more than half of a device).",
)

# Where results and data lie and when the state is saved do not change them.
_NOT_SETTINGS = ("workdir", "checkpoint_seconds", "data_placement")
# What an algorithm has no use for: FedSGD is one epoch of one batch, the baseline has no server.
_UNUSED = {
    "fed_avg": averaging.NAMES,
    "fed_sgd": ("local_epochs", "batch_size", "shuffle", "server_lr", *averaging.NAMES),
    "sgd": ("shuffle", "server_lr", "server_optimizer", "weighting", *averaging.NAMES),
    "dynamic_averaging": ("local_epochs", "shuffle", "server_lr", "server_optimizer"),
}


def _train() -> None:
    # Flags are checked before any data is read.
    (width,) = numbers("batch_size", [_BATCH_SIZE.value], batch_size)
    make_algorithm = fs.choose("algorithm", _ALGORITHM.value, _ALGORITHMS)
    workload.server_optimizer()
    drawn_over = axes.chosen()
    for name in _UNUSED[_ALGORITHM.value]:
        if flags.FLAGS[name].present:
            say(f"--{name} has no meaning for {_ALGORITHM.value}; ignored")

    learners = None
    if _ALGORITHM.value == "dynamic_averaging":
        learners = averaging.Averaging(
            client_fraction=_CLIENT_FRACTION.value,
            batch_size=width,
            num_rounds=_NUM_ROUNDS.value,
            seed=_SEED.value,
        )
    clients, test, task = workload.load(_SEED.value, learners and learners.make_streams)
    if learners is None:
        algorithm = make_algorithm(task, clients, width)
    else:
        algorithm = learners.algorithm(task, clients, _CLIENT_LR.value)
    layout = fs.layout_for(algorithm, clients, machine.LANES.value, **machine.mesh())
    if learners is not None and learners.drifts:
        say("The concept drifts away from the stored examples, so no model is evaluated on them.")
        evaluate = []
    else:
        evaluate = _evaluations(task, clients, test, layout)

    workdir = pathlib.Path(_WORKDIR.value or workload.default_workdir(_ALGORITHM.value, _settings()))
    if fs.is_first():
        say(f"{clients.describe()}\nWriting to {workdir}")
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
        data_placement=_DATA_PLACEMENT.value,
        workdir=workdir,
        config=_settings(),
        checkpoint_seconds=_CHECKPOINT_SECONDS.value,
        progress=True,
    )
    if not fs.is_first():
        return
    summary = fs.experiment.write_report(
        result,
        workdir,
        title=workload.title(_ALGORITHM.value),
        flops_per_example=fs.experiment.training_flops(task, clients.examples),
        **drawn_over,
    )
    fs.experiment.plot_labels(clients, workdir / "clients.png")
    print(json.dumps(summary, indent=2))


def _evaluations(task, clients, test, layout) -> list:
    """What the flags want to know of each model."""
    evaluate = [] if test is None else [fs.accuracy(task, test, layout=layout)]
    if _EVAL_TRAIN.value:
        evaluate.append(fs.accuracy(task, clients, prefix="full_train", layout=layout))
    if _EVAL_CLIENTS.value:
        evaluate.append(fs.client_accuracy(task, clients, layout=layout))
    return evaluate


def _fed_avg(task, clients, width) -> fs.Algorithm:
    return workload.fed_avg(task, _LOCAL_EPOCHS.value, width, _CLIENT_LR.value)


def _fed_sgd(task, clients, width) -> fs.Algorithm:
    return fs.fed_sgd(
        task,
        workload.server_optimizer(),
        client_lr=_CLIENT_LR.value,
        lr_decay=workload.LR_DECAY.value,
        weighting=workload.WEIGHTING.value,
    )


def _sgd(task, clients, width) -> fs.Algorithm:
    if width == math.inf or width < 1 or _LOCAL_EPOCHS.value < 1:
        raise ValueError("--algorithm=sgd wants a finite --batch_size and --local_epochs, at least 1")
    # A round handles as many examples as a cohort would, so that rounds cost the same.
    cohort = fs.cohort_size(clients.num_clients, _CLIENT_FRACTION.value)
    share = cohort / clients.num_clients * len(clients.examples["y"])
    return fs.sgd(
        task,
        optax.sgd,
        batch_size=width,
        steps_per_round=math.ceil(_LOCAL_EPOCHS.value * share / width),
        client_lr=_CLIENT_LR.value,
        lr_decay=workload.LR_DECAY.value,
    )


_ALGORITHMS = {
    "fed_avg": _fed_avg,
    "fed_sgd": _fed_sgd,
    "sgd": _sgd,
    "dynamic_averaging": None,  # made by `averaging`, which checks its flags first
}


def _settings() -> dict:
    return workload.settings((*_NOT_SETTINGS, *_UNUSED[_ALGORITHM.value]))


if __name__ == "__main__":
    run("train.py", _train)
