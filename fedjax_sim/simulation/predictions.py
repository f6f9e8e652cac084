"""Predictions of a model for all examples of a data set, and evaluations that are made of them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedjax_sim.core.task_checks import check_task, described
from fedjax_sim.core.types import Layout, Params, Task
from fedjax_sim.engine.placement import map_rows
from fedjax_sim.runtime.processes import fetch
from fedjax_sim.simulation.row_batches import RowBatches


def _predictions(params, rows, real, *, function, layout, batch_size):
    del real
    return map_rows(function, params, rows, layout, batch_size=batch_size)


class _Predictor:
    """A function from params to the predictions of a task for some examples, `[n, ...]`."""

    def __init__(self, task: Task, dataset: Any, layout: Layout | None):
        check_task(task)
        if task.predict is None:
            raise ValueError(
                "the task has no predict; wanted from_loss(..., predict=function), or "
                "task._replace(predict=function), with predict(params, batch) -> [B, ...]"
            )
        examples = getattr(dataset, "examples", dataset)
        if not isinstance(examples, Mapping):
            raise ValueError(
                f"the data is {described(examples)}; wanted a data set, or a dict of columns [n, ...], "
                'such as {"x": x}'
            )
        self._rows = RowBatches(task, examples, layout)
        self._function = task.predict
        found = self._rows.shapes(task.predict)
        if getattr(found, "shape", ())[:1] != (self._rows.batch_size,):
            raise ValueError(
                f"the task's predict returned {described(found)} for a batch of "
                f"{self._rows.batch_size} examples; wanted one array [{self._rows.batch_size}, ...]"
            )

    def __call__(self, params: Params) -> np.ndarray:
        return self._rows.run(_predictions, params, function=self._function)[: self._rows.n]


def predict(task: Task, params: Params, dataset: Any, *, layout: Layout | None = None) -> np.ndarray:
    """Returns a model's predictions for all examples of a data set.

    For example, with scikit-learn's metrics:

        probabilities = fs.predict(task, result.params, test)
        sklearn.metrics.roc_auc_score(test.examples["y"], probabilities, multi_class="ovr")

    Args:
      task: task with `predict`. Those of `fs.models` predict probabilities of classes or labels, numbers
        for a regressor, and symbols for a language model.
      params: one model of the task, such as `result.params`.
      dataset: a `Dataset` or `FederatedData`, or column name -> `[n, ...]` with the columns that
        `predict` reads.
      layout: devices that share the work; by default the one that has the parameters, or all.

    Returns:
      `[n, ...]`, in the order of the examples.

    Raises:
      ValueError: the task has no `predict`, it does not return one array `[B, ...]`, there are no
        examples, or `params` are not one model of the task.
    """
    return _Predictor(task, dataset, layout)(params)


def prediction_evaluator(
    task: Task,
    dataset: Any,
    functions: Mapping[str, Callable[[np.ndarray, np.ndarray], float]],
    *,
    prefix: str = "test",
    layout: Layout | None = None,
) -> Callable[[Params], dict[str, Any]]:
    """Returns an evaluation by functions of all labels and predictions, such as scikit-learn's.

    For example:

        def auc(y, probabilities):
            return sklearn.metrics.roc_auc_score(y, probabilities, multi_class="ovr")

        evaluate = fs.simulation.prediction_evaluator(task, test, {"auc": auc})

    Args:
      task: task with `predict`, see `predict`.
      dataset: a `Dataset` or `FederatedData`.
      functions: name -> function from `y` `[n, ...]` and predictions `[n, ...]`, NumPy, to a number or
        an array of numbers.
      prefix: prefix of the names.
      layout: devices that share the work; by default the one that has the parameters, or all.

    Returns:
      A function of params with results such as `{"test_auc": 0.97}`. It is a plain function for a
      workdir, which cannot see inside `functions`; see `simulate`.

    Raises:
      ValueError: see `predict`; or there is no column "y", or `functions` is not a dict of functions.
    """
    if not isinstance(functions, Mapping) or not all(map(callable, functions.values())):
        raise ValueError(
            f"functions is {described(functions)}; wanted a dict from names to functions of (y, "
            'predictions), such as {"auc": auc}'
        )
    if "y" not in getattr(dataset, "examples", ()):
        raise ValueError("the data set has no column 'y' to compare predictions with; wanted one")
    predictions = _Predictor(task, dataset, layout)
    y = fetch(dataset.examples["y"])

    def evaluate(params: Params) -> dict[str, Any]:
        found = predictions(params)
        return {f"{prefix}_{name}": function(y, found) for name, function in functions.items()}

    return evaluate
