"""Compiled, batched and masked evaluation of a model on all examples of a data set."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.task_checks import check_metrics, described
from fedjax_sim.core.types import Layout, Params, Task
from fedjax_sim.engine.placement import map_rows
from fedjax_sim.simulation import programs
from fedjax_sim.simulation.row_batches import RowBatches


class RowMetrics:
    """The metrics of each example under a model; the evaluations below are sums of them.

    Attributes:
      arrays: names of the metrics that are arrays.

    Args:
      task: task with the metrics.
      examples: column name -> `[n, ...]`, NumPy.
      layout: devices that share the work, see `RowBatches`.

    Raises:
      ValueError: there are no examples, or the metrics are not as `Task` says.
    """

    def __init__(self, task: Task, examples: Mapping[str, np.ndarray], layout: Layout | None):
        self._rows, self._metrics = RowBatches(task, examples, layout), task.metrics
        if not callable(task.metrics):
            raise ValueError(
                f"the task's metrics is {described(task.metrics)}; wanted a function from params and a "
                "batch to a dict of pairs (total [B], count [B])"
            )
        found = check_metrics(self._rows.shapes(task.metrics), self._rows.batch_size)
        self.arrays = [name for name, (total, _) in found.items() if len(total.shape) > 1]
        self._numbers = [name for name in found if name not in self.arrays]

    def check_has(self, name: str) -> None:
        """Checks that there is a metric of this name, one number for each example.

        Raises:
          ValueError: there is none.
        """
        if name not in self._numbers:
            raise ValueError(
                f"the task has no metric {name!r}; its metrics are {', '.join(self._numbers) or 'none'}"
            )

    def digest(self, params: Params) -> str:
        """Identifies the metrics and the examples; of `params` only the shapes matter."""
        return self._rows.digest(self._metrics, params)

    def __call__(self, params: Params) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns name -> (total `[n]`, count `[n]`), float64 on the host.

        Totals and counts of more axes, `[B, ...]`, are summed over each batch: `[batches, ...]`.

        Raises:
          ValueError: `params` are not one model of the task.
        """
        outputs = self._rows.run(_row_metrics, params, metrics=self._metrics)
        # The rows that pad the last batch are cut off here, before any sum.
        return jax.tree.map(
            lambda a: (a[: self._rows.n] if a.ndim == 1 else a).astype(np.float64), outputs
        )


def _ratio(total: np.ndarray, count: np.ndarray) -> float | np.ndarray:
    """Returns the ratio of the sums, of an array entry by entry."""
    total, count = total.sum(axis=0), count.sum(axis=0)
    if total.ndim == 0:
        return float(total / max(count, 1))
    # A NaN says that there are no examples. One from the model is turned into an infinity, which ends
    # the run as a NaN among other metrics does.
    total, empty = np.where(np.isnan(total), np.inf, total), np.full(total.shape, np.nan)
    return np.divide(total, count, out=empty, where=np.broadcast_to(count > 0, total.shape))


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
        evaluate: Callable[[Params], dict[str, Any]],
        rows: RowMetrics,
        kind: str,
        model: Callable[[Params], Params] = lambda params: params,
    ):
        self._evaluate, self._rows, self._kind, self._model = evaluate, rows, kind, model

    def __call__(self, params: Params) -> dict[str, Any]:
        return self._evaluate(params)

    def digest(self, params: Params) -> str:
        """Identifies the metrics and the examples, for a workdir to recognise its run."""
        return f"{self._kind}-{self._rows.digest(jax.eval_shape(self._model, params))}"


def _row_metrics(params, rows, real, *, metrics, layout, batch_size):
    def of_batch(params, batch):
        rows, real = batch
        # Arrays of each example, such as confusion matrices, would fill the memory.
        return jax.tree.map(
            lambda part: part if part.ndim == 1 else _summed(part, real), dict(metrics(params, rows))
        )

    return map_rows(of_batch, params, (rows, real), layout, batch_size=batch_size)


def _summed(part: jax.Array, real: jax.Array) -> jax.Array:
    """Returns the sum of `[B, ...]` over real rows, `[1, ...]` float32."""
    mask = real.reshape(-1, *[1] * (part.ndim - 1))
    return jnp.where(mask, part.astype(jnp.float32), 0).sum(axis=0, keepdims=True)


def evaluator(
    task: Task, dataset: Any, *, prefix: str = "test", layout: Layout | None = None
) -> Callable[[Params], dict[str, Any]]:
    """Returns an evaluation of every metric of a task, as a mean over all examples of a data set.

    Args:
      task: task with the metrics.
      dataset: a `Dataset` or `FederatedData`, with `examples`, column name -> `[n, ...]`.
      prefix: prefix of the names, such as "test" or "full_train".
      layout: devices that share the work; by default the one that has the parameters, or all.

    Returns:
      A function of params with results such as `{"test_accuracy": 0.97, "test_loss": 0.1}`; a metric
      that is an array gives one, NaN where its count is zero.

    Raises:
      ValueError: there are no examples, or the metrics are not as `Task` says.
    """
    rows = RowMetrics(task, dataset.examples, layout)

    def evaluate(params: Params) -> dict[str, Any]:
        return {f"{prefix}_{name}": _ratio(*parts) for name, parts in rows(params).items()}

    return Evaluation(evaluate, rows, prefix)


def each_client_evaluator(
    task: Task, data: Any, *, metric: str = "accuracy", layout: Layout | None = None
) -> Callable[[Params], np.ndarray]:
    """Returns a function that evaluates the model on each client's own examples.

    Args:
      task: task with the metric.
      data: a `FederatedData`.
      metric: one of the task's metrics that are numbers.
      layout: devices that share the work; by default the one that has the parameters, or all.

    Returns:
      A function from params to `[N]` float64, in the order of `data.client_ids`, NaN for a client
      without data.

    Raises:
      ValueError: there are no examples, or no such metric.
    """
    return _of_each_client(task, data, metric, layout)[0]


def _of_each_client(
    task: Task, data: Any, metric: str, layout: Layout | None
) -> tuple[Callable[[Params], np.ndarray], RowMetrics]:
    """Returns the function of `each_client_evaluator`, and the rows that it evaluates."""
    rows, by_client = _rows_of_clients(task, data, layout)
    rows.check_has(metric)

    def evaluate(params: Params) -> np.ndarray:
        total, count = (by_client(part) for part in rows(params)[metric])
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
    rows = RowMetrics(task, owned, layout)
    return rows, lambda part: np.bincount(owner, part, num_clients)


def client_evaluator(
    task: Task, data: Any, *, metric: str = "accuracy", layout: Layout | None = None
) -> Callable[[Params], dict[str, float]]:
    """Returns an evaluation of a metric's spread over clients with data; see `each_client_evaluator`.

    Returns:
      A function of params with results "client_accuracy_min", "_p10", "_median", "_p90", "_max", or with
      those of another metric.
    """
    of_each, rows = _of_each_client(task, data, metric, layout)
    points = {"min": 0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1}

    def evaluate(params: Params) -> dict[str, float]:
        values = np.nanquantile(of_each(params), list(points.values()))
        return {f"client_{metric}_{name}": float(v) for name, v in zip(points, values, strict=True)}

    owners = programs.digest_arrays(np.asarray(data.offsets))
    kind = "clients" if metric == "accuracy" else f"clients-{metric}"
    return Evaluation(evaluate, rows, f"{kind}-{owners}")


def cluster_evaluator(
    task: Task, data: Any, *, prefix: str = "test", layout: Layout | None = None
) -> Callable[[Params], dict[str, float]]:
    """Returns an evaluation of k models, where each client uses the one with its least loss.

    Args:
      task: task with a metric "loss".
      data: a `FederatedData` of clients to test, each on its own examples.
      prefix: prefix of the names.
      layout: devices that share the work; by default the one that has the parameters, or all.

    Returns:
      A function of the params of k models, `[k, ...]`, with every metric of the task, as a mean over
      all examples.

    Raises:
      ValueError: there are no examples, there is no "loss", or a metric is an array.
    """
    rows, by_client = _rows_of_clients(task, data, layout)
    rows.check_has("loss")
    if rows.arrays:
        raise ValueError(
            f"the metric {rows.arrays[0]!r} is an array, which is not summed by client; wanted a task "
            "without it, such as the one before with_class_metrics"
        )

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
