"""Flags of dynamic averaging: the protocol, the learners' streams and their drift."""

import functools

import optax
from absl import flags

import fedjax_sim as fs
from flags import catalogue, kinds, workload

_OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam, "rmsprop": optax.rmsprop}
_PROTOCOLS = {
    "dynamic": lambda period, fraction: fs.protocols.dynamic(delta=_DELTA.value, period=period),
    "hedged": lambda period, fraction: fs.protocols.hedged(delta=_DELTA.value, period=period),
    "periodic": lambda period, fraction: fs.protocols.periodic(period=period),
    "continuous": lambda period, fraction: fs.protocols.continuous(),
    "fed_avg": lambda period, fraction: fs.protocols.fed_avg(period=period, fraction=fraction),
    "none": lambda period, fraction: fs.protocols.none(period=period),
}

_PROTOCOL = kinds.define(
    kinds.Word("protocol", _PROTOCOLS),
    "protocol",
    "dynamic",
    "When learners communicate: dynamic or hedged (see --delta), periodic, continuous (after every "
    "step), fed_avg (--client_fraction of them), or none.",
)
_DELTA = kinds.define(
    kinds.LIMIT,
    "delta",
    1.0,
    "Delta, squared distance from the reference beyond which a model is sent; 0 averages like periodic, "
    "inf never sends anything.",
)
_SYNC_PERIOD = kinds.define(
    kinds.COUNT, "sync_period", 10, "b, steps of one batch between two checks, which make a round."
)
_STREAM = kinds.define(
    kinds.Word("stream", ("once", "repeat", "shared")),
    "stream",
    "repeat",
    "What a learner reads: its own examples in order, once or again and again (repeat), or the examples "
    "of all in an order of its own (shared).",
)
_LOCAL_OPTIMIZER = kinds.define(
    kinds.Word("local_optimizer", _OPTIMIZERS),
    "local_optimizer",
    "sgd",
    "Optimizer of the learners: sgd, adam or rmsprop.",
)
_DRIFT = kinds.define(
    kinds.Word("drift", ("none", "labels", "rotation")),
    "drift",
    "none",
    "Drift of the concept: none, labels (permuted at each drift) or rotation (of images, at each step). "
    "--dataset=graphical_model is redrawn at each drift in any case.",
)
_DRIFT_AT = flags.DEFINE_list("drift_at", [], "Steps at which the concept changes.")
_DRIFT_PROBABILITY = kinds.define(
    kinds.SHARE, "drift_probability", 0.0, "Probability of a drift at each step; excludes --drift_at."
)
_DEGREES = kinds.define(kinds.FINITE, "degrees_per_step", 0.1, "Degrees per step of --drift=rotation.")

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


class Averaging:
    """Dynamic averaging as the flags define it; checks them before any data is read.

    Args:
      client_fraction: `C` of --protocol=fed_avg.
      batch_size: `B`.
      num_rounds: number of rounds of the run.
      seed: seed of the drifts.

    Raises:
      ValueError: a flag is out of range, or two contradict each other.
    """

    def __init__(self, *, client_fraction: float, batch_size: int, num_rounds: int, seed: int):
        self._batch_size, self._seed = batch_size, seed
        self._protocol = _PROTOCOLS[_PROTOCOL.value](_SYNC_PERIOD.value, client_fraction)
        self._num_steps = num_rounds * self._protocol.period
        period, num_learners = self._protocol.period, workload.known_clients()
        if num_learners == 1:
            raise ValueError("--num_clients=1; wanted at least 2, since one learner cannot average")
        # The examples of one learner in all rounds, of all learners in one, or of streams drawn for all.
        most = max(num_rounds, num_learners or 0)
        counted = batch_size * period * (num_rounds * num_learners if self._is_graphical else most)
        if counted > kinds.LARGEST:
            raise ValueError(
                f"--batch_size={batch_size} with --sync_period={period}, --num_rounds={num_rounds} and "
                f"{num_learners} learners makes {counted} examples to count; wanted at most "
                f"{kinds.LARGEST}: lower them"
            )
        self._drift_at = (
            kinds.numbers("drift_at", _DRIFT_AT.value, kinds.COUNT) if _DRIFT_AT.value else []
        )
        asked = bool(self._drift_at or _DRIFT_PROBABILITY.value)
        if self._drift_at and _DRIFT_PROBABILITY.value:
            raise ValueError("--drift_at and --drift_probability exclude each other; give one")
        if asked and not self._is_graphical and _DRIFT.value != "labels":
            raise ValueError(
                "--drift_at and --drift_probability need --drift=labels or --dataset=graphical_model"
            )
        if _DRIFT.value == "labels" and not asked:
            raise ValueError("--drift=labels needs --drift_at or --drift_probability")
        if self._drift_at != sorted(self._drift_at) or self._drift_at[-1:] >= [self._num_steps]:
            raise ValueError(
                f"--drift_at={','.join(_DRIFT_AT.value)}; wanted ascending steps below "
                f"{self._num_steps}, the number of steps in --num_rounds={num_rounds}"
            )
        catalogue.check_drift(_DRIFT.value, workload.DATASET.value)

    @property
    def drifts(self) -> bool:
        """Whether labels or images drift away from the stored rows."""
        return _DRIFT.value != "none"

    @property
    def is_tested(self) -> bool:
        """Whether there is a test set that no drift makes stale."""
        return not (self.drifts or self._is_graphical)

    @property
    def _is_graphical(self) -> bool:
        return workload.DATASET.value == "graphical_model"

    @functools.cached_property
    def _drift_steps(self) -> tuple[int, ...]:
        """The steps of the run at which the concept changes."""
        if not _DRIFT_PROBABILITY.value:
            return tuple(self._drift_at)
        return fs.data.drift_steps(_DRIFT_PROBABILITY.value, self._num_steps, self._seed)

    def make_streams(self, num_learners: int, seed: int) -> fs.data.FederatedData:
        """Draws streams of --dataset=graphical_model that last for the run."""
        return fs.data.random_graphical_model(
            num_learners=num_learners,
            examples_per_learner=self._num_steps * self._batch_size,
            drift_at=[step * self._batch_size for step in self._drift_steps],
            seed=seed,
        )

    def algorithm(self, task: fs.Task, clients: fs.data.FederatedData, client_lr: float) -> fs.Algorithm:
        """Returns dynamic averaging with one learner per client."""
        classes = {"num_classes": clients.num_classes, "seed": self._seed}
        drifts = {
            "none": lambda: None,
            "labels": lambda: fs.data.label_drift(self._drift_steps, **classes),
            "rotation": lambda: fs.data.rotation_drift(_DEGREES.value),
        }
        return fs.dynamic_averaging(
            task,
            self._protocol,
            _OPTIMIZERS[_LOCAL_OPTIMIZER.value],
            num_learners=clients.num_clients,
            batch_size=self._batch_size,
            client_lr=client_lr,
            lr_decay=workload.LR_DECAY.value,
            weighting=workload.WEIGHTING.value,
            stream=_STREAM.value,
            drift=drifts[_DRIFT.value](),
        )
