"""Aggregators: what lies between a client's update and the server's step."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregation.chain import as_stages, check_weighting
from fedjax_sim.aggregation.ends import End, mean
from fedjax_sim.compression import Codec, num_bytes
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_rates
from fedjax_sim.core.stage import Stage
from fedjax_sim.core.types import ClientOutput

# Folded into a round's key, beyond the ids of clients.
_FINISH = 2**32 - 3
# Less the stage's number, folded into a client's key, beyond the pieces of its data.
_ENCODE = 2**32 - 1


class View(NamedTuple):
    """Stage states and hyper-parameters, which the server sends along with the model.

    Attributes:
      states: the state of each stage.
      hparams: name -> `[]` float32, those of the stages.
    """

    states: tuple[Any, ...]
    hparams: Mapping[str, jax.Array]


class Message(NamedTuple):
    """A client's message, summed over the cohort.

    Attributes:
      update: the message of the end.
      asides: int32, flags that stages send beside the update.
      count: `[]` int32, 1 for a client with weight; `()` without asides.
    """

    update: Any
    asides: Any
    count: Any


class Received(NamedTuple):
    """The result of a round's aggregation.

    Attributes:
      update: like the model.
      weight: `[]` float32, zero if there is no update.
      states: the states of the stages after the round.
      report: name -> `[]`, for the round's info.
    """

    update: Any
    weight: jax.Array
    states: tuple[Any, ...]
    report: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Aggregator:
    """A chain of stages with an end; see `aggregate`.

    Attributes:
      stages: from the client's update on.
      end: how the server combines the updates.
    """

    stages: tuple[Stage, ...]
    end: End

    @property
    def hparams(self) -> dict[str, float]:
        """The hyper-parameters of all stages, name -> default value."""
        return {name: value for stage in self.stages for name, value in stage.hparams.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """Names and settings as JSON values."""
        stages = [{"name": stage.name} | dict(stage.settings) for stage in self.stages]
        return {"stages": stages, "end": {"name": self.end.name} | dict(self.end.settings)}

    def weighting(self, default: str) -> str:
        """Returns how clients are weighted by an algorithm with this default.

        Raises:
          ValueError: a stage does not go with it.
        """
        weighting = self.end.weighting or default
        for stage in self.stages:
            if stage.finish is not None:
                check_weighting(stage, weighting)
        return weighting

    def check(self, hparams: Mapping[str, float]) -> None:
        """Checks hyper-parameters: rates, and those of the stages.

        Raises:
          ValueError: a value is out of range.
        """
        check_rates(hparams)
        for stage in self.stages:
            stage.check(hparams)

    def init(self, hparams: Mapping[str, Any]) -> tuple[Any, ...]:
        """Returns the states of the stages before the first round."""
        return tuple(stage.init(hparams) for stage in self.stages)

    def memory(self, params: Any) -> tuple[Any, ...]:
        """Returns ONE client's memory before it first takes part: an entry for each stage."""
        return tuple(stage.memory(params) for stage in self.stages)

    def view(self, states: tuple[Any, ...], hparams: Mapping[str, jax.Array]) -> View:
        """Returns the clients' view; other entries of `hparams` are left out."""
        return View(states, {name: hparams[name] for name in self.hparams})

    @property
    def structured(self) -> Codec | None:
        """The codec inside whose subspace clients train, if there is one."""
        return next((s.structured for s in self.stages if s.structured is not None), None)

    def with_pattern(self, view: View, pattern: jax.Array) -> View:
        """Returns a view in which a structured stage knows the key of its subspace."""
        states = [
            state if stage.structured is None else pattern
            for stage, state in zip(self.stages, view.states, strict=True)
        ]
        return view._replace(states=tuple(states))

    def encode(self, view: View, own: Any, update: Any, key: jax.Array) -> tuple[Any, Any, Any]:
        """Encodes the update of ONE client, from the first stage to the last.

        Args:
          view: see `view`.
          own: the client's memory; see `memory`.
          update: a pytree of floats.
          key: PRNG key.

        Returns:
          The encoded update, the client's new memory, and the flags that travel with the update. The
          size of the message is `num_bytes` of update and flags.
        """
        sent, memories, asides = update, [], []
        for i, (stage, state, mine) in enumerate(zip(self.stages, view.states, own, strict=True)):
            stage_key = jax.random.fold_in(key, _ENCODE - i)
            sent, mine, aside = stage.encode(state, view.hparams, mine, sent, stage_key)
            memories.append(mine)
            asides.append(aside)
        return sent, tuple(memories), tuple(asides)

    def send(
        self,
        view: View,
        own: Any,
        update: Any,
        weight: jax.Array,
        metrics: Any,
        key: jax.Array,
    ) -> ClientOutput:
        """Returns the output of ONE client.

        A client without weight, such as an empty one, adds nothing and remembers what it did before.

        Args:
          view, update, key: see `encode`.
          own: the client's memory; `()` if no stage remembers anything.
          weight: `[]`, at least 0.
          metrics: see `ClientOutput`.

        Raises:
          ValueError: a stage is structured and `with_pattern` has not been called.
        """
        for stage, state in zip(self.stages, view.states, strict=True):
            if stage.structured is not None and isinstance(state, tuple):
                raise not_inside(stage.name)
        before = own or tuple(() for _ in self.stages)
        sent, after, asides = self.encode(view, before, update, key)
        for stage in reversed(self.stages):
            sent = stage.decode(sent)
        after = jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), after, before)
        asides = jax.tree.map(lambda aside: (aside & (weight > 0)).astype(jnp.int32), asides)
        count = (weight > 0).astype(jnp.int32) if jax.tree.leaves(asides) else ()
        message, row = self.end.send(sent, weight)
        return ClientOutput(Message(message, asides, count), metrics, after if own else (), row)

    def receive(self, view: View, message: Message, rows: Any, key: jax.Array) -> Received:
        """Combines the messages of a round.

        Args:
          view: see `view`.
          message: the sum of the clients' messages.
          rows: `[K, ...]`, their rows.
          key: PRNG key of the round.
        """
        total, bound, states, report = message.update, None, [], {}
        for i, (stage, state, aside) in enumerate(
            zip(self.stages, view.states, message.asides, strict=True)
        ):
            if stage.bound is not None:
                bound = stage.bound(state, view.hparams)
            if stage.finish is not None:
                stage_key = jax.random.fold_in(jax.random.fold_in(key, _FINISH), i)
                noisy = stage.finish(total.total, bound, view.hparams, stage_key)
                total = total._replace(total=noisy)
            state, told = stage.advance(state, view.hparams, aside, message.count)
            states.append(state)
            report |= told
        update, weight, told = self.end.receive(total, rows)
        return Received(update, weight, tuple(states), report | told)

    @property
    def remembers(self) -> bool:
        """Whether any stage gives clients a memory."""
        one = jax.ShapeDtypeStruct((), jnp.float32)
        return bool(jax.tree.leaves(jax.eval_shape(self.memory, one)))

    def message_bytes(self, view: View, params: Any) -> dict[str, int]:
        """Returns the sizes of messages: down the model and the stages' states, up what is encoded."""

        def encoded(view, params, key):
            return self.encode(view, self.memory(params), params, key)

        sent, _, asides = jax.eval_shape(encoded, view, params, jax.random.key(0))
        return {
            "down_model": trees.num_bytes((params, view.states)),
            "up_update": num_bytes((sent, asides)),
        }


def aggregate(*stages: Stage | Codec, end: End | None = None) -> Aggregator:
    """Chains stages between a client's update and the server's step: "optax from both ends".

    Clients encode from left to right, the server decodes from right to left, and the end makes one
    update of all. `aggregate(clip(1.0), gaussian(0.5), end=mean("uniform"))` has the mechanism of
    differential privacy; `aggregate(error_feedback(top_k(0.01) >> quantize(8)), end=median())`
    compresses and resists attackers. Algorithms whose clients send an update take an aggregator.

    Args:
      stages: stages of `fs.aggregation`, codecs of `fs.compression`, or your own `Stage`.
      end: how the server combines the updates; by default `mean()`, with the algorithm's weighting.

    Raises:
      ValueError: the chain makes no sense; the error names the two stages and why.
    """
    end = mean() if end is None else end
    return Aggregator(as_stages(stages, end), end)


def not_inside(codec: str) -> ValueError:
    """Returns the error of an algorithm that takes a structured codec and trains the whole model."""
    return ValueError(
        f"{codec}: this algorithm's clients do not train inside a subspace; wanted an algorithm with "
        "local training, such as fed_avg, or a codec of any update, such as fs.compression.subsample"
    )


def as_aggregator(aggregator: Any) -> Aggregator:
    """Returns the aggregator of an algorithm; the mean if it is None.

    Raises:
      ValueError: it is no aggregator.
    """
    if aggregator is None:
        return aggregate()
    if not isinstance(aggregator, Aggregator):
        raise ValueError(
            f"aggregator is {aggregator!r}; wanted one that fs.aggregate returns, such as "
            "fs.aggregate(end=fs.aggregation.median())"
        )
    return aggregator
