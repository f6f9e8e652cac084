"""The contracts between the rooms of the library, and nothing else.

Letters, the same everywhere: `N` clients, `K` clients in a round's cohort, `L` lanes of a device,
`D` devices, `n` examples in all, `n_k` examples of client k, `B` examples in a batch, `E` local
epochs, `R` rounds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from fedjax_sim.core.checks import check_rates

Params = Any  # a pytree of float arrays
Batch = Mapping[str, jax.Array]  # column name -> `[B, ...]`
Ratio = tuple[jax.Array, jax.Array]  # a numerator and a denominator for each example, `[B]` each

RUNS, CLIENTS = "runs", "clients"  # the axes of a mesh of devices
# The id of nobody: beyond every client, so that `table.at[ids].set(rows)` drops what is written there,
# where -1 would overwrite the last client's row.
ABSENT = 2**31 - 1


class Task(NamedTuple):
    """What is learned: a model and its loss, as pure functions.

    Decoding and augmentation belong inside them, so that they run in the compiled step.

    Attributes:
      init: `init(key) -> params`.
      loss: `loss(params, batch, key) -> (total [B], count [B])`, the summed loss of each example and
        how many terms it has: 1 for a classifier, the number of real characters for a language
        model. A batch's loss is `sum(total) / sum(count)` over its real examples.
      metrics: `metrics(params, batch) -> {name: (total [B], count [B])}`, deterministic; evaluation
        adds both over all examples and divides.
      num_classes: how many labels the model tells apart, where `batch["y"]` holds labels; others are
        refused before any training. None where nothing is known.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch, jax.Array], Ratio]
    metrics: Callable[[Params, Batch], dict[str, Ratio]]
    num_classes: int | None = None


class Client(NamedTuple):
    """One client's view of its own rows, as a client function sees it: no client axis anywhere.

    Attributes:
      examples: column name -> `[n, ...]`, the rows of ALL clients (shared, never copied).
      start: `[]` int32, the first row that this client owns.
      size: `[]` int32, `n_k`, how many rows it owns.
      id: `[]` int32, its index in the federation.
    """

    examples: Batch
    start: jax.Array
    size: jax.Array
    id: jax.Array

    def take(self, positions: jax.Array) -> Batch:
        """Gathers the rows at `positions` `[B]`, in `[0, n_k)`, counted from this client's first."""
        rows = self.start + positions
        return {name: column.at[rows].get(mode="clip") for name, column in self.examples.items()}


class ClientOutput(NamedTuple):
    """What leaves one client at the end of its round.

    Attributes:
      message: a pytree that is summed over the cohort, each leaf in its own dtype; it is never multiplied,
        and unsigned integers wrap. For weighted means see `engine.weigh`.
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
    """Where clients run. It never changes what they compute, beyond the order of a float sum.

    Attributes:
      lanes: `L`, how many clients one device trains side by side.
      mesh: the devices; those along its axis "clients" share the clients of a run, those along an axis
        "runs", if it has one, the runs of a sweep. None runs on the default device.
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
        """`D`, the devices that share the clients of a run."""
        return 1 if self.mesh is None else self.mesh.shape[CLIENTS]

    @property
    def num_parts(self) -> int:
        """How many groups of devices share the runs of a sweep."""
        return 1 if self.mesh is None else self.mesh.shape.get(RUNS, 1)

    def describe(self) -> dict[str, Any]:
        """Lanes and mesh as JSON values."""
        return {"lanes": self.lanes, "mesh": None if self.mesh is None else dict(self.mesh.shape)}

    @property
    def is_single(self) -> bool:
        """Whether one device does everything."""
        return self.num_devices * self.num_parts == 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cohort:
    """The clients of one round, in the same order on every device and process.

    Attributes:
      ids: `[K]` int32, indices into the federation, `ABSENT` where fewer clients take part.
      layout: static.
      data_index: `[K]` int32, where the data at hand holds these clients if it holds no others; None if
        it is the whole federation.
      members: `[D * K]` int32, where each device has the rows of its own clients alone: their positions
        in the cohort, in the order of the device's rows, then `ABSENT`. The data's arrays are then as
        many parts. None where every device has the rows of the whole cohort.
    """

    ids: jax.Array
    layout: Layout = dataclasses.field(default=Layout(), metadata={"static": True})
    data_index: jax.Array | None = None
    members: jax.Array | None = None

    @property
    def num_clients(self) -> int:
        """`K`."""
        return self.ids.size


def _accept(data: Any, num_rounds: int) -> None:
    """Finds nothing wrong."""


def _no_parts(examples: Batch) -> dict[str, Any]:
    """Names no part of a round."""
    return {}


class Algorithm(NamedTuple):
    """A federated algorithm: two pure functions and the numbers that may change without compiling.

    Attributes:
      init: `init(key, hparams, num_clients, params=None) -> state`, where `num_clients` is `N`. A state
        has a field `params`, the model to evaluate, and carries `hparams`, so that rates are traced
        values. `params` are the parameters to begin with, if `simulate` is given any.
      round: `round(key, state, own, data, cohort) -> (state, own, info)`, one communication round. `own`
        is the memory of the cohort's clients, `[K, ...]`, or `()`. `info` is a
        dict of scalars: `train_loss`, `examples` (real examples trained on, counted once per epoch),
        `slots` (example slots executed, padding included), the counts of messages (see `exchange`),
        and, where it is found on the way, `finite`: whether all parameters are. Of whatever else there
        is, integers and names that begin with `cumulative_` add up over the rounds of a run; other
        floats, such as a rate, are averaged over the rounds since the last row.
      message_bytes: `message_bytes(state) -> {name: bytes}`, of one message of each kind that rounds
        count, from shapes alone; see `traffic`.
      hparams: name -> default value of what a sweep may vary: learning rates and the like.
      settings: name -> JSON value of what is fixed, by which a workdir recognises its run.
      needs_all_data: a round reads the rows of clients outside its cohort, so that all data has to be on
        the devices.
      num_learners: `m`, where each client of the federation is a learner that keeps a model of its own;
        the layout's devices share the learners evenly.
      specs: a pytree prefix of the state, which parts of it are spread over the layout's devices.
      reads_own_rows: each learner reads its own rows alone, so that a device needs no others than those
        of its learners.
      check: `check(data, num_rounds)` raises ValueError for data that does not last so long.
      check_hparams: of name -> value, raises ValueError for a value out of its range; by default all
        are rates, finite and at least 0.
      lane_bytes: `lane_bytes(examples)`, about what a lane takes of a device's memory, from shapes
        alone; None where nobody knows.
      most_slots: `most_slots(sizes [K] float64) -> [K]`, the example slots that clients of these sizes
        execute in a round, so that a round too long for its counters is refused; None without check.
      num_classes: of the task, see there.
      memory: `memory(key, params) -> row`, what ONE client remembers before it takes part for the first
        time; the simulation keeps the rows of all clients. None for clients without memory.
      parts: `parts(examples) -> {name: (function, *arguments)}`, pure functions that the round is made
        of, with the shapes of their arguments. A workdir of another run names those that differ.
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
    parts: Callable[[Batch], Mapping[str, tuple]] = _no_parts
