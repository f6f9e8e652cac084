r"""Trains one model by federated learning, with one compiled program per block of rounds.

Without flags: Federated Averaging on 100 clients with two digits each, in well under a minute.

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
checkpoints/, tensorboard/ (if tensorboardX is installed) and summary.json. The same command on the
same workdir continues an interrupted run and ends as if it had not been interrupted; with another
--plot_axis or link it redraws curve.png.
"""

import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import optax
from absl import flags
from common import run, say, say_idle_lanes
from flags import averaging, devices, kinds, plot, workload

import fedjax_sim as fs

flags.adopt_module_key_flags(workload)
flags.adopt_module_key_flags(averaging)
flags.adopt_module_key_flags(plot)
flags.adopt_module_key_flags(devices)
_ALGORITHM = kinds.define(
    kinds.Word("algorithm", ("fed_avg", "fed_sgd", "sgd", "dynamic_averaging")),
    "algorithm",
    "fed_avg",
    "Algorithm: fed_avg, fed_sgd, sgd (sequential, on all clients' data pooled), or dynamic_averaging "
    "(each client keeps a model of its own).",
)
_CLIENT_FRACTION = kinds.define(
    kinds.SHARE,
    "client_fraction",
    0.1,
    "C; max(C * N, 1) clients take part in a round. In dynamic_averaging all do, and C is for "
    "--protocol=fed_avg.",
)
_LOCAL_EPOCHS = kinds.define(kinds.COUNT, "local_epochs", 5, "E, epochs of a client in a round.")
_BATCH_SIZE = flags.DEFINE_string("batch_size", "10", "B, examples in a local batch; inf for all.")
_CLIENT_LR = kinds.define(kinds.RATE, "client_lr", 0.1, "Learning rate of the clients.")
_NUM_ROUNDS = kinds.define(kinds.COUNT, "num_rounds", 200, "R, maximum number of communication rounds.")
_EVAL_EVERY = kinds.define(kinds.COUNT, "eval_every", 1, "Rounds between evaluations.")
_EVAL_TRAIN = flags.DEFINE_bool("eval_train", False, "Also evaluate on the whole training set.")
_EVAL_CLIENTS = flags.DEFINE_bool("eval_clients", False, "Also report how accuracy varies over clients.")
_TARGET_ACCURACY = kinds.define(
    kinds.TARGET,
    "target_accuracy",
    None,
    "Stop at the first evaluation with this test accuracy, such as 0.97.",
)
_SEED = kinds.define(kinds.SEED, "seed", 0, "Seed of the partition and of the run.")
_WORKDIR = kinds.define(
    kinds.TEXT, "workdir", None, "Folder of the results; by default one in runs/ named after the flags."
)
_CHECKPOINT_SECONDS = kinds.define(
    kinds.LIMIT,
    "checkpoint_seconds",
    10.0,
    "Minimum seconds between two checkpoints; the last is always written.",
)
_DATA_PLACEMENT = kinds.define(
    kinds.Word("data_placement", ("device", "host", "auto")),
    "data_placement",
    "auto",
    "Where the data stays: device, host (cohorts are sent while others train), or auto (host for stored "
    "data and for data that would fill more than half of a device).",
)

# The places of results and data and the times of checkpoints change no result.
_NOT_SETTINGS = ("workdir", "checkpoint_seconds", "data_placement")
# Flags that an algorithm does not use: FedSGD is one epoch of one batch, the baseline has no server.
_UNUSED = {
    "fed_avg": averaging.NAMES,
    "fed_sgd": ("local_epochs", "batch_size", "shuffle", "server_lr", *averaging.NAMES),
    "sgd": ("shuffle", "server_lr", "server_optimizer", "weighting", *averaging.NAMES),
    "dynamic_averaging": ("local_epochs", "shuffle", "server_lr", "server_optimizer"),
}


class Checked(NamedTuple):
    """The values that follow from the flags alone.

    Attributes:
      width: `B`, or infinity.
      learners: dynamic averaging, if that is the algorithm.
      drawn_over: x-axis of plots, and its link.
      workdir: folder of the results.
    """

    width: float
    learners: averaging.Averaging | None
    drawn_over: dict[str, Any]
    workdir: pathlib.Path


def check() -> Checked:
    """Checks all flags together, before any data is read.

    Raises:
      ValueError: two flags contradict each other, or the flags do not suit this machine.
    """
    algorithm, learners = _ALGORITHM.value, None
    (width,) = kinds.numbers("batch_size", [_BATCH_SIZE.value], kinds.BATCH_SIZE)
    workload.check(learners=algorithm == "dynamic_averaging")
    if algorithm in ("sgd", "dynamic_averaging"):
        if width == math.inf:
            raise ValueError(f"--batch_size=inf; --algorithm={algorithm} needs a whole number")
        if _DATA_PLACEMENT.value == "host":
            raise ValueError(
                f"--data_placement=host; --algorithm={algorithm} reads the data of all clients in each "
                "round, so wanted device or auto"
            )
    if algorithm == "dynamic_averaging":
        learners = averaging.Averaging(
            client_fraction=_CLIENT_FRACTION.value,
            batch_size=width,
            num_rounds=_NUM_ROUNDS.value,
            seed=_SEED.value,
        )
        if _TARGET_ACCURACY.value is not None and not learners.is_tested:
            raise ValueError(
                f"--target_accuracy={_TARGET_ACCURACY.value}; streams that drift have no test set, so "
                "leave it out"
            )
    works = [(_LOCAL_EPOCHS.value, width, _CLIENT_FRACTION.value)] if algorithm == "fed_avg" else []
    workload.check_training([_CLIENT_LR.value], _NUM_ROUNDS.value, works)
    if devices.MESH_RUNS.value not in (None, 1):
        raise ValueError(f"--mesh_runs={devices.MESH_RUNS.value}, but there is one run; leave it out")
    devices.check(num_learners=learners and workload.known_clients())
    workdir = _WORKDIR.value or workload.default_workdir(algorithm, _settings())
    kinds.check_folder("workdir", workdir)
    return Checked(width, learners, plot.chosen(), pathlib.Path(workdir))


def _train() -> None:
    width, learners, drawn_over, workdir = check()
    for name in _UNUSED[_ALGORITHM.value]:
        if flags.FLAGS[name].present:
            say(f"--{name} has no meaning for {_ALGORITHM.value}; ignored")

    clients, test, task = workload.load(_SEED.value, learners and learners.make_streams)
    if learners is None:
        algorithm = _ALGORITHMS[_ALGORITHM.value](task, clients, width)
    else:
        algorithm = learners.algorithm(task, clients, _CLIENT_LR.value)
    layout = fs.runtime.layout_for(algorithm, clients, devices.LANES.value, **devices.mesh())
    if learners is not None and learners.drifts:
        say("The concept drifts away from the stored examples, so no model is evaluated on them.")
        evaluate = []
    else:
        evaluate = _evaluations(task, clients, test, layout)

    if _ALGORITHM.value in ("fed_avg", "fed_sgd"):
        say_idle_lanes(fs.participation.cohort_size(clients.num_clients, _CLIENT_FRACTION.value))
    if fs.runtime.is_first():
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
        # More devices would only repeat the sequential steps.
        layout=fs.Layout() if _ALGORITHM.value == "sgd" else layout,
        data_placement=_DATA_PLACEMENT.value,
        workdir=workdir,
        config=_settings(),
        checkpoint_seconds=_CHECKPOINT_SECONDS.value,
        allow_version_change=devices.ALLOW_VERSION_CHANGE.value,
        progress=True,
    )
    if not fs.runtime.is_first():
        return
    summary = fs.reporting.write_report(
        result,
        workdir,
        title=workload.title(_ALGORITHM.value),
        flops_per_example=fs.reporting.training_flops(task, clients.examples),
        **drawn_over,
    )
    fs.reporting.plot_labels(clients, workdir / "clients.png")
    print(json.dumps(summary, indent=2))


def _evaluations(task, clients, test, layout) -> list:
    """Returns the evaluations that the flags ask for."""
    evaluate = [] if test is None else [fs.evaluator(task, test, layout=layout)]
    if _EVAL_TRAIN.value:
        evaluate.append(fs.evaluator(task, clients, prefix="full_train", layout=layout))
    if _EVAL_CLIENTS.value:
        evaluate.append(fs.simulation.client_evaluator(task, clients, layout=layout))
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
    # A round trains on as many examples as a cohort would, so that rounds cost the same.
    cohort = fs.participation.cohort_size(clients.num_clients, _CLIENT_FRACTION.value)
    share = cohort / clients.num_clients * len(clients.examples["y"])
    steps = math.ceil(_LOCAL_EPOCHS.value * share / width)
    if steps * width > kinds.LARGEST:
        raise ValueError(
            f"--local_epochs={_LOCAL_EPOCHS.value} makes {steps} steps of {width} examples per round; "
            f"wanted at most {kinds.LARGEST} examples: lower it, or --client_fraction"
        )
    return fs.sgd(
        task,
        optax.sgd,
        batch_size=width,
        steps_per_round=steps,
        client_lr=_CLIENT_LR.value,
        lr_decay=workload.LR_DECAY.value,
    )


_ALGORITHMS = {"fed_avg": _fed_avg, "fed_sgd": _fed_sgd, "sgd": _sgd}  # `averaging` makes the other


def _settings() -> dict:
    return workload.settings((*_NOT_SETTINGS, *_UNUSED[_ALGORITHM.value]))


if __name__ == "__main__":
    run("train.py", _train)
