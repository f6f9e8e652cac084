"""User-supplied optimizers: optax optimizers, or functions from a learning rate to one."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_rates
from fedjax_sim.core.types import Variables

OptimizerFactory = Callable[[Any], optax.GradientTransformation]
Rate = float | optax.Schedule | None  # a schedule takes the round, from 0

# States that count steps for a schedule, by name, as optax does not export all of them.
_COUNTERS = ("ScaleByScheduleState", "WeightDecaySchedule", "InjectStatefulHyperparamsState")


def as_factory(optimizer: Any) -> OptimizerFactory:
    """Returns a function from a (traced) learning rate to an optimizer.

    Args:
      optimizer: such a function (`optax.sgd`, `functools.partial(optax.sgd, momentum=0.9)`), or a built
        optimizer; the rate then multiplies its updates.

    Raises:
      ValueError: `optimizer` is neither.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return lambda rate: optax.chain(optimizer, optax.scale(rate))
    if callable(optimizer):
        return optimizer
    raise ValueError(
        f"got an optimizer of type {type(optimizer).__name__}; wanted an optax optimizer or a "
        "function from a learning rate to one, such as optax.sgd"
    )


def rate_of(name: str, rate: Rate, optimizer: Any) -> dict[str, float]:
    """Returns an optimizer's learning rate as a hyper-parameter.

    Args:
      name: name of the rate, such as "client_lr".
      rate: the rate, a schedule of the round, or None if not given.
      optimizer: see `as_factory`.

    Returns:
      `{name: rate}`; 1 for a schedule, which it multiplies; empty for a built optimizer, which has its
      own rate.

    Raises:
      ValueError: the rate is given twice, or not at all; or a schedule does not begin with a rate.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        if rate is not None:
            raise ValueError(
                f"{name} is {rate}, but the optimizer is already built and has its own rate; omit "
                f"{name}, or give a function from a rate to an optimizer, such as optax.adam instead "
                "of optax.adam(0.001)"
            )
        return {}
    as_factory(optimizer)
    if rate is None:
        raise ValueError(
            f"{name} is not given; wanted the learning rate of the optimizer, such as {name}=0.1, or an "
            "optimizer that is already built, such as optax.sgd(0.1)"
        )
    if not callable(rate):
        return {name: rate}
    first = np.asarray(rate(jnp.zeros((), jnp.int32)))
    if first.shape != ():
        raise ValueError(
            f"{name} is a schedule whose value in round 0 has shape {first.shape}; wanted a scalar"
        )
    check_rates({f"{name} in round 0": float(first)})
    return {name: 1.0}


def rate_in_round(
    name: str, rate: Rate, hparams: Mapping[str, jax.Array], round: jax.Array
) -> jax.Array | float:
    """Returns an optimizer's learning rate in a round, 1 for a built optimizer.

    Args:
      name: name of the rate.
      rate: the rate as it was given; only a schedule is used.
      hparams: the current hyper-parameters, with what `rate_of` returned or a value in its place.
      round: `[]` int32, the number of completed rounds.
    """
    factor = hparams.get(name, 1.0)
    return factor * jnp.asarray(rate(round), jnp.float32) if callable(rate) else factor


def descend(
    optimizer: optax.GradientTransformation, gradient: Any, state: Any, params: Any
) -> tuple[Any, Any]:
    """Takes one step of an optimizer.

    Args:
      optimizer: the optimizer.
      gradient: the gradient; a model's own state takes a step of rate 1, see `Variables`.
      state: the optimizer's state.
      params: the parameters.

    Returns:
      The parameters and the optimizer's state after the step.
    """
    if not isinstance(params, Variables):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state
    # Zeros, so that the model's state has no part in a clipped norm.
    trained = gradient._replace(state=trees.zeros_like(gradient.state))
    updates, state = optimizer.update(trained, state, params)
    updates = updates._replace(state=trees.scale(gradient.state, -1))
    return optax.apply_updates(params, updates), state


def refuse_schedule(state: Any) -> None:
    """Refuses a client optimizer with a schedule, which would restart in every round.

    Args:
      state: the optimizer's state, a pytree.

    Raises:
      ValueError: the optimizer counts steps for a schedule.
    """

    def counts(node: Any) -> bool:
        # Injected hyper-parameters may be constants, which have no state.
        return type(node).__name__ in _COUNTERS and bool(getattr(node, "hyperparams_states", True))

    if any(map(counts, jax.tree.leaves(state, is_leaf=counts))):
        raise ValueError(
            "the clients' optimizer has a schedule, which counts local steps and restarts in every "
            "round; wanted a constant rate: for one that changes from round to round, give client_lr a "
            "schedule of the round"
        )


def one_update(make_optimizer: OptimizerFactory, rate: Any, params: Any) -> tuple[Any, Any]:
    """Returns an optimizer's first update and the state after it, with `params` as gradients.

    The program of this function identifies an optimizer.
    """
    optimizer = make_optimizer(rate)
    return optimizer.update(params, optimizer.init(params), params)


def with_changed_gradients(
    change: Callable[[Any, Any, Any], Any],
) -> Callable[[OptimizerFactory], OptimizerFactory]:
    """Returns a `wrap` for `local_sgd`: an optimizer that first changes the gradient.

    Its rate is a tuple, of which the wrapped optimizer takes the first entry.

    Args:
      change: `change(rate, gradient, params) -> gradient`.
    """

    def wrap(make: OptimizerFactory) -> OptimizerFactory:
        def changed(rate: tuple) -> optax.GradientTransformation:
            first = optax.stateless(functools.partial(change, rate))
            return optax.chain(first, make(rate[0]))

        return changed

    return wrap


def check_linear(make_optimizer: OptimizerFactory, params: Any) -> None:
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
