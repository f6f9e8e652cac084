"""FedBN: layers that keep state, such as BatchNorm, stay with the clients.

X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou, "FedBN: federated learning on non-IID features via local
batch normalization", ICLR 2021, https://arxiv.org/abs/2102.07623, algorithm 1.
"""

from typing import Any

import jax
import optax
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path, tree_leaves_with_path

from fedjax_sim.aggregation import Aggregator
from fedjax_sim.algorithms.common import local_sgd
from fedjax_sim.core import trees
from fedjax_sim.core.task_checks import check_task
from fedjax_sim.core.types import Algorithm, Task, Variables
from fedjax_sim.engine.optimizers import Rate


def fed_bn(
    task: Task,
    client_optimizer: Any = optax.sgd,
    server_optimizer: Any = optax.sgd,
    *,
    local_epochs: int,
    batch_size: float,
    client_lr: Rate = None,
    server_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "examples",
    shuffle: str = "each_epoch",
    aggregator: Aggregator | None = None,
) -> Algorithm:
    """Averages all layers but those that keep state, whose parameters and state each client remembers.

    The state's `params` are the shared leaves alone, a dict from path to array; only they are sent. No
    client uses them by themselves: evaluate with `fs.simulation.own_model_evaluator`, where each client
    has its own model, `Variables`.

    Arguments are those of `fed_avg`; the aggregator takes the updates of the shared leaves.

    Raises:
      ValueError: a setting is out of its range, a rate is given twice or not at all, the aggregator does
        not go with the weighting, or no layer of the model keeps state, or all do.
    """
    check_task(task)
    layers = _Layers(jax.eval_shape(task.init, jax.random.key(0)))
    training = {"local_epochs": local_epochs, "batch_size": batch_size, "shuffle": shuffle}
    rates = {"client_lr": client_lr, "server_lr": server_lr, "lr_decay": lr_decay}
    means = {"weighting": weighting, "aggregator": aggregator}
    local = local_sgd(
        task,
        client_optimizer,
        server_optimizer,
        **training,
        **rates,
        **means,
        init_params=lambda key: layers.split(task.init(key))[0],
    )

    def enter(shared, own_k, client, key):
        (w, eta, _), (kept, _) = shared, own_k
        return layers.join(w, kept), eta

    def leave(shared, own_k, client, trained, key):
        (w, _, view), (_, of_stages), (model, losses) = shared, own_k, trained
        w_k, kept = layers.split(model)
        update, weight = trees.subtract(w_k, w), local.weight_of(client.size)
        output = local.aggregator.send(view, of_stages, update, weight, losses, key)
        return output._replace(own=(kept, output.own))

    def memory(key, w):
        of_stages = local.aggregator.memory(w) if local.aggregator.remembers else ()
        return layers.split(task.init(key))[1], of_stages

    return local.algorithm(
        "fed_bn",
        local.round(leave, enter=enter),
        memory=memory,
        model_of=lambda state, own_k, id: layers.join(state.params, own_k[0]),
    )


class _Layers:
    """The layers of a model that keep state, and those that do not.

    Args:
      model: the model's `Variables`, shapes and dtypes alone.

    Raises:
      ValueError: no layer keeps state, or all do.
    """

    def __init__(self, model: Any):
        if not isinstance(model, Variables):
            raise ValueError(
                "no layer of the model keeps state, so FedBN has nothing to leave with the clients; "
                "wanted a model with BatchNorm, such as fs.models.resnet18(norm='batch'), or fed_avg"
            )
        leaves, self._structure = tree_flatten_with_path(model.params)
        self._paths = [keystr(path, simple=True, separator="/") for path, _ in leaves]
        states = [_layer(path) for path, _ in tree_leaves_with_path(model.state)]
        # linen's states begin with the name of a collection, nnx's do not.
        layers = {*states, *(path[1:] for path in states)}
        own = [_layer(path) in layers for path, _ in leaves]
        self._kept = {path for path, kept in zip(self._paths, own, strict=True) if kept}
        if all(own):
            raise ValueError(
                "all layers of the model keep state, so that nothing would be shared; wanted a layer "
                "without any, such as a last Dense"
            )

    def split(self, model: Variables) -> tuple[dict, tuple[dict, Any]]:
        """Returns the shared leaves, and what a client keeps: leaves of its own, and the state."""
        leaves = dict(zip(self._paths, jax.tree.leaves(model.params), strict=True))
        own = {path: leaf for path, leaf in leaves.items() if path in self._kept}
        return {path: leaf for path, leaf in leaves.items() if path not in own}, (own, model.state)

    def join(self, shared: dict, kept: tuple[dict, Any]) -> Variables:
        """Returns the model of these parts."""
        own, state = kept
        leaves = [(shared | own)[path] for path in self._paths]
        return Variables(jax.tree.unflatten(self._structure, leaves), state)


def _layer(path: tuple) -> tuple:
    """Returns the path of the layer that has the leaf at `path`, which nnx ends with an attribute."""
    return path[:-2] if isinstance(path[-1], GetAttrKey) else path[:-1]
