"""Flags of dynamic averaging: the protocol, the learners' streams and their drift."""

import math
from collections.abc import Callable

import optax
import workload
from absl import flags
from common import numbers

import fedjax_sim as fs

_PROTOCOL = flags.DEFINE_string(
    "protocol",
    "dynamic",
    "When learners talk: dynamic or hedged (--delta), periodic, continuous (after every step), fed_avg "
    "(--client_fraction of them), or none.",
)
_DELTA = flags.DEFINE_float(
    "delta",
    1.0,
    "Delta, how far a model may be from the reference, squared, before it is sent; 0 averages like "
    "periodic, inf never sends anything.",
)
_SYNC_PERIOD = flags.DEFINE_integer(
    "sync_period", 10, "b, steps of one batch between two checks; they make up a round."
)
_STREAM = flags.DEFINE_string(
    "stream",
    "repeat",
    "What a learner reads: its own examples once, in their order; the same again and again (repeat); or "
    "those of all in an order of its own (shared).",
)
_LOCAL_OPTIMIZER = flags.DEFINE_string("local_optimizer", "sgd", "Of learners: sgd, adam or rmsprop.")
_DRIFT = flags.DEFINE_string(
    "drift",
    "none",
    "Of the concept: none, labels (they are permuted at each drift) or rotation (of images). A new "
    "--dataset=graphical_model is drawn at each drift in any case.",
)
_DRIFT_AT = flags.DEFINE_list("drift_at", [], "Steps at which the concept changes.")
_DRIFT_PROBABILITY = flags.DEFINE_float(
    "drift_probability", 0.0, "Of a drift at each step, in place of --drift_at."
)
_DEGREES = flags.DEFINE_float("degrees_per_step", 0.1, "By which --drift=rotation turns images.")

NAMES = tuple(
    flag.name
    for flag in (
        _PROTOCOL,
        _DELTA,
        _SYNC_PERIOD,
        _STREAM,
        _LOCAL_OPTIMIZER,
        _DRIFT,
        _DRIFT_AT,
        _DRIFT_PROBABILITY,
        _DEGREES,
    )
)
_OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam, "rmsprop": optax.rmsprop}


def graphical_streams(
    batch_size: float, num_rounds: int, seed: int
) -> Callable[[int, int], fs.data.FederatedData]:
    """A function from a number of learners and a seed to streams that last for the run.

    Raises:
      ValueError: a flag is out of its range.
    """
    num_steps = num_rounds * _period()
    drifts = _drift_steps(num_steps, seed)

    def make(num_learners, seed):
        return fs.data.random_graphical_model(
            num_learners=num_learners,
            examples_per_learner=num_steps * _finite(batch_size),
            drift_at=[step * batch_size for step in drifts],
            seed=seed,
        )

    return make


def dynamic_averaging(
    task: fs.Task,
    clients: fs.data.FederatedData,
    *,
    client_fraction: float,
    batch_size: float,
    client_lr: float,
    num_rounds: int,
    seed: int,
) -> fs.Algorithm:
    """Dynamic averaging as the flags want it; a learner for each client.

    Raises:
      ValueError: a flag is out of its range.
    """
    period = _period()
    protocols = {
        "dynamic": lambda: fs.protocols.dynamic(delta=_DELTA.value, period=period),
        "hedged": lambda: fs.protocols.hedged(delta=_DELTA.value, period=period),
        "periodic": lambda: fs.protocols.periodic(period=period),
        "continuous": fs.protocols.continuous,
        "fed_avg": lambda: fs.protocols.fed_avg(period=period, fraction=client_fraction),
        "none": lambda: fs.protocols.none(period=period),
    }
    steps = _drift_steps(num_rounds * period, seed)
    drifts = {
        "none": lambda: None,
        "labels": lambda: fs.data.label_drift(steps, num_classes=clients.num_classes, seed=seed),
        "rotation": lambda: fs.data.rotation_drift(_DEGREES.value),
    }
    return fs.dynamic_averaging(
        task,
        fs.choose("protocol", _PROTOCOL.value, protocols)(),
        fs.choose("local_optimizer", _LOCAL_OPTIMIZER.value, _OPTIMIZERS),
        num_learners=clients.num_clients,
        batch_size=_finite(batch_size),
        client_lr=client_lr,
        lr_decay=workload.LR_DECAY.value,
        weighting=workload.WEIGHTING.value,
        stream=_STREAM.value,
        drift=fs.choose("drift", _DRIFT.value, drifts)(),
    )


def drifts() -> bool:
    """Whether labels or images change, so that a test set would judge another concept."""
    return _DRIFT.value != "none"


def _period() -> int:
    """`b`, the steps of a round."""
    return 1 if _PROTOCOL.value == "continuous" else _SYNC_PERIOD.value


def _finite(batch_size: float) -> int:
    if batch_size == math.inf:
        raise ValueError("--algorithm=dynamic_averaging wants a finite --batch_size")
    return int(batch_size)


def _drift_steps(num_steps: int, seed: int) -> tuple[int, ...]:
    """At which of a run's steps the concept changes."""
    if not _DRIFT_PROBABILITY.value:
        return tuple(numbers("drift_at", _DRIFT_AT.value, int)) if _DRIFT_AT.value else ()
    if _DRIFT_AT.value:
        raise ValueError("--drift_at and --drift_probability exclude each other; give one")
    return fs.data.drift_steps(_DRIFT_PROBABILITY.value, num_steps, seed)
