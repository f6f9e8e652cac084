"""Optimizers as users give them: optax's own, or functions that make them from a learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import optax

OptimizerFactory = Callable[[Any], optax.GradientTransformation]

# States that count steps for a schedule. By name, since optax does not export all of them.
_COUNTERS = ("ScaleByScheduleState", "WeightDecaySchedule", "InjectStatefulHyperparamsState")


def as_factory(optimizer: Any) -> OptimizerFactory:
    """A function from a (traced) learning rate to an optimizer.

    Args:
      optimizer: such a function (`optax.sgd`, `functools.partial(optax.sgd, momentum=0.9)`), or an
        optimizer already built, whose updates the rate then multiplies.

    Raises:
      ValueError: it is neither.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return lambda rate: optax.chain(optimizer, optax.scale(rate))
    if callable(optimizer):
        return optimizer
    raise ValueError(
        f"got an optimizer of type {type(optimizer).__name__}; wanted an optax optimizer or a "
        "function from a learning rate to one, such as optax.sgd"
    )


def rate_of(name: str, rate: float | None, optimizer: Any) -> dict[str, float]:
    """The hyper-parameter that an optimizer's learning rate is, if it is one.

    Args:
      name: of the rate, such as "client_lr".
      rate: as given, or None.
      optimizer: see `as_factory`.

    Returns:
      `{name: rate}`; nothing for an optimizer already built, which has a rate of its own.

    Raises:
      ValueError: the rate is given twice, or not at all.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        if rate is not None:
            raise ValueError(
                f"{name} is {rate}, but the optimizer is already built and has a rate of its own; leave "
                f"out {name}, or give a function from a rate to an optimizer, such as optax.adam in "
                "place of optax.adam(0.001)"
            )
        return {}
    as_factory(optimizer)
    if rate is None:
        raise ValueError(
            f"{name} is not given; wanted the learning rate of the optimizer, such as {name}=0.1, or an "
            "optimizer that is already built, such as optax.sgd(0.1)"
        )
    return {name: rate}


def refuse_schedule(state: Any) -> None:
    """Refuses the state of an optimizer whose rate follows a schedule, where each round begins anew.

    Args:
      state: of the optimizer, a pytree.

    Raises:
      ValueError: the optimizer counts steps for a schedule.
    """

    def counts(node: Any) -> bool:
        # Hyper-parameters that are injected may be constants, which have no state.
        return type(node).__name__ in _COUNTERS and bool(getattr(node, "hyperparams_states", True))

    if any(map(counts, jax.tree.leaves(state, is_leaf=counts))):
        raise ValueError(
            "the clients' optimizer has a schedule, which counts local steps and begins again in every "
            "round; wanted a constant rate: lr_decay lowers it from round to round"
        )


def one_update(make_optimizer: OptimizerFactory, rate: Any, params: Any) -> tuple[Any, Any]:
    """The first update of an optimizer and its state after it, of gradients that are the parameters.

    What an optimizer is follows from the program of this function.
    """
    optimizer = make_optimizer(rate)
    return optimizer.update(params, optimizer.init(params), params)
