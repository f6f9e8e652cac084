"""The types shared by all subpackages, and nothing else.

Letters, the same everywhere: `N` clients, `K` clients in a round's cohort, `L` lanes of a device,
`D` devices, `n` examples in all, `n_k` examples of client k, `B` examples in a batch, `E` local
epochs, `R` rounds.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from fedjax_sim.core.checks import check_rates

Params = Any  # a pytree of float arrays
Batch = Mapping[str, jax.Array]  # column name -> `[B, ...]`
Ratio = tuple[jax.Array, jax.Array]  # a numerator and a denominator for each example, `[B]` each

RUNS, CLIENTS = "runs", "clients"  # the axes of a mesh of devices
# The id of an absent client, beyond every real id: `table.at[ids].set(rows)` then drops the write, while
# -1 would overwrite the last client's row.
ABSENT = 2**31 - 1


class Variables(NamedTuple):
    """The parameters of a model that also keeps state, such as BatchNorm's running statistics.

    A gradient of this type holds in `state` the old state minus the new one, so that a step of rate 1
    along it sets the new state. Clients and the server take that step whatever their optimizers are:
    clients' states are averaged like their parameters.

    Attributes:
      params: what optimizers train.
      state: a pytree of float arrays, which training replaces.
    """

    params: Any
    state: Any


class Task(NamedTuple):
    """A model and its loss, as pure functions.

    Decoding and augmentation belong inside these functions, to run in the compiled step.

    Attributes:
      init: `init(key) -> params`.
      loss: `loss(params, batch, key) -> (total [B], count [B])`, the summed loss of each example and
        its number of terms: 1 for a classifier, the number of real characters for a language model.
        A batch's loss is `sum(total) / sum(count)` over its real examples.
      metrics: `metrics(params, batch) -> {name: (total [B], count [B])}`, deterministic; evaluation
        sums both over all examples and divides. For a metric that is an array, such as one number per
        class, the total is `[B, ...]` and the count `[B]` or of a shape that broadcasts to the total's;
        where a count's sum is zero, the metric is NaN.
      num_classes: number of labels that the model distinguishes, if `batch["y"]` holds labels; other
        labels are refused before any training. None if unknown.
      predict: `predict(params, batch) -> [B, ...]`, deterministic, such as class probabilities; see
        `simulation.predict`. None without predictions.
      loss_and_state: `loss_and_state(params, batch, real [B] bool, key) -> ((total, count), state)`, the
        loss of training and the model's new state, if `params` are `Variables`. Rows that are not real
        repeat another, and the state must not depend on them. None for a model without state.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch, jax.Array], Ratio]
    metrics: Callable[[Params, Batch], dict[str, Ratio]]
    num_classes: int | None = None
    predict: Callable[[Params, Batch], jax.Array] | None = None
    loss_and_state: Callable[[Variables, Batch, jax.Array, jax.Array], tuple[Ratio, Any]] | None = None


class Client(NamedTuple):
    """One client's view of its own rows, as client functions see it, without a client axis.

    Attributes:
      examples: column name -> `[n, ...]`, the rows of ALL clients (shared, never copied).
      start: `[]` int32, first row that the client owns.
      size: `[]` int32, `n_k`, number of rows that it owns.
      id: `[]` int32, index in the federation.
    """

    examples: Batch
    start: jax.Array
    size: jax.Array
    id: jax.Array

    def take(self, positions: jax.Array) -> Batch:
        """Gathers the rows at `positions` `[B]`, in `[0, n_k)`, counted from the client's first."""
        rows = self.start + positions
        return {name: column.at[rows].get(mode="clip") for name, column in self.examples.items()}


class ClientOutput(NamedTuple):
    """Output of one client at the end of its round.

    Attributes:
      message: a pytree that is summed over the cohort, each leaf in its own dtype; unsigned
        integers wrap, and nothing is multiplied. For weighted means see `engine.weigh`.
      metrics: a pytree of numbers, summed likewise.
      own: the client's memory from now on, in the shapes that it was given; `()` without memory.
      row: a pytree that the server sees for each client separately; `()` for nothing.
    """

    message: Any
    metrics: Any
    own: Any = ()
    row: Any = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """The placement of clients on lanes and devices. It only affects the order of float sums.

    Attributes:
      lanes: `L`, number of clients that one device trains side by side.
      mesh: devices; those along the axis "clients" share the clients of a run, those along the optional
        axis "runs" the runs of a sweep. None is the default device.
    """

    lanes: int = 1
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.lanes < 1:
            raise ValueError(f"lanes is {self.lanes}; a device needs at least 1 lane")
        names = (CLIENTS,) if self.mesh is None else self.mesh.axis_names
        if CLIENTS not in names or set(names) - {RUNS, CLIENTS}:
            raise ValueError(
                f"the mesh has the axes {names}; wanted {CLIENTS!r} and, for sweeps, {RUNS!r}"
            )

    @property
    def num_devices(self) -> int:
        """`D`, the number of devices that share the clients of a run."""
        return 1 if self.mesh is None else self.mesh.shape[CLIENTS]

    @property
    def num_parts(self) -> int:
        """The number of device groups that share the runs of a sweep."""
        return 1 if self.mesh is None else self.mesh.shape.get(RUNS, 1)

    def describe(self) -> dict[str, Any]:
        """Returns lanes and mesh as JSON values."""
        return {"lanes": self.lanes, "mesh": None if self.mesh is None else dict(self.mesh.shape)}

    @property
    def is_single(self) -> bool:
        """Whether a single device runs all clients and runs."""
        return self.num_devices * self.num_parts == 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cohort:
    """The clients of one round, in the same order on every device and process.

    Attributes:
      ids: `[K]` int32, indices into the federation, `ABSENT` where fewer clients take part.
      layout: static.
      lag: `[K]` int32, how many server versions ago each client began, 0 for the current model; None if
        all clients begin with the current model.
      count: `[]` int32, how many clients take part; None if all places are taken.
      data_index: `[K]` int32, where the data at hand holds these clients if it holds no others; None if
        it is the whole federation.
      members: `[D * K]` int32, where each device has the rows of its own clients alone: their positions
        in the cohort, in the order of the device's rows, then `ABSENT`. The data's arrays are then as
        many parts. None where every device has the rows of the whole cohort.
    """

    ids: jax.Array
    layout: Layout = dataclasses.field(default=Layout(), metadata={"static": True})
    lag: jax.Array | None = dataclasses.field(default=None, kw_only=True)
    count: jax.Array | None = dataclasses.field(default=None, kw_only=True)
    data_index: jax.Array | None = None
    members: jax.Array | None = None

    @property
    def num_clients(self) -> int:
        """`K`, absent clients included."""
        return self.ids.size

    @property
    def num_present(self) -> int | jax.Array:
        """The number of clients that take part."""
        return self.num_clients if self.count is None else self.count


def _accept(data: Any, num_rounds: int) -> None:
    """Accepts any data and number of rounds."""


def _without_lag(cohort: Cohort) -> None:
    """Accepts cohorts whose clients begin with the current model.

    Raises:
      ValueError: the clients began with earlier models.
    """
    if cohort.lag is not None:
        raise ValueError(
            "the cohorts have a lag, but this algorithm trains every client from the current model; "
            "wanted an algorithm that keeps earlier models, such as fed_buff, or another sampler"
        )


def _shared_model(state: Any, own_k: Any, id: jax.Array) -> Params:
    """Returns the shared model."""
    return state.params


def _no_parts(examples: Batch) -> dict[str, Any]:
    """Returns no parts."""
    return {}


class Algorithm(NamedTuple):
    """A federated algorithm: two pure functions, and numbers that may change without recompiling.

    Attributes:
      init: `init(key, hparams, num_clients, params=None) -> state`, where `num_clients` is `N`. A state
        has a field `params`, the model to evaluate, and carries `hparams`, so that rates are traced
        values. `params` are the parameters to begin with, if `simulate` is given any.
      round: `round(key, state, own, data, cohort) -> (state, own, info)`, one communication round. `own`
        is the memory of the cohort's clients, `[K, ...]`, or `()`. `info` is a
        dict of scalars: `train_loss`, `examples` (real examples trained on, counted once per epoch),
        `slots` (example slots executed, padding included), the message counts (see `exchange`), and,
        if already known, `finite`: whether all parameters are. Of any other entries, integers and names
        that begin with `cumulative_` add up over the rounds of a run; other floats, such as a rate, are
        averaged over the rounds since the last row.
      message_bytes: `message_bytes(state) -> {name: bytes}`, the size of one message of each kind that
        rounds count, from shapes alone; see `traffic`.
      hparams: name -> default value of what a sweep may vary, such as learning rates.
      settings: name -> JSON value of what is fixed; a workdir recognises its run by them.
      needs_all_data: whether a round reads rows of clients outside its cohort, so that all data must be
        on the devices.
      num_learners: `m`, if each client of the federation is a learner with its own model; the layout's
        devices share the learners evenly.
      specs: pytree prefix of the state: how its parts are sharded over the layout's devices.
      reads_own_rows: whether each learner reads only its own rows, so that a device needs only the rows
        of its learners.
      check: `check(data, num_rounds)`, raises ValueError for data that does not last so long.
      check_hparams: function of name -> value; raises ValueError for a value out of range. By default
        all values are rates, finite and at least 0.
      lane_bytes: `lane_bytes(examples)`, approximate device memory of a lane, from shapes alone; None
        if unknown.
      most_slots: `most_slots(sizes [K] float64) -> [K]`, example slots that clients of these sizes
        execute in a round, used to refuse rounds too long for their counters; None skips the check.
      num_classes: see `Task`.
      memory: `memory(key, params) -> row`, what ONE client remembers before it first takes part; the
        simulation keeps the rows of all clients. None for clients without memory.
      model_of: `model_of(state, own_k, id) -> params`, the model that client `id` uses itself. `own_k`
        is its memory, `()` without one. By default the shared model; None if only the client's data
        tells. See `View.models`.
      parts: `parts(examples) -> {name: (function, *arguments)}`, pure functions that make up the round,
        with the shapes of their arguments. The workdir of another run reports which parts differ. What
        "model or loss", (task.loss, params, batch, key), returns is checked before any training.
      cohorts: the `Sampler` of its cohorts, unless `simulate` is given one; None for uniform draws.
      check_cohort: `check_cohort(cohort)`, raises ValueError for cohorts that it cannot train; only
        shapes are known. By default, cohorts with a lag are refused.
      errors: name -> message; a round whose `info` has a true value of this name ends the run with the
        message, as a ValueError.
    """

    init: Callable[..., Any]
    round: Callable[[jax.Array, Any, Any, Any, Cohort], tuple[Any, Any, dict[str, jax.Array]]]
    message_bytes: Callable[[Any], Mapping[str, int]]
    hparams: Mapping[str, float]
    settings: Mapping[str, Any]
    needs_all_data: bool = False
    num_learners: int | None = None
    specs: Any = PartitionSpec()
    reads_own_rows: bool = False
    check: Callable[[Any, int], None] = _accept
    check_hparams: Callable[[Mapping[str, float]], None] = check_rates
    lane_bytes: Callable[[Batch], int] | None = None
    most_slots: Callable[[Any], Any] | None = None
    num_classes: int | None = None
    memory: Callable[[jax.Array, Params], Any] | None = None
    model_of: Callable[[Any, Any, jax.Array], Params] | None = _shared_model
    parts: Callable[[Batch], Mapping[str, tuple]] = _no_parts
    cohorts: Any = None
    check_cohort: Callable[[Cohort], None] = _without_lag
    errors: Mapping[str, str] = types.MappingProxyType({})

    def __repr__(self) -> str:
        fixed = dict(self.settings)
        name = fixed.pop("algorithm", "an algorithm")
        told = {**self.hparams, **{k: v for k, v in fixed.items() if isinstance(v, str | int | float)}}
        return f"<{name}: {', '.join(f'{k}={v}' for k, v in told.items())}>"
