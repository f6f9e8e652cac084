"""Codecs: how a client encodes an update, and how the server decodes it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.compression import wire


class Step(NamedTuple):
    """One step of a codec, on one array of floats.

    Attributes:
      name: for error messages.
      settings: name -> JSON value.
      split: `split(key, x) -> (rest, parts)`: the floats that are left for further steps, None if there
        are none, and a pytree of what is sent beside them.
      join: `join(rest, parts, like) -> x`, the inverse; `like` has the shape and dtype of `x`.
      leaves_floats: whether there is a rest.
      keeps_norm: whether the decoded array never has a larger L2 norm than `x`.
    """

    name: str
    settings: Mapping[str, Any]
    split: Callable[[jax.Array, jax.Array], tuple[jax.Array | None, Any]]
    join: Callable[[jax.Array | None, Any, jax.ShapeDtypeStruct], jax.Array]
    leaves_floats: bool
    keeps_norm: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Payload:
    """One array of floats, encoded.

    Attributes:
      rest: the floats that no step has encoded; None if there are none.
      parts: what each step sends.
      likes: the shape and dtype that each step was given; static.
    """

    rest: jax.Array | None
    parts: tuple[Any, ...]
    likes: tuple[jax.ShapeDtypeStruct, ...] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Codec:
    """A lossy code for pytrees of floats, each array apart.

    `a >> b` encodes with `a`, then the floats that `a` leaves with `b`: `top_k(0.01) >> quantize(8)`
    quantises the values that are kept.

    Attributes:
      steps: in the order of encoding.
    """

    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """The steps' names, for error messages."""
        return " >> ".join(step.name for step in self.steps)

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The steps' names and settings, as JSON values."""
        return [{"name": step.name} | dict(step.settings) for step in self.steps]

    @property
    def keeps_norm(self) -> bool:
        """Whether decoded arrays never have a larger L2 norm than the originals."""
        return all(step.keeps_norm for step in self.steps)

    def __rshift__(self, other: Any) -> "Codec":
        if not isinstance(other, Codec):
            raise ValueError(
                f"{self.name} >> {other!r}: the second is no codec; wanted one such as quantize(8)"
            )
        if not self.steps[-1].leaves_floats:
            raise ValueError(
                f"{self.name} >> {other.name}: {self.steps[-1].name} leaves no floats for "
                f"{other.steps[0].name} to encode; wanted {self.steps[-1].name} last"
            )
        return Codec(self.steps + other.steps)

    def encode(self, key: jax.Array, x: Any) -> Any:
        """Encodes a pytree of floats.

        Args:
          key: PRNG key; arrays and steps draw apart.
          x: a pytree of float arrays, each with at least one element.

        Returns:
          `x` with a `Payload` in place of each array.

        Raises:
          ValueError: an array does not hold floats, or holds nothing.
        """
        leaves, structure = jax.tree.flatten(x)
        keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, map(self._encode_one, keys, leaves))

    def decode(self, payload: Any) -> Any:
        """Returns the pytree that the server reads from `encode`'s result, in the dtypes of `x`."""
        return jax.tree.map(self._decode_one, payload, is_leaf=lambda node: isinstance(node, Payload))

    def pack(self, payload: Any) -> bytes:
        """Returns a payload as bytes, on the host; `fs.compression.num_bytes` says how many."""
        return wire.pack(payload)

    def unpack(self, data: bytes, like: Any) -> Any:
        """Returns the payload that `pack` turned into bytes.

        Args:
          data: what `pack` returned.
          like: a pytree with the shapes and dtypes of what was encoded.

        Raises:
          ValueError: there are more or fewer bytes than an encoded `like` has.
        """
        return wire.unpack(data, jax.eval_shape(self.encode, jax.random.key(0), like))

    def _encode_one(self, key: jax.Array, x: jax.Array) -> Payload:
        if not jnp.issubdtype(x.dtype, jnp.floating) or not x.size:
            raise ValueError(
                f"{self.name} got an array {x.dtype}{list(x.shape)}; wanted floats, at least one"
            )
        parts, likes = [], []
        for i, step in enumerate(self.steps):
            likes.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
            x, part = step.split(jax.random.fold_in(key, i), x)
            parts.append(part)
        return Payload(x, tuple(parts), tuple(likes))

    def _decode_one(self, payload: Payload) -> jax.Array:
        x = payload.rest
        for step, part, like in reversed(
            list(zip(self.steps, payload.parts, payload.likes, strict=True))
        ):
            x = step.join(x, part, like)
        return x
