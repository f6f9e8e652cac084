"""Flags of dynamic averaging: the protocol, and the drift of the learners' streams."""

import functools
import math
from typing import Any

import fedjax_sim as fs
from flags import calls, catalogue, kinds, workload


def _labels(*at: int, probability: float = 0.0) -> None:
    """The labels are permuted at these steps, or with this probability at each."""


def _redraw(*at: int, probability: float = 0.0) -> None:
    """The graphical model is drawn anew, likewise."""


def _rotation(degrees_per_step: float = 0.1) -> None:
    """The images are rotated at each step."""


def _none() -> None:
    """The concept stays."""


_PROTOCOLS = calls.Calls("protocol", calls.functions_of([fs.protocols], [fs.protocols.Protocol]))
_DRIFTS = calls.Calls(
    "drift", {"none": _none, "labels": _labels, "rotation": _rotation, "redraw": _redraw}
)

_PROTOCOL = kinds.define(
    calls.Written(_PROTOCOLS.make),
    "protocol",
    "dynamic:delta=1,period=10",
    "When learners communicate. period: steps of one batch between two checks, which make a round. "
    "delta: squared distance from the reference beyond which a model is sent; 0 averages like periodic, "
    f"inf never sends anything. Known: {_PROTOCOLS.describe()}.",
)
_DRIFT = kinds.define(
    calls.Written(_DRIFTS.read),
    "drift",
    "none",
    "How the concept changes: labels:30,60 permutes the labels at these steps, labels:probability=0.001 "
    "at random ones; redraw, likewise, draws the graphical_model anew; rotation:0.1 turns images by "
    "degrees at each step.",
)


class Averaging:
    """Dynamic averaging as the flags define it; checks them before any data is read.

    Args:
      batch_size: `B`.
      num_rounds: number of rounds of the run.
      seed: seed of the drifts.

    Raises:
      ValueError: a flag is out of range, or two contradict each other.
    """

    def __init__(self, *, batch_size: int, num_rounds: int, seed: int):
        self._batch_size, self._seed = batch_size, seed
        self._protocol, self._drift = _PROTOCOLS.make(_PROTOCOL.value), _DRIFTS.read(_DRIFT.value)
        self._num_steps = num_rounds * self._protocol.period
        period, num_learners = self._protocol.period, workload.known_clients()
        if num_learners == 1:
            raise ValueError("--num_clients=1; wanted at least 2, since one learner cannot average")
        # The examples of one learner in all rounds, of all learners in one, or of streams drawn for all.
        most = max(num_rounds, num_learners or 0)
        counted = batch_size * period * (num_rounds * num_learners if self._is_graphical else most)
        if counted > kinds.LARGEST:
            raise ValueError(
                f"--batch_size={batch_size} with --protocol={_PROTOCOL.value}, "
                f"--num_rounds={num_rounds} and {num_learners} learners makes {counted} examples to "
                f"count; wanted at most {kinds.LARGEST}: lower them"
            )
        self._check_drift(num_rounds)

    def _check_drift(self, num_rounds: int) -> None:
        text, name = f"--drift={_DRIFT.value}", self._drift.name
        at = self._drift.arguments.get("at", [])
        probability = self._drift.arguments.get("probability", 0.0)
        if not 0 <= probability <= 1:
            raise ValueError(f"{text}: probability is {probability}; wanted a number from 0 to 1")
        if at and probability:
            raise ValueError(f"{text}: wanted steps or a probability, not both")
        if name in ("labels", "redraw") and not (at or probability):
            raise ValueError(f"{text}; wanted {name}:30,60 (steps) or {name}:probability=0.001")
        if (name == "redraw") != self._is_graphical and name != "none":
            raise ValueError(
                f"{text}; wanted redraw for --dataset=graphical_model, and labels or rotation for others"
            )
        if sorted({*at}) != at or not all(0 < step < self._num_steps for step in at):
            raise ValueError(
                f"{text}; wanted ascending steps from 1, below {self._num_steps}, the steps of "
                f"--num_rounds={num_rounds}"
            )
        if name == "rotation" and not math.isfinite(self._drift.arguments.get("degrees_per_step", 0)):
            raise ValueError(f"{text}: wanted a finite number of degrees")
        catalogue.check_drift(name, workload.dataset_name())

    @property
    def drifts(self) -> bool:
        """Whether labels or images drift away from the stored rows."""
        return self._drift.name in ("labels", "rotation")

    @property
    def is_tested(self) -> bool:
        """Whether there is a test set that no drift makes stale."""
        return not (self.drifts or self._is_graphical)

    @property
    def _is_graphical(self) -> bool:
        return workload.dataset_name() == "graphical_model"

    @functools.cached_property
    def _drift_steps(self) -> tuple[int, ...]:
        """The steps of the run at which the concept changes."""
        probability = self._drift.arguments.get("probability", 0.0)
        if not probability:
            return tuple(self._drift.arguments.get("at", ()))
        return fs.data.drift_steps(probability, self._num_steps, self._seed)

    def make_streams(self, num_learners: int, seed: int) -> fs.data.FederatedData:
        """Draws streams of --dataset=graphical_model that last for the run."""
        return workload.population().make(
            num_learners=num_learners,
            examples_per_learner=self._num_steps * self._batch_size,
            drift_at=[step * self._batch_size for step in self._drift_steps],
            seed=seed,
        )

    def stand_in(self) -> dict[str, Any]:
        """Returns the protocol alone, for what is checked before the drift's steps are drawn."""
        return {"protocol": self._protocol}

    def settings(self, num_classes: int) -> dict[str, Any]:
        """Returns the algorithm's protocol and drift."""
        return {"protocol": self._protocol, "drift": self._make_drift(num_classes)}

    def _make_drift(self, num_classes: int) -> fs.data.Drift | None:
        if self._drift.name == "labels":
            return fs.data.label_drift(self._drift_steps, num_classes=num_classes, seed=self._seed)
        if self._drift.name == "rotation":
            return self._drift._replace(function=fs.data.rotation_drift).make(degrees_per_step=0.1)
        return None
