"""Compiled, batched and masked evaluation of a model on all examples of a data set."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.types import Layout, Params, Task
from fedjax_sim.engine.placement import map_rows, pad_rows, place
from fedjax_sim.runtime.devices import default_layout
from fedjax_sim.runtime.processes import fetch
from fedjax_sim.simulation import programs

_BATCH_SIZE = 250  # rows that a device works on at a time; bounds the memory of activations


class RowMetrics:
    """The metrics of each example under a model; the evaluations below are sums of them.

    Args:
      task: task with the metrics.
      examples: column name -> `[n, ...]`, NumPy.
      layout: devices that share the work.

    Raises:
      ValueError: there are no examples.
    """

    def __init__(self, task: Task, examples: Mapping[str, np.ndarray], layout: Layout):
        self._n = len(next(iter(examples.values()), ()))
        if self._n == 0:
            raise ValueError("got no examples to evaluate on; wanted at least one")
        self._rows, self._batch_size = pad_rows(dict(examples), layout, _BATCH_SIZE)
        self._metrics, self._layout = task.metrics, layout
        self._model = jax.tree.map(np.shape, jax.eval_shape(task.init, jax.random.key(0)))
        self._program: programs.Program | None = None

    def digest(self, params: Params) -> str:
        """Identifies the metrics and the examples; of `params` only the shapes matter."""
        rows = jax.tree.map(lambda column: fetch(column)[: self._n], self._rows)
        batch = jax.tree.map(
            lambda column: jax.ShapeDtypeStruct((2, *column.shape[1:]), column.dtype), rows
        )
        metrics = programs.digest(self._metrics, programs.shapes_of(params), batch)
        return f"{metrics}-{programs.digest_arrays(rows)}"

    def __call__(self, params: Params) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns name -> (total `[n]`, count `[n]`), float64 on the host.

        Raises:
          ValueError: `params` are not one model of the task.
        """
        shapes = jax.tree.map(np.shape, params)
        if shapes != self._model:
            raise ValueError(
                f"got parameters of the shapes {shapes}; wanted one model of the task, {self._model}: "
                "cluster_evaluator takes k models, [k, ...]"
            )
        params = place(params, self._layout)
        program = self._program or programs.trace_once(
            _row_metrics,
            params,
            self._rows,
            metrics=self._metrics,
            layout=self._layout,
            batch_size=self._batch_size,
        )
        self._program = program
        outputs = _run_metrics(program, self._layout, program.consts, params, self._rows)
        # The rows that pad the last batch are cut off here, before any sum.
        return jax.tree.map(lambda a: a[: self._n].astype(np.float64), fetch(outputs))


class Evaluation:
    """A function of params, with results such as `{"test_accuracy": 0.97}`, and its digest.

    Args:
      evaluate: the function.
      rows: rows that it evaluates.
      kind: what it computes from them, as part of the digest.
      model: function from its argument to a model for `rows`.
    """

    def __init__(
        self,
        evaluate: Callable[[Params], dict[str, float]],
        rows: RowMetrics,
        kind: str,
        model: Callable[[Params], Params] = lambda params: params,
    ):
        self._evaluate, self._rows, self._kind, self._model = evaluate, rows, kind, model

    def __call__(self, params: Params) -> dict[str, float]:
        return self._evaluate(params)

    def digest(self, params: Params) -> str:
        """Identifies the metrics and the examples, for a workdir to recognise its run."""
        return f"{self._kind}-{self._rows.digest(jax.eval_shape(self._model, params))}"


def _row_metrics(params, rows, *, metrics, layout, batch_size):
    return map_rows(metrics, params, rows, layout, batch_size=batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_metrics(program: programs.Program, layout: Layout, consts: list[Any], *arguments: Any):
    return program.run(consts, *arguments)


def evaluator(
    task: Task, dataset: Any, *, prefix: str = "test", layout: Layout | None = None
) -> Callable[[Params], dict[str, float]]:
    """Returns an evaluation of every metric of a task, as a mean over all examples of a data set.

    Args:
      task: task with the metrics.
      dataset: a `Dataset` or `FederatedData`, with `examples`, column name -> `[n, ...]`.
      prefix: prefix of the names, such as "test" or "full_train".
      layout: devices that share the work; all of them by default.

    Returns:
      A function of params with results such as `{"test_accuracy": 0.97, "test_loss": 0.1}`.

    Raises:
      ValueError: there are no examples.
    """
    rows = RowMetrics(task, dataset.examples, layout or default_layout())

    def evaluate(params: Params) -> dict[str, float]:
        return {
            f"{prefix}_{name}": float(total.sum() / max(count.sum(), 1))
            for name, (total, count) in rows(params).items()
        }

    return Evaluation(evaluate, rows, prefix)


def each_client_evaluator(
    task: Task, data: Any, *, layout: Layout | None = None
) -> Callable[[Params], np.ndarray]:
    """Returns a function that evaluates the model on each client's own examples.

    Args:
      task: task with a metric "accuracy".
      data: a `FederatedData`.
      layout: devices that share the work; all of them by default.

    Returns:
      A function from params to `[N]` float64, NaN for a client without data.

    Raises:
      ValueError: there are no examples.
    """
    return _of_each_client(task, data, layout)[0]


def _of_each_client(
    task: Task, data: Any, layout: Layout | None
) -> tuple[Callable[[Params], np.ndarray], RowMetrics]:
    """Returns the function of `each_client_evaluator`, and the rows that it evaluates."""
    rows, by_client = _rows_of_clients(task, data, layout)

    def evaluate(params: Params) -> np.ndarray:
        total, count = (by_client(part) for part in rows(params)["accuracy"])
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)

    return evaluate, rows


def _rows_of_clients(
    task: Task, data: Any, layout: Layout | None
) -> tuple[RowMetrics, Callable[[np.ndarray], np.ndarray]]:
    """Returns the rows that clients own, and a function that sums `[n]` numbers by client, `[N]`."""
    offsets = np.asarray(data.offsets)
    num_clients = len(offsets) - 1
    owned = {name: np.asarray(column[: offsets[-1]]) for name, column in data.examples.items()}
    owner = np.repeat(np.arange(num_clients), np.diff(offsets))
    rows = RowMetrics(task, owned, layout or default_layout())
    return rows, lambda part: np.bincount(owner, part, num_clients)


def client_evaluator(
    task: Task, data: Any, *, layout: Layout | None = None
) -> Callable[[Params], dict[str, float]]:
    """Returns an evaluation of accuracy's spread over clients with data; see `each_client_evaluator`.

    Returns:
      A function of params with results "client_accuracy_min", "_p10", "_median", "_p90", "_max".
    """
    of_each, rows = _of_each_client(task, data, layout)
    points = {"min": 0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1}

    def evaluate(params: Params) -> dict[str, float]:
        values = np.nanquantile(of_each(params), list(points.values()))
        return {f"client_accuracy_{name}": float(v) for name, v in zip(points, values, strict=True)}

    owners = programs.digest_arrays(np.asarray(data.offsets))
    return Evaluation(evaluate, rows, f"clients-{owners}")


def cluster_evaluator(
    task: Task, data: Any, *, prefix: str = "test", layout: Layout | None = None
) -> Callable[[Params], dict[str, float]]:
    """Returns an evaluation of k models, where each client uses the one with its least loss.

    Args:
      task: task with a metric "loss".
      data: a `FederatedData` of clients to test, each on its own examples.
      prefix: prefix of the names.
      layout: devices that share the work; all of them by default.

    Returns:
      A function of the params of k models, `[k, ...]`, with every metric of the task, as a mean over
      all examples.

    Raises:
      ValueError: there are no examples.
    """
    rows, by_client = _rows_of_clients(task, data, layout)

    def evaluate(params: Params) -> dict[str, float]:
        k = len(jax.tree.leaves(params)[0])
        of_models = [rows(jax.tree.map(lambda w, j=j: w[j], params)) for j in range(k)]
        sums = jax.tree.map(lambda *parts: np.stack([by_client(part) for part in parts]), *of_models)
        total, count = sums["loss"]
        best = np.argmin(total / np.maximum(count, 1), axis=0)[None]
        chosen = jax.tree.map(lambda part: np.take_along_axis(part, best, 0).sum(), sums)
        return {
            f"{prefix}_{name}": float(total / max(count, 1)) for name, (total, count) in chosen.items()
        }

    owners = programs.digest_arrays(np.asarray(data.offsets))
    first = functools.partial(jax.tree.map, lambda w: w[0])
    return Evaluation(evaluate, rows, f"clusters-{prefix}-{owners}", model=first)
