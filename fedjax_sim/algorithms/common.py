"""Plumbing shared by the algorithms; the mathematics of each is in its own file."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregation import Aggregator
from fedjax_sim.aggregation.aggregator import View, as_aggregator
from fedjax_sim.aggregation.subspaces import in_coordinates, inside_subspaces
from fedjax_sim.compression.codec import draw_seed, key_of
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.messages import exchange, model_exchange
from fedjax_sim.core.types import Algorithm, Batch, Client, ClientOutput, Cohort, Params, Task
from fedjax_sim.engine.client import local_training, most_slots
from fedjax_sim.engine.collectives import CohortResult
from fedjax_sim.engine.memory import lane_bytes
from fedjax_sim.engine.optimizers import (
    OptimizerFactory,
    Rate,
    as_factory,
    descend,
    one_update,
    rate_in_round,
    rate_of,
)
from fedjax_sim.engine.queues import train_clients
from fedjax_sim.engine.work import ClientWork

# Folded into a round's key, beyond the ids of clients, for the subspaces of a structured codec.
_PATTERN = 2**32 - 4


def client_weight(weighting: str) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from `n_k` to a client's weight: "examples" or "uniform"; zero if empty."""
    if weighting == "examples":
        return lambda size: size.astype(jnp.float32)
    if weighting == "uniform":
        return lambda size: (size > 0).astype(jnp.float32)
    raise ValueError(f"weighting is {weighting!r}; wanted 'examples' or 'uniform'")


def client_rate(hparams: Mapping[str, jax.Array], round: jax.Array, client_lr: Rate) -> jax.Array:
    """Returns `eta_t = client_lr * lr_decay ** t`, the clients' rate in round t.

    A built optimizer has no `client_lr`; its updates are multiplied by the decay alone.
    """
    eta = rate_in_round("client_lr", client_lr, hparams, round)
    return eta * hparams["lr_decay"] ** round.astype(jnp.float32)


def parts(
    task: Task, optimizers: Mapping[str, OptimizerFactory], examples: Batch
) -> dict[str, tuple[Any, ...]]:
    """Returns the pure functions that make up a round; see `Algorithm.parts`.

    Args:
      task: the model and its loss.
      optimizers: name -> function from a rate to the optimizer.
      examples: column name -> `[n, ...]`; only shapes and dtypes are used.
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
    """The state that most algorithms carry from round to round.

    Attributes:
      params: `w`, the shared model.
      server: state of the server optimizer.
      round: `[]` int32, `t`, the number of completed rounds.
      hparams: name -> `[]` float32.
      extra: any other server state, such as SCAFFOLD's control variate or the states of an aggregator's
        stages.
    """

    params: Params
    server: Any
    round: jax.Array
    hparams: Mapping[str, jax.Array]
    extra: Any = ()


def start_server(
    params: Params, optimizer: optax.GradientTransformation, hparams: Mapping[str, jax.Array]
) -> ServerState:
    """Returns the state before the first round."""
    return ServerState(params, optimizer.init(params), jnp.zeros((), jnp.int32), dict(hparams))


def server_step(
    state: ServerState, optimizer: optax.GradientTransformation, gradient: Params, weight: jax.Array
) -> ServerState:
    """Returns the state after a server step along `gradient`.

    A cohort without data has zero `weight`; it only advances the round counter.
    """
    params, server = descend(optimizer, gradient, state.server, state.params)
    new = state._replace(params=params, server=server)
    new = jax.tree.map(lambda a, b: jnp.where(weight > 0, a, b), new, state)
    return new._replace(round=state.round + 1)


def aggregator_settings(aggregator: Aggregator | None) -> dict[str, Any]:
    """Returns the settings of an algorithm with this aggregator."""
    return {} if aggregator is None else {"aggregator": aggregator.settings}


def aggregation_fields(aggregator: Aggregator) -> dict[str, Any]:
    """Returns the fields of an `Algorithm` whose clients send updates through `aggregator`.

    The states of its stages are `ServerState.extra`.
    """
    return {
        "message_bytes": lambda state: aggregator.message_bytes(
            view_of(aggregator, state), state.params
        ),
        "check_hparams": aggregator.check,
        "memory": (lambda key, params: aggregator.memory(params)) if aggregator.remembers else None,
    }


def view_of(aggregator: Aggregator, state: ServerState) -> View:
    """Returns the aggregator's part of a round's broadcast."""
    return aggregator.view(state.extra, state.hparams)


def round_info(result: CohortResult, cohort: Cohort) -> dict[str, jax.Array]:
    """Returns a round's `info` for clients that report `LossSums` and exchange one model each."""
    losses = result.metrics
    return {
        "train_loss": losses.total / jnp.maximum(losses.count, 1),
        "examples": losses.examples,
        "slots": result.slots,
    } | exchange(cohort.num_present)


class LocalSGD(NamedTuple):
    """Plumbing of algorithms with local SGD on clients and an optimizer step on the server.

    Attributes:
      work: `E` epochs in batches of `B`; see `local_training`.
      weight_of: function from `n_k` to a client's weight.
      make_server: function from a rate to the server optimizer.
      client_lr: the clients' rate as it was given.
      server_lr: the server's, likewise.
      num_steps: `num_steps(client) -> []` int32, local steps of a client that runs `E` epochs.
      aggregator: what lies between clients' updates and the server's step.
      algorithm: `algorithm(name, round_fn, *, hparams={}, settings={}, extra=None, **fields)` makes the
        `Algorithm`. `extra(params, num_clients)` is the initial value of `ServerState.extra`; by default
        the aggregator makes it, and both together raise ValueError.
    """

    work: ClientWork
    weight_of: Callable[[jax.Array], jax.Array]
    make_server: OptimizerFactory
    client_lr: Rate
    server_lr: Rate
    num_steps: Callable[[Client], jax.Array]
    aggregator: Aggregator
    algorithm: Callable[..., Algorithm]

    def client_rate(self, state: ServerState) -> jax.Array:
        """Returns the clients' learning rate in this round."""
        return client_rate(state.hparams, state.round, self.client_lr)

    def round(
        self,
        leave: Callable[..., ClientOutput],
        rate: Callable[[ServerState], Any] | None = None,
        enter: Callable[..., tuple[Params, Any]] | None = None,
    ) -> Callable[..., Any]:
        """Returns a round whose clients send updates through the aggregator, see `Algorithm.round`.

        Args:
          leave: see `train_clients`; `shared` is `(w, rate, view)`, and clients start from `w`.
          rate: function from the state to the clients' rate; by default `client_rate`.
          enter: see `train_clients`, for clients that start from something else.
        """
        if self.aggregator.structured is not None:
            enter, leave = inside_subspaces(self.aggregator, enter, leave)

        def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
            view = view_of(self.aggregator, state)
            known = view
            if self.aggregator.structured is not None:
                # A threefry key, because some other kinds draw other numbers under vmap.
                pattern = key_of(draw_seed(jax.random.fold_in(key, _PATTERN)))
                known = self.aggregator.with_pattern(view, pattern)
            shared = (state.params, (rate or self.client_rate)(state), known)
            result = train_clients(
                self.work, shared, data, cohort, key=key, own=own, enter=enter, leave=leave
            )
            received = self.aggregator.receive(view, result.message, result.rows, key)
            state = self.server_step(state, received.update, received.weight)
            info = round_info(result, cohort) | received.report
            return state._replace(extra=received.states), result.own, info

        return round_fn

    def server_step(self, state: ServerState, mean: Params, weight: jax.Array) -> ServerState:
        """Returns the state after a step along a cohort's mean update, of total weight `weight`."""
        rate = rate_in_round("server_lr", self.server_lr, state.hparams, state.round)
        optimizer = self.make_server(rate)
        return server_step(state, optimizer, trees.scale(mean, -1), weight)


def local_sgd(
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
    wrap: Callable[[OptimizerFactory], OptimizerFactory] = lambda make: make,
    epochs: Callable[[jax.Array], jax.Array] | None = None,
    init_params: Callable[[jax.Array], Any] | None = None,
) -> LocalSGD:
    """Returns the plumbing of an algorithm with local SGD; other arguments are those of `fed_avg`.

    Args:
      aggregator: see `fed_avg`. It acts only where clients `send` and the server `receive`s through it;
        `LocalSGD.round` does both, and `fed_nova.py` has a round of its own.
      wrap: function from the clients' optimizer factory to the one they use, such as one that changes
        the gradient. The new factory may take any pytree as its rate, which `enter` returns.
      epochs: see `local_training`.
      init_params: function from a key to the state's `params`, if they are not one model of the task.

    Raises:
      ValueError: a setting is out of its range, or a rate is given twice or not at all.
    """
    chain = as_aggregator(aggregator)
    weighting = chain.weighting(weighting)
    if server_lr is None and server_optimizer is optax.sgd:
        server_lr = 1.0
    client_rates = rate_of("client_lr", client_lr, client_optimizer)
    server_rates = rate_of("server_lr", server_lr, server_optimizer)
    rates = client_rates | server_rates | {"lr_decay": lr_decay}
    make_client, make_server = as_factory(client_optimizer), as_factory(server_optimizer)
    local_epochs = check_count("local_epochs", local_epochs)
    work = local_training(
        task,
        wrap(make_client if chain.structured is None else in_coordinates(chain.structured, make_client)),
        local_epochs=local_epochs,
        batch_size=batch_size,
        shuffle=shuffle,
        epochs=epochs,
    )

    def algorithm(name, round_fn, *, hparams=None, settings=None, extra=None, **fields) -> Algorithm:
        if extra is not None and aggregator is not None:
            raise ValueError(
                f"{name} keeps a state of its own where an aggregator would keep its stages'; wanted "
                "no aggregator"
            )
        hparams = rates | chain.hparams | (hparams or {})
        chain.check(hparams)

        def init(key, hparams, num_clients: int, params: Any = None) -> ServerState:
            params = (init_params or task.init)(key) if params is None else params
            state = start_server(params, make_server(hparams.get("server_lr", 1.0)), hparams)
            more = chain.init(hparams) if extra is None else extra(params, num_clients)
            return state._replace(extra=more)

        fixed = {
            "algorithm": name,
            "local_epochs": local_epochs,
            "batch_size": str(batch_size),
            "weighting": weighting,
            "shuffle": shuffle,
        } | aggregator_settings(aggregator)
        optimizers = {"client optimizer": make_client, "server optimizer": make_server}
        standard = {
            "lane_bytes": functools.partial(lane_bytes, task, make_client, batch_size),
            "most_slots": functools.partial(
                most_slots, local_epochs=local_epochs, batch_size=batch_size
            ),
            "num_classes": task.num_classes,
            "parts": functools.partial(parts, task, optimizers),
        } | (aggregation_fields(chain) if extra is None else {"message_bytes": model_exchange})
        return Algorithm(
            init, round_fn, hparams=hparams, settings=fixed | (settings or {}), **(standard | fields)
        )

    def num_steps(client: Client) -> jax.Array:
        if batch_size == math.inf:
            return jnp.asarray(local_epochs, jnp.int32)
        return local_epochs * -(-client.size // int(batch_size))

    return LocalSGD(
        work,
        client_weight(weighting),
        make_server,
        client_lr,
        server_lr,
        num_steps,
        chain,
        algorithm,
    )
