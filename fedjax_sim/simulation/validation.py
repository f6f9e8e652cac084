"""Checks of a run's arguments, before anything is compiled."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import as_float
from fedjax_sim.core.task_checks import check_loss
from fedjax_sim.core.types import Algorithm, Cohort, Layout
from fedjax_sim.runtime.processes import fetch
from fedjax_sim.simulation.cohorts import CohortDraws

EvaluationFn = Callable[[Any], Mapping[str, Any]]  # name -> float, or an array of them

# Half of what an int32 counts: the planner marks unused lanes by a load of that size.
_MOST_SLOTS = 2**30
_IDLE = 1.05  # factor by which idle lanes may increase the work of a round


def check_kinds(algorithm: Any, data: Any) -> None:
    """Checks that the first two arguments of a run are an algorithm and a federation.

    Raises:
      ValueError: one of them is something else.
    """
    if not isinstance(algorithm, Algorithm):
        raise ValueError(
            f"algorithm is a {type(algorithm).__name__}; wanted an fs.Algorithm, such as "
            "fs.fed_avg(...), before the data"
        )
    if not hasattr(data, "offsets"):
        make = "from_clients(data)" if isinstance(data, Mapping) else "federate(data, partition)"
        raise ValueError(
            f"data is a {type(data).__name__}; wanted a FederatedData: fs.data.{make} makes one"
        )


def check_key(key: Any) -> None:
    """Checks that a run's key is one PRNG key.

    Raises:
      ValueError: it is something else, such as a seed.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_new = shape == () and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_old = dtype == jnp.uint32 and len(shape) == 1  # of jax.random.PRNGKey
    if not (is_new or is_old):
        got = repr(key)[:40] if dtype is None else f"{dtype}{list(shape)}"
        raise ValueError(f"key is {got}; wanted one PRNG key, such as jax.random.key(0)")


def as_evaluators(
    evaluate: EvaluationFn | Sequence[EvaluationFn], stop_at: float | None
) -> tuple[EvaluationFn, ...]:
    """Returns the evaluations as a tuple.

    Raises:
      ValueError: an evaluation is no function, `stop_at` is not in (0, 1], or there is no evaluation to
        compare with it.
    """
    is_one = callable(evaluate) or not np.iterable(evaluate)
    evaluators = (evaluate,) if is_one else tuple(evaluate)
    for evaluator in evaluators:
        if not callable(evaluator):
            raise ValueError(
                f"evaluate holds a {type(evaluator).__name__}; wanted functions of params, such as "
                "fs.evaluator(task, data)"
            )
    if stop_at is not None and not 0 < stop_at <= 1:
        raise ValueError(f"the target accuracy is {stop_at}; wanted a share in (0, 1]")
    if stop_at is not None and not evaluators:
        raise ValueError("a target accuracy needs an evaluation, such as fs.evaluator(task, test)")
    return evaluators


def merge_hparams(algorithm: Algorithm, given: Mapping[str, float]) -> dict[str, float]:
    """Returns the algorithm's hyper-parameters with `given` in place of their defaults.

    Raises:
      ValueError: the algorithm lacks a hyper-parameter in `given`, or a value is out of range.
    """
    defaults = algorithm.hparams
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"this algorithm has no hyper-parameter {', '.join(unknown)}; it has {', '.join(defaults)}"
        )
    merged = {name: as_float(name, v) for name, v in (dict(defaults) | dict(given)).items()}
    algorithm.check_hparams(merged)
    return merged


def as_rates(hparams: Mapping[str, float]) -> dict[str, np.float32]:
    """Returns hyper-parameters as a compiled program takes them."""
    return {name: np.float32(value) for name, value in hparams.items()}


def check_data(algorithm: Algorithm, data: Any, num_rounds: int) -> None:
    """Checks that the algorithm can run on the data.

    Raises:
      ValueError: the data has no examples, its files have shrunk, it does not suit the algorithm, or the
        task's loss does not return a total and a count for each example.
    """
    if int(data.offsets[-1]) == 0:
        raise ValueError("no client of the federation has any data; wanted at least one example")
    labels, classes = data.examples.get("y"), algorithm.num_classes
    if labels is not None and classes is not None and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"column 'y' holds {labels.dtype}; wanted integer labels for the model's {classes} classes: "
            "call .astype(int)"
        )
    data.check(algorithm.num_classes)
    if algorithm.num_learners not in (None, data.num_clients):
        raise ValueError(
            f"the algorithm has {algorithm.num_learners} learners, the federation {data.num_clients} "
            "clients; wanted one client per learner"
        )
    algorithm.check(data, num_rounds)
    loss = algorithm.parts(data.examples).get("model or loss")
    if loss is not None:
        function, params, batch, key = loss
        num_examples = jax.tree.leaves(batch)[0].shape[0]
        check_loss(jax.eval_shape(function, params, batch, key), num_examples)


def check_cohort(algorithm: Algorithm, cohort: Cohort) -> None:
    """Refuses a sampler whose cohorts an algorithm cannot train.

    Args:
      algorithm: algorithm to run.
      cohort: shapes of a cohort.

    Raises:
      ValueError: the algorithm refuses it, or one client with a memory may take part twice at once.
    """
    algorithm.check_cohort(cohort)
    if cohort.lag is not None and algorithm.memory is not None:
        raise ValueError(
            "clients that arrive with a lag may take part twice in a round, and this algorithm's "
            "clients have a memory, which only one of the two could write; wanted a sampler without lag"
        )


def check_counters(algorithm: Algorithm, draws: CohortDraws, layout: Layout) -> None:
    """Refuses rounds with more example slots than their counters hold.

    Args:
      algorithm: algorithm to run.
      draws: how cohorts are drawn; the largest clients may be drawn together, and with a lag the
        largest one may take all places.
      layout: lanes and devices; all lanes may last as long as the longest.

    Raises:
      ValueError: a round may have too many example slots.
    """
    if algorithm.most_slots is None:
        return
    sizes, size = draws.sizes, draws.size
    if draws.shapes.cohort.lag is None:
        largest = np.partition(sizes, len(sizes) - size)[len(sizes) - size :]
    else:
        largest = np.full(size, sizes.max())
    # An empty client takes a step as well.
    slots = algorithm.most_slots(np.maximum(largest, 1).astype(np.float64))
    most = _IDLE * slots.sum() + layout.lanes * layout.num_devices * slots.max()
    if most >= _MOST_SLOTS:
        raise ValueError(
            f"a round of {size} clients, the largest with {largest.max()} examples, may execute "
            f"{most:.3g} example slots, padding included; wanted fewer than {_MOST_SLOTS:.3g}, the "
            "limit of its counters: lower local_epochs, batch_size or the client fraction"
        )


def check_initial_params(
    algorithm: Algorithm, hparams: Mapping[str, float], initial_params: Any
) -> None:
    """Refuses parameters that a run cannot begin with.

    Raises:
      ValueError: the parameters differ from the algorithm's in names, shapes or dtypes, hold a NaN or
        an infinity, or the algorithm does not take any.
    """
    if initial_params is None:
        return
    if len(inspect.signature(algorithm.init).parameters) < 4:
        raise ValueError(
            "initial_params is given, but the algorithm's init takes none; wanted "
            "init(key, hparams, num_clients, params=None)"
        )
    rates = as_rates(hparams)
    like = jax.eval_shape(lambda: algorithm.init(jax.random.key(0), rates, 1).params)
    got, wanted = (_paths(tree) for tree in (initial_params, like))
    for path in sorted(got.keys() | wanted.keys()):
        there, now = wanted.get(path, "nothing"), got.get(path, "nothing")
        if there != now:
            raise ValueError(f"initial_params holds {now} at {path or 'the root'}; wanted {there}")
    if jax.tree.structure(initial_params) != jax.tree.structure(like):
        got, wanted = jax.tree.structure(initial_params), jax.tree.structure(like)
        raise ValueError(f"initial_params is a {got}; wanted {wanted}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(initial_params):
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(
                f"initial_params holds a NaN or an infinity at {jax.tree_util.keystr(path)}; wanted "
                "finite numbers"
            )


def check_begins(params: Any, initial_params: Any) -> None:
    """Refuses an algorithm whose `init` ignores the parameters that it was given.

    Args:
      params: parameters of its first state.
      initial_params: what `init` was given, or None.

    Raises:
      ValueError: they differ by more than rounding.
    """
    if initial_params is None:
        return
    trees = (jax.tree.leaves(fetch(tree)) for tree in (params, initial_params))
    pairs = zip(*(map(np.float64, leaves) for leaves in trees), strict=True)
    if not all(np.allclose(got, wanted, rtol=1e-3, atol=1e-6) for got, wanted in pairs):
        raise ValueError(
            "initial_params is given, but the state that the algorithm's init returns has other params; "
            "wanted an init that begins with its `params`, unless they are None"
        )


def _paths(tree: Any) -> dict[str, str]:
    """Returns the arrays of a pytree, path -> dtype and shape."""
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_layout(algorithm: Algorithm, layout: Layout) -> None:
    """Refuses devices that cannot share an algorithm's learners evenly.

    Raises:
      ValueError: the devices cannot share the learners evenly.
    """
    if algorithm.num_learners is not None and algorithm.num_learners % layout.num_devices:
        raise ValueError(
            f"{layout.num_devices} devices cannot share {algorithm.num_learners} learners evenly; "
            f"wanted a layout such as default_layout(num_learners={algorithm.num_learners})"
        )


def check_one_run(num_clients: int, layout: Layout) -> None:
    """Refuses devices and processes that a single run would leave idle.

    Args:
      num_clients: clients per round.
      layout: layout of the run.

    Raises:
      ValueError: the mesh is for several runs, or the job has more processes than clients.
    """
    if layout.num_parts > 1:
        raise ValueError(
            f"the mesh has {layout.num_parts} parts for the runs of a sweep, and there is one run; "
            "leave out mesh_runs"
        )
    if layout.mesh is not None and jax.process_count() > num_clients:
        raise ValueError(
            f"{jax.process_count()} processes share {num_clients} clients a round, so that some would "
            "be idle; start fewer processes, or choose a larger client fraction"
        )
