"""Evaluation of the model that each client uses itself, on its own examples."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core import trees
from fedjax_sim.core.task_checks import check_metrics
from fedjax_sim.core.types import Client, Task
from fedjax_sim.engine.full_data import over_pieces
from fedjax_sim.simulation.validation import EvaluationFn
from fedjax_sim.simulation.view import View, of_view

_MODELS = 100  # models that are on the devices at once


def own_model_evaluator(task: Task, data: Any, *, prefix: str = "own") -> EvaluationFn:
    """Returns an evaluation of personal models: each client's on its own examples.

    For example, with FedBN or any algorithm that says `model_of`:

        train, test = fs.data.split(clients, test=0.2, seed=0)
        evaluate = fs.simulation.own_model_evaluator(task, test)
        result = fs.simulate(fs.fed_bn(task, ...), train, evaluate=evaluate, ...)

    Args:
      task: task with the metrics.
      data: a `FederatedData` of the same clients, in the same order, with the examples to test.
      prefix: prefix of the names.

    Returns:
      An evaluation for `simulate` and `sweep`. Every metric of the task that is a number is shown twice:
      "own_accuracy" is the mean over all examples, "own_accuracy_min" the least of a client with data.

    Raises:
      ValueError: by the evaluation, if `data` has another number of clients than the run, or the
        algorithm cannot tell a client's model.
    """
    offsets = np.asarray(data.offsets, np.int32)
    sizes = np.diff(offsets)
    examples = {name: np.asarray(column) for name, column in data.examples.items()}

    @of_view
    def evaluate(view: View) -> dict[str, float]:
        if view.num_clients != len(sizes):
            raise ValueError(
                f"the data to test have {len(sizes)} clients and the run has {view.num_clients}; wanted "
                "the same clients in the same order, such as fs.data.split returns"
            )
        parts, placed = [], None
        for ids in np.split(np.arange(len(sizes)), range(_MODELS, len(sizes), _MODELS)):
            models = view.models(ids)
            everywhere = jax.tree.leaves(models)[0].sharding
            placed = placed or jax.device_put(examples, everywhere)
            owned = jax.device_put((offsets[ids], sizes[ids]), everywhere)
            parts.append(jax.device_get(_sums(models, placed, *owned, metrics=task.metrics)))
        sums = jax.tree.map(lambda *of_chunks: np.concatenate(of_chunks).astype(np.float64), *parts)
        results = {}
        for name, (total, count) in sums.items():
            results[f"{prefix}_{name}"] = float(total.sum() / max(count.sum(), 1))
            there = count > 0
            results[f"{prefix}_{name}_min"] = float((total[there] / count[there]).min(initial=np.inf))
        return results

    return evaluate


@functools.partial(jax.jit, static_argnames="metrics")
def _sums(models: Any, examples: Any, starts: jax.Array, sizes: jax.Array, *, metrics: Any) -> Any:
    """Returns name -> (total, count), `[n]` each, of the clients' own models `[n, ...]`."""

    def of_piece(model, batch, real, key):
        found = check_metrics(metrics(model, batch), len(real))
        numbers = {name: pair for name, pair in found.items() if pair[0].ndim == 1}
        return jax.tree.map(lambda part: jnp.where(real, part, 0).sum(dtype=jnp.float32), numbers)

    def of_client(client):
        model, start, size = client
        find = functools.partial(of_piece, model)
        rows = jax.tree.map(
            lambda column: jax.ShapeDtypeStruct((1, *column.shape[1:]), column.dtype), examples
        )
        zero = trees.zeros_like(jax.eval_shape(find, rows, jnp.ones(1, bool), key))
        return over_pieces(find, zero, Client(examples, start, size, jnp.int32(0)), key)

    key = jax.random.key(0)
    return jax.lax.map(of_client, (models, starts, sizes))
