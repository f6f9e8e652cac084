"""Flags of dynamic averaging: the protocol, the learners' streams and their drift."""

import math

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
    "Of the concept: none, labels (permuted at each drift) or rotation (of images, at each step). "
    "--dataset=graphical_model is drawn anew at each drift in any case.",
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


class Averaging:
    """Dynamic averaging as the flags want it; they are checked here, before any data is read.

    Args:
      client_fraction: of --protocol=fed_avg.
      batch_size: `B`.
      num_rounds: that the run will have.
      seed: of the drifts.

    Raises:
      ValueError: a flag is out of its range, or two contradict each other.
    """

    def __init__(self, *, client_fraction: float, batch_size: float, num_rounds: int, seed: int):
        if batch_size == math.inf:
            raise ValueError("--algorithm=dynamic_averaging wants a finite --batch_size")
        self._batch_size, self._seed = int(batch_size), seed
        period = _SYNC_PERIOD.value
        protocols = {
            "dynamic": lambda: fs.protocols.dynamic(delta=_DELTA.value, period=period),
            "hedged": lambda: fs.protocols.hedged(delta=_DELTA.value, period=period),
            "periodic": lambda: fs.protocols.periodic(period=period),
            "continuous": fs.protocols.continuous,
            "fed_avg": lambda: fs.protocols.fed_avg(period=period, fraction=client_fraction),
            "none": lambda: fs.protocols.none(period=period),
        }
        self._protocol = fs.choose("protocol", _PROTOCOL.value, protocols)()
        self._optimizer = fs.choose("local_optimizer", _LOCAL_OPTIMIZER.value, _OPTIMIZERS)
        self._num_steps = num_rounds * self._protocol.period
        self._drifts = _drift_steps(self._num_steps, seed)
        self._make_drift = fs.choose(
            "drift", _DRIFT.value, {k: k for k in ("none", "labels", "rotation")}
        )
        graphical = workload.DATASET.value == "graphical_model"
        asked = bool(_DRIFT_AT.value or _DRIFT_PROBABILITY.value)
        if asked and not graphical and self._make_drift != "labels":
            raise ValueError(
                "--drift_at and --drift_probability are of --drift=labels or --dataset=graphical_model"
            )
        if self._make_drift == "labels" and not asked:
            raise ValueError("--drift=labels wants --drift_at or --drift_probability")

    @property
    def drifts(self) -> bool:
        """Whether labels or images change, so that rows as they are stored are another concept."""
        return self._make_drift != "none"

    def make_streams(self, num_learners: int, seed: int) -> fs.data.FederatedData:
        """Streams of --dataset=graphical_model that last for the run."""
        return fs.data.random_graphical_model(
            num_learners=num_learners,
            examples_per_learner=self._num_steps * self._batch_size,
            drift_at=[step * self._batch_size for step in self._drifts],
            seed=seed,
        )

    def algorithm(self, task: fs.Task, clients: fs.data.FederatedData, client_lr: float) -> fs.Algorithm:
        """A learner for each client."""
        classes = {"num_classes": clients.num_classes, "seed": self._seed}
        drifts = {
            "none": lambda: None,
            "labels": lambda: fs.data.label_drift(self._drifts, **classes),
            "rotation": lambda: fs.data.rotation_drift(_DEGREES.value),
        }
        return fs.dynamic_averaging(
            task,
            self._protocol,
            self._optimizer,
            num_learners=clients.num_clients,
            batch_size=self._batch_size,
            client_lr=client_lr,
            lr_decay=workload.LR_DECAY.value,
            weighting=workload.WEIGHTING.value,
            stream=_STREAM.value,
            drift=drifts[self._make_drift](),
        )


def _drift_steps(num_steps: int, seed: int) -> tuple[int, ...]:
    """At which of a run's steps the concept changes."""
    if not _DRIFT_PROBABILITY.value:
        return tuple(numbers("drift_at", _DRIFT_AT.value, int)) if _DRIFT_AT.value else ()
    if _DRIFT_AT.value:
        raise ValueError("--drift_at and --drift_probability exclude each other; give one")
    return fs.data.drift_steps(_DRIFT_PROBABILITY.value, num_steps, seed)
