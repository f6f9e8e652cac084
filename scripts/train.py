r"""Trains one model by federated learning, with one compiled program per block of rounds.

Without flags: Federated Averaging on 100 clients with two digits each, in well under a minute.

  python scripts/train.py
  python scripts/train.py --partition=dirichlet:0.1 --local_epochs=1
  python scripts/train.py --algorithm=fed_prox:mu=0.1 --client_optimizer=sgd:momentum=0.9
  python scripts/train.py --aggregator="clip:1.0,adaptive=0.5 | gaussian:0.8 | mean:uniform"
  python scripts/train.py --dataset=mnist --data_dir=DIR --model=cnn --partition=iid \
      --client_lr=0.215 --target_accuracy=0.99 --workdir=runs/cnn
  python scripts/train.py --plot_axis=seconds --link=2,24,50
  python scripts/train.py --algorithm=dynamic_averaging --protocol=dynamic:delta=2,period=10
  python scripts/train.py --dataset=synthetic --num_clients=100000 --model=small_word_lstm \
      --client_fraction=0.001 --local_epochs=1 --client_lr=1

A value such as fed_prox:mu=0.1 is a function of the library and its arguments, by place or by name.

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
from absl import flags
from common import run, say, say_idle_lanes
from flags import averaging, devices, kinds, plot, training, workload

import fedjax_sim as fs

for _module in (training, workload, averaging, plot, devices):
    flags.adopt_module_key_flags(_module)
_CLIENT_FRACTION = kinds.define(
    kinds.SHARE,
    "client_fraction",
    0.1,
    "C; max(C * N, 1) clients are drawn for each round. More make a round steadier and dearer.",
)
_LOCAL_EPOCHS = kinds.define(
    kinds.COUNT,
    "local_epochs",
    5,
    "E, epochs of a client in a round. More save rounds, but on clients that differ much, models drift "
    "apart.",
)
_BATCH_SIZE = flags.DEFINE_string(
    "batch_size",
    "10",
    "B, examples in a local batch; inf for all of a client's. Small ones save rounds.",
)
_CLIENT_LR = kinds.define(
    kinds.RATE,
    "client_lr",
    0.1,
    "Learning rate of the clients. The first number to tune: try a third and three times of it, or "
    "scripts/sweep.py.",
)
_NUM_ROUNDS = kinds.define(
    kinds.COUNT,
    "num_rounds",
    200,
    "R, maximum number of communication rounds. A finished run continues if it grows.",
)
_SEED = kinds.define(
    kinds.SEED, "seed", 0, "Seed of the run and of the partition. Compare settings over several."
)
_EVAL_EVERY = kinds.define(
    kinds.COUNT, "eval_every", 1, "Rounds between evaluations; raise it where those take long."
)
_ALSO_EVALUATE = flags.DEFINE_list(
    "also_evaluate",
    [],
    "Beside the test set: train (the training data of all clients), clients (how accuracy varies over "
    "clients), or train,clients.",
)
_TARGET_ACCURACY = kinds.define(
    kinds.TARGET,
    "target_accuracy",
    None,
    "Stop at the first evaluation with this test accuracy, such as 0.97.",
)
_WORKDIR = kinds.define(
    kinds.TEXT,
    "workdir",
    None,
    "Folder of the results, by default one in runs/ named after the flags. The same command continues "
    "the run there.",
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

# What --help shows first.
_FIRST = (
    "dataset",
    "partition",
    "num_clients",
    "model",
    "algorithm",
    "client_fraction",
    "local_epochs",
    "batch_size",
    "client_lr",
    "num_rounds",
)
# The places of results and data and the times of checkpoints change no result.
_NOT_SETTINGS = ("workdir", "checkpoint_seconds", "data_placement")
_EVALUATIONS = ("train", "clients")


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
    call = training.chosen()
    (width,) = kinds.numbers("batch_size", [_BATCH_SIZE.value], kinds.BATCH_SIZE)
    is_averaging = call.takes("protocol")
    workload.check(learners=is_averaging)
    if width == math.inf and not training.allows_full_batches():
        raise ValueError(f"--batch_size=inf; --algorithm={call.name} needs a whole number")
    learners = None
    if is_averaging:
        learners = averaging.Averaging(batch_size=width, num_rounds=_NUM_ROUNDS.value, seed=_SEED.value)
        if _TARGET_ACCURACY.value is not None and not learners.is_tested:
            raise ValueError(
                f"--target_accuracy={_TARGET_ACCURACY.value}; streams that drift have no test set, so "
                "leave it out"
            )
    for name in _ALSO_EVALUATE.value:
        fs.checks.choose("entry of --also_evaluate", name, dict.fromkeys(_EVALUATIONS))
    settings = {} if learners is None else learners.stand_in()
    algorithm = training.check(
        also_used=_also_used(),
        local_epochs=_LOCAL_EPOCHS.value,
        batch_size=width,
        client_lr=_CLIENT_LR.value,
        **settings,
    )
    _check_together(call.name, algorithm)
    is_counted = call.takes("local_epochs") and algorithm.cohorts is None
    works = [(_LOCAL_EPOCHS.value, width, _CLIENT_FRACTION.value)] if is_counted else []
    workload.check_training([_CLIENT_LR.value], _NUM_ROUNDS.value, works)
    devices.check(num_learners=learners and workload.known_clients())
    devices.check_one_run()
    workdir = _WORKDIR.value or workload.default_workdir(call.name, _settings())
    kinds.check_folder("workdir", workdir)
    return Checked(width, learners, plot.chosen(), pathlib.Path(workdir))


def _check_together(name: str, algorithm: fs.Algorithm) -> None:
    """Refuses flags that do not go with the algorithm."""
    draws = _also_used() or not (algorithm.cohorts or algorithm.needs_all_data)
    if flags.FLAGS["client_fraction"].present and not draws:
        raise ValueError(f"--client_fraction is given, but {name} does not use it; leave it out")
    if algorithm.needs_all_data and _DATA_PLACEMENT.value == "host":
        raise ValueError(
            f"--data_placement=host; --algorithm={name} reads the data of all clients in each round, so "
            "wanted device or auto"
        )
    if algorithm.model_of is None and "clients" in _ALSO_EVALUATE.value:
        raise ValueError(
            f"--also_evaluate=clients; --algorithm={name} trains several models, but this is an "
            "evaluation of one; leave it out"
        )


def _train() -> None:
    width, learners, drawn_over, workdir = check()
    loaded = workload.load(_SEED.value, learners and learners.make_streams)
    clients, _, task = loaded
    algorithm = _algorithm(task, clients, width, learners)
    layout = fs.runtime.layout_for(algorithm, clients, devices.LANES.value, **devices.mesh())
    evaluate = _evaluations(algorithm, learners, loaded, layout)

    if not (algorithm.cohorts or algorithm.needs_all_data):
        say_idle_lanes(fs.participation.cohort_size(clients.num_clients, _CLIENT_FRACTION.value))
    if fs.runtime.is_first():
        say(f"{clients.describe()}\nWriting to {workdir}")
    result = fs.simulate(
        algorithm,
        clients,
        key=jax.random.key(_SEED.value),
        num_rounds=_NUM_ROUNDS.value,
        client_fraction=None if algorithm.cohorts else _CLIENT_FRACTION.value,
        evaluate=evaluate,
        eval_every=_EVAL_EVERY.value,
        stop_at=_TARGET_ACCURACY.value,
        # More devices would only repeat the sequential steps.
        layout=fs.Layout() if training.chosen().takes("steps_per_round") else layout,
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
        title=workload.title(training.chosen().name),
        flops_per_example=fs.reporting.training_flops(task, clients.examples),
        **drawn_over,
    )
    fs.reporting.plot_labels(clients, workdir / "clients.png")
    print(json.dumps(summary, indent=2))


def _algorithm(task, clients, width, learners) -> fs.Algorithm:
    """Returns the algorithm for this task and these clients."""
    settings = {} if learners is None else learners.settings(clients.num_classes)
    if _also_used():
        settings |= _steps_per_round(clients, width)
    return training.algorithm(
        task,
        clients.num_clients,
        local_epochs=_LOCAL_EPOCHS.value,
        batch_size=width,
        client_lr=_CLIENT_LR.value,
        **settings,
    )


def _also_used() -> tuple[str, ...]:
    """Returns the flags that decide the steps of the baseline's rounds, unless its arguments do."""
    call = training.chosen()
    counts = call.takes("steps_per_round") and "steps_per_round" not in call.arguments
    return ("local_epochs",) if counts else ()


def _steps_per_round(clients, width) -> dict[str, int]:
    """Returns the steps in which the baseline trains on as many examples as a cohort would."""
    cohort = fs.participation.cohort_size(clients.num_clients, _CLIENT_FRACTION.value)
    share = cohort / clients.num_clients * len(clients.examples["y"])
    steps = math.ceil(_LOCAL_EPOCHS.value * share / width)
    if steps * width > kinds.LARGEST:
        raise ValueError(
            f"--local_epochs={_LOCAL_EPOCHS.value} makes {steps} steps of {width} examples per round; "
            f"wanted at most {kinds.LARGEST} examples: lower it, or --client_fraction"
        )
    return {"steps_per_round": steps}


def _evaluations(algorithm, learners, workload, layout) -> list:
    """Returns the evaluations that the flags ask for."""
    clients, test, task = workload
    if learners is not None and learners.drifts:
        say("The concept drifts away from the stored examples, so no model is evaluated on them.")
        return []
    also = _ALSO_EVALUATE.value
    if (
        algorithm.model_of is None
    ):  # several models, of which each client uses the one with its least loss
        owned = {"test": test} if isinstance(test, fs.data.FederatedData) else {}
        if not owned:
            say("The test set has no clients to choose a model, so all are evaluated on their own data.")
        owned |= {"full_train": clients} if "train" in also or not owned else {}
        return [
            fs.simulation.cluster_evaluator(task, data, prefix=prefix, layout=layout)
            for prefix, data in owned.items()
        ]
    evaluate = [] if test is None else [fs.evaluator(task, test, layout=layout)]
    if "train" in also:
        evaluate.append(fs.evaluator(task, clients, prefix="full_train", layout=layout))
    if "clients" in also:
        evaluate.append(fs.simulation.client_evaluator(task, clients, layout=layout))
    return evaluate


def _settings() -> dict:
    return workload.settings((*_NOT_SETTINGS, *training.unused(_also_used())))


if __name__ == "__main__":
    run("train.py", _train, _FIRST)
