"""Partial training: some leaves of a model train, the others stay as they are and are never sent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Params, Task, Variables


class PartialTraining(NamedTuple):
    """A task of some leaves of a model, and the way back to the whole model.

    Attributes:
      task: the task; its parameters are the trainable leaves, a dict from path to array, or `Variables`
        of it and the model's state.
      join: `join(params) -> params`, the whole model with these trainable leaves.
    """

    task: Task
    join: Callable[[Params], Params]


def trainable(task: Task, predicate: Callable[[str], bool], params: Params) -> PartialTraining:
    """Splits a task's model into leaves that train and leaves that are frozen.

    Algorithms only see the trainable leaves: no others are updated, sent, or counted in the ledger's
    bytes. Training begins with `params`, whatever the run's key. The state of a model that keeps any,
    such as BatchNorm's statistics, always changes with training.

    For example, only the last layer of a network trains:

        part = fs.models.trainable(task, lambda path: path.startswith("Dense_2/"), params)
        algorithm = fs.fed_avg(part.task, client_lr=0.1, local_epochs=1, batch_size=10)
        evaluate = fs.evaluator(part.task, test)
        result = fs.simulate(algorithm, clients, key=key, num_rounds=10, evaluate=evaluate)
        whole = part.join(result.params)

    Args:
      task: task of the whole model.
      predicate: function of a leaf's path, such as "Dense_0/kernel", that says whether it trains.
      params: parameters of the whole model, such as those of an earlier run.

    Returns:
      The task of the trainable leaves, and the function that joins them with the frozen ones.

    Raises:
      ValueError: `params` are not of this task's model, or no leaf trains.
    """
    like = jax.eval_shape(task.init, jax.random.key(0))
    if _kinds(params) != _kinds(like):
        raise ValueError(
            f"params are {_kinds(params)}; wanted those of the task's model, {_kinds(like)}"
        )
    variables = params if isinstance(params, Variables) else Variables(params, None)
    leaves, structure = jax.tree.flatten(variables.params)
    paths = list(_kinds(variables.params)[1])
    trains = [bool(predicate(path)) for path in paths]
    if not any(trains):
        raise ValueError(f"predicate chooses no leaf to train; there are {', '.join(paths)}")
    # Copied, since a run may consume the caller's arrays.
    leaves, state = jax.tree.map(jnp.array, (leaves, variables.state))
    chosen = {path: leaf for path, leaf, t in zip(paths, leaves, trains, strict=True) if t}

    def join(params: Params) -> Params:
        if isinstance(params, Variables):
            return params._replace(params=join(params.params))
        whole = [params.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        return jax.tree.unflatten(structure, whole)

    def joined(function: Callable | None) -> Callable | None:
        if function is None:
            return None
        return lambda params, *arguments: function(join(params), *arguments)

    def init(key: jax.Array) -> Params:
        return Variables(chosen, state) if isinstance(params, Variables) else chosen

    functions = (task.loss, task.metrics, task.predict, task.loss_and_state)
    loss, metrics, predict, loss_and_state = map(joined, functions)
    of_part = Task(init, loss, metrics, task.num_classes, predict, loss_and_state)
    return PartialTraining(of_part, join)


def _kinds(params: Params) -> tuple[Any, dict[str, str]]:
    """Returns the structure of parameters, and path -> dtype and shape of each leaf."""
    kinds = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kinds[name] = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
    return jax.tree.structure(params), kinds
