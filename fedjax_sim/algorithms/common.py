"""Plumbing that algorithms share; each algorithm's own mathematics stands in its own file."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.messages import exchange
from fedjax_sim.core.types import Batch, Cohort, Params, Task
from fedjax_sim.engine.collectives import CohortResult
from fedjax_sim.engine.optimizers import OptimizerFactory, one_update


def client_weight(weighting: str) -> Callable[[jax.Array], jax.Array]:
    """A function from `n_k` to a client's weight: "examples" or "uniform"; zero without examples."""
    if weighting == "examples":
        return lambda size: size.astype(jnp.float32)
    if weighting == "uniform":
        return lambda size: (size > 0).astype(jnp.float32)
    raise ValueError(f"weighting is {weighting!r}; wanted 'examples' or 'uniform'")


def client_rate(hparams: Mapping[str, jax.Array], round: jax.Array) -> jax.Array:
    """`eta_t = client_lr * lr_decay ** t`, the clients' rate in round t.

    An optimizer that is already built has no `client_lr`; its updates are multiplied by the decay alone.
    """
    return hparams.get("client_lr", 1.0) * hparams["lr_decay"] ** round.astype(jnp.float32)


def parts(
    task: Task, optimizers: Mapping[str, OptimizerFactory], examples: Batch
) -> dict[str, tuple[Any, ...]]:
    """Returns the pure functions that a round is made of, see `Algorithm.parts`.

    Args:
      task: what is learned.
      optimizers: what each is called -> a function from a rate to it.
      examples: column name -> `[n, ...]`; only shapes and dtypes are looked at.
    """
    key = jax.random.key(0)
    params = jax.eval_shape(task.init, key)
    two_rows = {
        name: jax.ShapeDtypeStruct((2, *column.shape[1:]), column.dtype)
        for name, column in examples.items()
    }
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    of_optimizers = {
        name: (functools.partial(one_update, make), rate, params) for name, make in optimizers.items()
    }
    return {
        "initial parameters": (task.init, key),
        "model or loss": (task.loss, params, two_rows, key),
    } | of_optimizers


class ServerState(NamedTuple):
    """What a round needs of the one before where nothing but the server has a memory.

    Attributes:
      params: `w`, the shared model.
      server: the server optimizer's state.
      round: `[]` int32, `t`, the rounds done.
      hparams: name -> `[]` float32.
    """

    params: Params
    server: Any
    round: jax.Array
    hparams: Mapping[str, jax.Array]


def start_server(
    params: Params, optimizer: optax.GradientTransformation, hparams: Mapping[str, jax.Array]
) -> ServerState:
    """The state before the first round."""
    return ServerState(params, optimizer.init(params), jnp.zeros((), jnp.int32), dict(hparams))


def server_step(
    state: ServerState, optimizer: optax.GradientTransformation, gradient: Params, weight: jax.Array
) -> ServerState:
    """The state after a round, by a step along `gradient`.

    A cohort without any data, whose `weight` is zero, changes nothing but the count of rounds.
    """
    updates, server = optimizer.update(gradient, state.server, state.params)
    new = state._replace(params=optax.apply_updates(state.params, updates), server=server)
    new = jax.tree.map(lambda a, b: jnp.where(weight > 0, a, b), new, state)
    return new._replace(round=state.round + 1)


def round_info(result: CohortResult, cohort: Cohort) -> dict[str, jax.Array]:
    """What a round reports whose clients have `LossSums` as metrics and have each exchanged a model."""
    losses = result.metrics
    return {
        "train_loss": losses.total / jnp.maximum(losses.count, 1),
        "examples": losses.examples,
        "slots": result.slots,
    } | exchange(cohort.num_clients)
