"""Local training inside the subspaces of a structured codec, see `fs.compression.low_rank`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from fedjax_sim.aggregation.aggregator import Aggregator, not_inside
from fedjax_sim.core import trees
from fedjax_sim.core.types import Variables
from fedjax_sim.engine.optimizers import OptimizerFactory


class Inside(NamedTuple):
    """The rate of ONE client that trains inside a subspace.

    Attributes:
      rate: the optimizer's own rate.
      pattern: PRNG key of the subspace.
    """

    rate: Any
    pattern: jax.Array


def in_coordinates(codec: Any, make: OptimizerFactory) -> OptimizerFactory:
    """Returns an optimizer that moves only the coordinates of a client's subspace, at first zero.

    Args:
      codec: a structured codec.
      make: function from a rate to the optimizer of the coordinates.

    Returns:
      A function from an `Inside` to an optimizer of the parameters. Its state is made of the
      coordinates, the bases of their subspace, and the other optimizer's state.

    Raises:
      ValueError: the rate comes without a pattern, from an algorithm that knows nothing of subspaces.
    """
    subspace = codec.steps[0].subspace

    def inside(given: Any) -> optax.GradientTransformation:
        if not isinstance(given, Inside):
            raise not_inside(codec.name)
        optimizer = make(given.rate)

        def init(params):
            if isinstance(params, Variables):
                raise ValueError(
                    f"{codec.name} got a model with a state of its own, such as batch norm's "
                    "statistics, which clients cannot keep inside a subspace; wanted a model without"
                )
            bases = codec.bases(given.pattern, params)
            coordinates = trees.zeros_like(list(map(subspace.restrict, bases, jax.tree.leaves(params))))
            return coordinates, bases, optimizer.init(coordinates)

        def update(gradient, state, params):
            coordinates, bases, inner = state
            leaves, structure = jax.tree.flatten(gradient)
            restricted = list(map(subspace.restrict, bases, leaves))
            steps, inner = optimizer.update(restricted, inner, coordinates)
            coordinates = optax.apply_updates(coordinates, steps)
            update = jax.tree.unflatten(structure, map(subspace.expand, bases, steps, leaves))
            return update, (coordinates, bases, inner)

        return optax.GradientTransformation(init, update)

    return inside


def inside_subspaces(
    aggregator: Aggregator, enter: Callable | None, leave: Callable
) -> tuple[Callable, Callable]:
    """Returns `enter` and `leave` of `train_clients` for clients that train inside their subspaces.

    `shared` is `(w, rate, view)`, with the round's pattern in the view; each client folds its id into
    it. The rate becomes an `Inside`; of a tuple, its first entry does.
    """

    def of_client(view, client):
        (round_pattern,) = (
            state
            for stage, state in zip(aggregator.stages, view.states, strict=True)
            if stage.structured is not None
        )
        pattern = jax.random.fold_in(round_pattern, client.id)
        return aggregator.with_pattern(view, pattern), pattern

    def enter_subspace(shared, own_k, client, key):
        params, rate = shared[:2] if enter is None else enter(shared, own_k, client, key)
        _, pattern = of_client(shared[2], client)
        if isinstance(rate, tuple):
            return params, (Inside(rate[0], pattern), *rate[1:])
        return params, Inside(rate, pattern)

    def leave_subspace(shared, own_k, client, trained, key):
        view, _ = of_client(shared[2], client)
        return leave((*shared[:2], view), own_k, client, trained, key)

    return enter_subspace, leave_subspace
