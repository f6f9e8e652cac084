"""The cohorts of a run: a sampler's program, and its state beside the algorithm's."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core import trees
from fedjax_sim.core.types import Algorithm, Cohort
from fedjax_sim.engine.placement import EVERYWHERE
from fedjax_sim.participation import Sampler, uniform
from fedjax_sim.simulation import programs
from fedjax_sim.simulation.client_memory import WithMemory, server_state

_DEFAULT_FRACTION = 0.1


class WithSampler(NamedTuple):
    """The state of an algorithm, and that of a sampler which remembers something, such as a clock.

    Attributes:
      algorithm: the algorithm's own state.
      sampler: the sampler's state.
    """

    algorithm: Any
    sampler: Any

    @property
    def params(self) -> Any:
        """The model to evaluate."""
        return self.algorithm.params


class Drawn(NamedTuple):
    """A round's draw: the cohort, the sampler's new state, and entries of `info`."""

    cohort: Cohort
    state: Any
    info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CohortDraws:
    """How a run draws its cohorts.

    Attributes:
      sampler: the sampler.
      size: `K`, places of a cohort.
      program: the sampler's `draw` for this federation, traced; equal draws are compiled once.
      shapes: shapes and dtypes of what it draws.
      sizes: `[N]` int32, `n_k` of each client.
    """

    sampler: Sampler
    size: int
    program: programs.Program
    shapes: Drawn
    sizes: np.ndarray

    def extended(self, algorithm: Algorithm) -> Algorithm:
        """Returns the algorithm with the sampler's state beside its own, if the sampler has any."""
        if not jax.tree.leaves(self.shapes.state):
            return algorithm

        @functools.wraps(algorithm.init)
        def init(key, *arguments):
            # Apart from the algorithm's keys, for which small numbers are folded in.
            sampler = self.sampler.init(jax.random.fold_in(key, 2**32 - 2), jnp.asarray(self.sizes))
            return WithSampler(algorithm.init(key, *arguments), sampler)

        return algorithm._replace(
            init=init,
            round=_Round(algorithm.round),
            message_bytes=lambda state: algorithm.message_bytes(state.algorithm),
            specs=WithSampler(algorithm.specs, EVERYWHERE),
        )


@dataclasses.dataclass(frozen=True)
class _Round:
    """A round that leaves the sampler's state as it is; equal for equal rounds, which compile once."""

    round: Callable[..., Any]

    def __call__(self, key: jax.Array, state: WithSampler, own: Any, data: Any, cohort: Cohort):
        new, own, info = self.round(key, state.algorithm, own, data, cohort)
        return state._replace(algorithm=new), own, info


def cohort_draws(sampler: Sampler, data: Any, key: jax.Array) -> CohortDraws:
    """Prepares a sampler for a federation, `data`, and for PRNG keys such as `key`.

    Raises:
      ValueError: the sampler does not suit the federation, or draws other things than `Sampler` says.
    """
    size = sampler.most(data.num_clients)
    sizes = np.diff(np.asarray(data.offsets)).astype(np.int32)
    state = jax.eval_shape(lambda: sampler.init(key, jnp.asarray(sizes)))

    def draw(key, r, state, sizes):
        return Drawn(*sampler.draw(key, r, state, sizes))

    arguments = (key, np.int32(0), state, sizes)
    shapes = jax.eval_shape(draw, *arguments)
    _check_drawn(shapes, size, state)
    return CohortDraws(sampler, size, programs.trace(draw, *arguments), shapes, sizes)


def _check_drawn(shapes: Drawn, size: int, state: Any) -> None:
    cohort = shapes.cohort
    for name, wanted in (("ids", (size,)), ("lag", (size,)), ("count", ())):
        leaf = getattr(cohort, name)
        if leaf is None and name != "ids":
            continue
        if (leaf.shape, leaf.dtype) != (wanted, np.int32):
            raise ValueError(
                f"the sampler draws {name} as {leaf.dtype}{list(leaf.shape)}; wanted "
                f"int32{list(wanted)}, as its most gives {size} places"
            )
    if any(trees.is_key(leaf) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "the sampler's state holds a PRNG key; wanted numbers, as each draw has a key of its own"
        )
    got, before = (programs.shapes_of(tree) for tree in (shapes.state, state))
    if got != before:
        raise ValueError(f"the sampler's state was {before} and is {got} after a draw; wanted the same")


def choose_sampler(
    algorithm: Algorithm,
    client_fraction: float | None,
    clients_per_round: int | None,
    cohorts: Sampler | None,
) -> Sampler:
    """Returns the sampler of a run; see `simulate`.

    Raises:
      ValueError: two of the arguments are given, or one is given for learners.
    """
    known = {"client_fraction": client_fraction, "clients_per_round": clients_per_round}
    given = [f"{name} is {value}" for name, value in known.items() if value is not None]
    given += [] if cohorts is None else ["cohorts is given"]
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(given)}; wanted one of them: client_fraction=C stands for "
            "cohorts=fs.participation.uniform(C), clients_per_round=K for uniform(clients_per_round=K)"
        )
    if cohorts is not None and algorithm.num_learners is not None:
        raise ValueError("cohorts is given, but all learners take part in every round; leave it out")
    if clients_per_round is not None:
        return uniform(clients_per_round=clients_per_round)
    if client_fraction is not None:
        return uniform(client_fraction)
    return cohorts or algorithm.cohorts or uniform(_DEFAULT_FRACTION)


def own_state(state: Any) -> Any:
    """Returns the algorithm's own state, without clients' memory and without a sampler's state."""
    server = server_state(state)
    return server.algorithm if isinstance(server, WithSampler) else server


def sampler_state(state: Any) -> Any:
    """Returns the state of a run's sampler, `()` if it has none."""
    server = server_state(state)
    return server.sampler if isinstance(server, WithSampler) else ()


def with_sampler_state(state: Any, new: Any) -> Any:
    """Returns the state of a run with `new` as its sampler's, if it has any."""
    if isinstance(state, WithMemory):
        return state._replace(server=with_sampler_state(state.server, new))
    return state._replace(sampler=new) if isinstance(state, WithSampler) else state


def merged(of_sampler: Mapping[str, Any], of_round: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a round's `info`, from the sampler and from the algorithm.

    Raises:
      ValueError: both have an entry of the same name.
    """
    both = sorted(of_sampler.keys() & of_round.keys())
    if both:
        raise ValueError(
            f"the sampler's info and the round's both hold {both[0]!r}; wanted different names"
        )
    return dict(of_sampler) | dict(of_round)
