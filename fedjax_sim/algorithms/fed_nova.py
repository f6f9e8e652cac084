"""FedNova: each update is normalised by the local steps behind it.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the objective inconsistency problem in
heterogeneous federated optimization", NeurIPS 2020, https://arxiv.org/abs/2007.07481, equation 7.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregation import Aggregator
from fedjax_sim.algorithms.common import ServerState, local_sgd, round_info, view_of
from fedjax_sim.core import trees
from fedjax_sim.core.types import Algorithm, Cohort, Task
from fedjax_sim.engine.optimizers import Rate, as_factory
from fedjax_sim.engine.queues import train_clients
from fedjax_sim.engine.results import weigh


def fed_nova(
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
    """Adds `tau_eff * sum of p_k Delta_k / a_k`, so that more local steps do not mean more weight.

    `a_k` is the L1 norm of the weights with which client k's gradients enter its update: `tau_k` for
    plain SGD, more with momentum. `tau_eff` is the mean of `a_k`, as in the authors' code, so clients
    with equally many steps make this FedAvg; in the paper's text it is the mean of `tau_k`. `a_k` is
    measured by optimizing one number under a constant gradient of 1, which is exact for optimizers that
    are linear in their gradients; others, such as Adam, are refused.

    Arguments are those of `fed_avg`; the aggregator takes `Delta_k / a_k`. Each message carries one
    extra number, which the ledger omits, and `tau_eff` is its weighted mean under any aggregator.

    Raises:
      ValueError: a setting is out of its range, a rate is given twice or not at all, the client
        optimizer is not linear in its gradients, or the aggregator does not go with the weighting.
    """
    make_client = as_factory(client_optimizer)
    check_linear(make_client, jax.eval_shape(task.init, jax.random.key(0)))
    local = local_sgd(
        task,
        client_optimizer,
        server_optimizer,
        local_epochs=local_epochs,
        batch_size=batch_size,
        client_lr=client_lr,
        server_lr=server_lr,
        lr_decay=lr_decay,
        weighting=weighting,
        shuffle=shuffle,
        aggregator=aggregator,
    )

    def leave(shared, own_k, client, trained, key):
        (w, _, view), (w_k, losses) = shared, trained
        a = jnp.maximum(total_weight(make_client, local.num_steps(client)), 1e-30)
        weight = local.weight_of(client.size)
        normalised = trees.scale(trees.subtract(w_k, w), 1 / a)
        output = local.aggregator.send(view, own_k, normalised, weight, losses, key)
        return output._replace(message=(output.message, weigh(a, weight)))

    def round_fn(key: jax.Array, state: ServerState, own: Any, data: Any, cohort: Cohort):
        view = view_of(local.aggregator, state)
        shared = (state.params, local.client_rate(state), view)
        result = train_clients(local.work, shared, data, cohort, key=key, leave=leave, own=own)
        message, sum_of_a = result.message
        received = local.aggregator.receive(view, message, result.rows, key)
        direction, tau_eff = received.update, sum_of_a.mean()
        state = local.server_step(state, trees.scale(direction, tau_eff), received.weight)
        info = round_info(result, cohort) | received.report
        return state._replace(extra=received.states), result.own, info

    return local.algorithm("fed_nova", round_fn)


def total_weight(make_optimizer: Any, steps: jax.Array) -> jax.Array:
    """Returns how far `steps` `[]` gradients of 1 move a number that starts at 0, at rate 1."""
    optimizer = make_optimizer(1.0)

    def step(_, carry):
        moved, state = carry
        update, state = optimizer.update(jnp.ones(()), state, moved)
        return moved + update, state

    start = jnp.zeros(())
    return -jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]


def check_linear(make_optimizer: Any, params: Any) -> None:
    """Refuses an optimizer that is not linear in its gradients.

    Args:
      make_optimizer: function from a rate to it.
      params: the model, shapes and dtypes alone.

    Raises:
      ValueError: in some steps the update is not proportional to the gradients.
    """

    def update_for(size):
        optimizer, w = make_optimizer(1.0), jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params)
        state, sums = optimizer.init(w), []
        for factor in (1, 3, 2, 1, 5):
            gradient = jax.tree.map(lambda p, factor=factor: factor * size.astype(p.dtype) * p, w)
            update, state = optimizer.update(gradient, state, w)
            sums += [leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(update)]
        return jnp.stack(sums)

    with jax.numpy_dtype_promotion("standard"):  # these numbers are not part of the user's program
        nothing, once, *more = (jax.jit(update_for)(jnp.float32(g)) for g in (0, 1, 2, 1000))
    linear = not nothing.any()
    for factor, update in zip((2, 1000), more, strict=True):
        linear &= bool(jnp.allclose(update, factor * once, rtol=1e-2, atol=1e-30))
    if not linear:
        raise ValueError(
            "the client optimizer is not linear in its gradients, so FedNova's a_k is undefined; "
            "wanted SGD, with or without momentum"
        )
