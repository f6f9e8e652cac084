"""Asynchronous participation: clients work for different times and arrive one by one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import as_float, check_count
from fedjax_sim.core.types import ABSENT, Cohort
from fedjax_sim.participation.sampler import Sampler

Duration = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# Virtual time is counted, since sums of floats would depend on the order in which programs round.
_TICKS = 10_000  # of a second
_LONGEST = 2**30  # ticks


class Clock(NamedTuple):
    """The clients at work after a round, by place.

    Attributes:
      ids: `[C]` int32, `ABSENT` in free places.
      left: `[C]` int32, ticks until a client arrives.
      began: `[C]` int32, the server version with which it began.
    """

    ids: jax.Array
    left: jax.Array
    began: jax.Array


class _Events(NamedTuple):
    """A round in progress: the clock, the clients that have arrived, and counts."""

    clock: Clock
    ids: jax.Array
    lag: jax.Array
    arrived: jax.Array
    begun: jax.Array
    elapsed: jax.Array
    strange: jax.Array


def arrivals(concurrency: int, buffer: int, duration: float | Duration) -> Sampler:
    """Returns a sampler in which `concurrency` clients are at work and a round takes the next `buffer`.

    A client begins with the newest version of the model and arrives after its duration; its lag is the
    number of rounds that ended in between. When clients have arrived, as many others begin, drawn
    uniformly from all that are not at work. Clients that arrive at the same instant all do so before any
    other begins. The same client may arrive twice in a round.

    Rows receive `cumulative_virtual_seconds`, the time until the last arrival, and `mean_lag`.

    Args:
      concurrency: `C`, clients at work, at most `N`.
      buffer: `K`, arrivals in a round, at most `C`.
      duration: seconds of a client's work: a number, `exponential(mean)`, `half_normal(scale)`, or a
        pure function `(key, id [], size []) -> []` that JAX can compile. Time is counted in ticks of
        0.1 ms, at least one, at most 29 hours.

    Raises:
      ValueError: a count is not a positive integer, `buffer` exceeds `concurrency`, or a constant
        duration is out of range. A run raises it too if `concurrency` exceeds `N`, or if a duration is
        negative, NaN or too long.
    """
    concurrency = check_count("concurrency", concurrency)
    buffer = check_count("buffer", buffer)
    if buffer > concurrency:
        raise ValueError(
            f"buffer is {buffer}, but only {concurrency} clients are at work; wanted a buffer of at "
            "most `concurrency`"
        )
    if not callable(duration):
        duration = _constant(duration)

    def most(num_clients: int) -> int:
        if concurrency > num_clients:
            raise ValueError(
                f"concurrency is {concurrency}; wanted at most the federation's {num_clients} clients"
            )
        return buffer

    def init(key: jax.Array, sizes: jax.Array) -> Clock:
        nothing = jnp.zeros((concurrency,), jnp.int32)
        return Clock(jnp.full((concurrency,), ABSENT, jnp.int32), nothing, nothing)

    def draw(key: jax.Array, r: jax.Array, state: Clock, sizes: jax.Array):
        def begin(events: _Events) -> _Events:
            clock, event_key = events.clock, jax.random.fold_in(key, events.begun)
            place = jnp.argmax(clock.ids == ABSENT)
            k = _idle_client(jax.random.fold_in(event_key, 0), clock.ids, sizes.size)
            seconds = duration(jax.random.fold_in(event_key, 1), k, sizes[k])
            # Apart from what follows, so that every program rounds it alike.
            seconds = jax.lax.optimization_barrier(jnp.asarray(seconds, jnp.float32))
            ticks = jnp.round(seconds * _TICKS)
            strange = ~((seconds >= 0) & (ticks <= _LONGEST))
            ticks = jnp.where(strange, 1, jnp.maximum(ticks, 1)).astype(jnp.int32)
            clock = Clock(
                clock.ids.at[place].set(k), clock.left.at[place].set(ticks), clock.began.at[place].set(r)
            )
            return events._replace(clock=clock, begun=events.begun + 1, strange=events.strange | strange)

        def arrive(events: _Events) -> _Events:
            clock = events.clock
            place = jnp.argmin(_left(clock))
            waited, i = clock.left[place], events.arrived
            return events._replace(
                clock=Clock(clock.ids.at[place].set(ABSENT), clock.left - waited, clock.began),
                ids=events.ids.at[i].set(clock.ids[place]),
                lag=events.lag.at[i].set(r - clock.began[place]),
                arrived=i + 1,
                elapsed=events.elapsed + waited,
            )

        def next_event(events: _Events) -> _Events:
            some_free = jnp.any(events.clock.ids == ABSENT)
            begins = some_free & (jnp.min(_left(events.clock)) > 0)
            return jax.lax.cond(begins, begin, arrive, events)

        nobody, zero = jnp.zeros((buffer,), jnp.int32), jnp.zeros((), jnp.int32)
        events = _Events(state, nobody, nobody, zero, zero, zero, jnp.zeros((), bool))
        events = jax.lax.while_loop(lambda events: events.arrived < buffer, next_event, events)
        info = {
            "cumulative_virtual_seconds": events.elapsed.astype(jnp.float32) / _TICKS,
            "mean_lag": jnp.mean(events.lag.astype(jnp.float32)),
            "strange_duration": events.strange,
        }
        return Cohort(events.ids, lag=events.lag), events.clock, info

    message = (
        "a client's duration is negative, NaN or longer than 29 hours; wanted seconds of its work, at "
        f"most {_LONGEST // _TICKS}"
    )
    settings = {"cohorts": "arrivals", "concurrency": concurrency, "buffer": buffer}
    return Sampler(most, draw, settings, init, {"strange_duration": message})


def check_arrivals(cohort: Cohort, buffer: int) -> None:
    """Checks that a cohort is a buffer of arrivals, by shapes alone.

    Raises:
      ValueError: the cohort has no lag, or another number of places than `buffer`.
    """
    if cohort.lag is None or cohort.num_clients != buffer:
        got = "no lag" if cohort.lag is None else f"a buffer of {cohort.num_clients}"
        raise ValueError(
            f"the cohorts have {got}, but the server steps for {buffer} arrivals; wanted "
            f"participation.arrivals(concurrency, {buffer}, duration)"
        )


def exponential(mean: float) -> Duration:
    """Returns exponential durations with a mean in seconds; another mean compiles nothing.

    Raises:
      ValueError: the mean is not above 0, or longer than 29 hours.
    """
    mean = _seconds("mean", mean)
    return lambda key, k, size: mean * jax.random.exponential(key, dtype=jnp.float32)


def half_normal(scale: float) -> Duration:
    """Returns durations `|x|`, where x is normal with the standard deviation `scale` in seconds.

    Their mean is `0.8 * scale`. Another scale compiles nothing. FLSim, the simulator of FedBuff's
    authors (https://github.com/facebookresearch/FLSim), has durations of this distribution.

    Raises:
      ValueError: the scale is not above 0, or longer than 29 hours.
    """
    scale = _seconds("scale", scale)
    return lambda key, k, size: scale * jnp.abs(jax.random.normal(key, dtype=jnp.float32))


def _constant(seconds: float) -> Duration:
    seconds = _seconds("duration", seconds)
    return lambda key, k, size: seconds


def _seconds(name: str, value: float) -> jax.Array:
    """Returns a number of seconds as an array, which is an argument of the compiled program."""
    seconds = as_float(name, value)
    if not 0 < seconds <= _LONGEST / _TICKS:  # also NaN
        raise ValueError(f"{name} is {value}; wanted seconds above 0, at most {_LONGEST // _TICKS}")
    return jnp.asarray(seconds, jnp.float32)


def _left(clock: Clock) -> jax.Array:
    """Returns the ticks until each client arrives, `[C]`; the most for free places."""
    return jnp.where(clock.ids == ABSENT, jnp.iinfo(jnp.int32).max, clock.left)


def _idle_client(key: jax.Array, at_work: jax.Array, num_clients: int) -> jax.Array:
    """Draws one of the clients that are not in `at_work` `[C]`, which holds `ABSENT` as well."""
    num_idle = num_clients - jnp.sum(at_work != ABSENT, dtype=jnp.int32)
    rank = jax.random.randint(key, (), 0, num_idle, jnp.int32)
    # The i-th client at work has i others before it, and so its id less i idle ones.
    idle_before = jnp.sort(at_work) - jnp.arange(at_work.size, dtype=jnp.int32)
    return rank + jnp.sum(idle_before <= rank, dtype=jnp.int32)
