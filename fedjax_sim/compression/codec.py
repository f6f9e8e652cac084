"""Codecs: how a client encodes an update, and how the server decodes it."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression import wire
from fedjax_sim.compression.wire import Wire


class Subspace(NamedTuple):
    """A family of linear subspaces of arrays of one shape, with coordinates `[c]` or `[k, d2]`.

    Attributes:
      draw: `draw(seed, like) -> basis`, from a `[]` uint32 seed, for arrays `like` a shape and dtype.
      restrict: `restrict(basis, x) -> coordinates`, the transpose of `expand`, and its inverse for an
        `x` inside the subspace.
      expand: `expand(basis, coordinates, like) -> x`.
    """

    draw: Callable[[jax.Array, Any], Any]
    restrict: Callable[[Any, jax.Array], jax.Array]
    expand: Callable[[Any, jax.Array, Any], jax.Array]


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
      subspace: for a structured step, the subspaces in which clients train. Its `split` gets the
        pattern's key, and its `parts` are `known_seed`.
      check: `check(parts, like)`, on the host, raises ValueError for parts that `split` never returns.
    """

    name: str
    settings: Mapping[str, Any]
    split: Callable[[jax.Array, jax.Array], tuple[jax.Array | None, Any]]
    join: Callable[[jax.Array | None, Any, jax.ShapeDtypeStruct], jax.Array]
    leaves_floats: bool
    keeps_norm: bool
    subspace: Subspace | None = None
    check: Callable[[Any, jax.ShapeDtypeStruct], None] = lambda parts, like: None


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WholePayload:
    """All arrays of a pytree, encoded as one.

    Attributes:
      payload: the array that they make side by side.
      structure: the pytree's structure; static.
      likes: the shape and dtype of each array; static.
    """

    payload: Payload
    structure: Any = dataclasses.field(metadata={"static": True})
    likes: tuple[jax.ShapeDtypeStruct, ...] = dataclasses.field(metadata={"static": True})


def draw_seed(key: jax.Array) -> jax.Array:
    """Draws a seed to send instead of random numbers, `[]` uint32."""
    return jax.random.bits(key, (), jnp.uint32)


def key_of(seed: jax.Array) -> jax.Array:
    """Returns the PRNG key of a seed, the same on both sides whatever kind of keys a run has."""
    return jax.random.key(seed, impl="threefry2x32")


def known_seed(key: jax.Array) -> Wire:
    """Returns a seed that is not sent, because both sides know the key."""
    return Wire(draw_seed(key), 0)


def count_kept(fraction: float, size: int) -> int:
    """Returns `max(1, ceil(fraction * size))`, with 7 for 0.07 of 100 despite binary fractions."""
    return max(1, int(np.ceil(round(fraction * size, 6))))


def check_codes(name: str, codes: jax.Array, most: int) -> None:
    """Checks received codes.

    Raises:
      ValueError: one is above `most`.
    """
    if (largest := int(np.max(codes))) > most:
        raise ValueError(f"{name} got the code {largest}; wanted at most {most}")


def check_scales(name: str, scales: jax.Array) -> None:
    """Checks received scales or norms.

    Raises:
      ValueError: one is negative.
    """
    if np.any(np.asarray(scales) < 0):
        raise ValueError(f"{name} got a negative scale; wanted bytes that pack returned")


@dataclasses.dataclass(frozen=True)
class Codec:
    """A lossy code for pytrees of floats, each array apart unless `whole`.

    `a >> b` encodes with `a`, then the floats that `a` leaves with `b`: `top_k(0.01) >> quantize(8)`
    quantises the values that are kept.

    Attributes:
      steps: in the order of encoding.
      is_whole: whether all arrays are encoded as one; see `whole`.
    """

    steps: tuple[Step, ...]
    is_whole: bool = False

    @property
    def name(self) -> str:
        """The steps' names, for error messages."""
        names = " >> ".join(step.name for step in self.steps)
        return f"whole({names})" if self.is_whole else names

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The steps' names and settings, as JSON values."""
        steps = [{"name": step.name} | dict(step.settings) for step in self.steps]
        return [{"name": "whole"}, *steps] if self.is_whole else steps

    @property
    def keeps_norm(self) -> bool:
        """Whether decoded arrays never have a larger L2 norm than the originals."""
        return all(step.keeps_norm for step in self.steps)

    @property
    def is_structured(self) -> bool:
        """Whether clients train inside a subspace, that of the first step."""
        return self.steps[0].subspace is not None

    def __rshift__(self, other: Any) -> "Codec":
        if not isinstance(other, Codec):
            raise ValueError(
                f"{self.name} >> {other!r}: the second is no codec; wanted one such as quantize(8)"
            )
        if self.is_whole or other.is_whole:
            raise ValueError(
                f"{self.name} >> {other.name}: one of the two takes all arrays as one; wanted whole "
                "around the chain, as in whole(rotate() >> quantize(1))"
            )
        if not self.steps[-1].leaves_floats:
            raise ValueError(
                f"{self.name} >> {other.name}: {self.steps[-1].name} leaves no floats for "
                f"{other.steps[0].name} to encode; wanted {self.steps[-1].name} last"
            )
        if other.is_structured:
            raise ValueError(
                f"{self.name} >> {other.name}: clients train inside {other.steps[0].name}'s subspace, "
                f"before anything is encoded; wanted {other.steps[0].name} first"
            )
        if other.steps[0].name == "rotate" and any(step.name == "top_k" for step in self.steps):
            warnings.warn(
                f"{self.name} >> {other.name}: rotates only the values that top_k has kept; "
                "rotate() >> top_k(...) chooses among rotated values",
                stacklevel=2,
            )
        return Codec(self.steps + other.steps)

    def encode(self, key: jax.Array, x: Any, pattern: jax.Array | None = None) -> Any:
        """Encodes a pytree of floats.

        Args:
          key: PRNG key; arrays and steps draw apart.
          x: a pytree of float arrays, each with at least one element.
          pattern: PRNG key that both sides know, for the subspaces of a structured codec; by default
            `key`.

        Returns:
          `x` with a `Payload` in place of each array, or a `WholePayload`.

        Raises:
          ValueError: an array does not hold floats, or holds nothing.
        """
        pattern = key if pattern is None else pattern
        leaves, structure = jax.tree.flatten(x)
        for leaf in leaves:
            if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
                raise ValueError(
                    f"{self.name} got an array {leaf.dtype}{list(leaf.shape)}; wanted floats, at least "
                    "one"
                )
        if self.is_whole:
            likes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
            flat = jnp.concatenate([_widened(leaf).reshape(-1) for leaf in leaves])
            return WholePayload(self._encode_one(key, pattern, flat), structure, likes)
        keys = ((jax.random.fold_in(key, i), jax.random.fold_in(pattern, i)) for i in range(len(leaves)))
        payloads = [self._encode_one(*pair, x) for pair, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, payloads)

    def decode(self, payload: Any) -> Any:
        """Returns the pytree that the server reads from `encode`'s result, in the dtypes of `x`."""
        if not isinstance(payload, WholePayload):
            return jax.tree.map(self._decode_one, payload, is_leaf=_is_payload)
        sizes = [like.size for like in payload.likes]
        parts = jnp.split(self._decode_one(payload.payload), np.cumsum(sizes)[:-1])
        leaves = [
            part.reshape(like.shape).astype(like.dtype)
            for part, like in zip(parts, payload.likes, strict=True)
        ]
        return jax.tree.unflatten(payload.structure, leaves)

    def pack(self, payload: Any) -> bytes:
        """Returns a payload as bytes, on the host; `fs.compression.num_bytes` says how many."""
        return wire.pack(payload)

    def unpack(self, data: bytes, like: Any, pattern: jax.Array | None = None) -> Any:
        """Returns the payload that `pack` turned into bytes.

        Args:
          data: what `pack` returned.
          like: a pytree with the shapes and dtypes of what was encoded.
          pattern: what `encode` was given, for a structured codec.

        Raises:
          ValueError: there are more or fewer bytes than an encoded `like` has, a code or a scale is one
            that `encode` never returns, or a structured codec gets no pattern.
        """
        payload = wire.unpack(data, jax.eval_shape(self.encode, jax.random.key(0), like))
        for one in jax.tree.leaves(payload, is_leaf=_is_payload):
            for step, part, shape in zip(self.steps, one.parts, one.likes, strict=True):
                step.check(part, shape)
        if not self.is_structured:
            return payload
        if pattern is None:
            raise ValueError(
                f"{self.name} does not send which subspace it is; wanted pattern=, the key that encode "
                "was given"
            )
        payloads, structure = jax.tree.flatten(payload, is_leaf=_is_payload)
        for i, one in enumerate(payloads):
            seed = known_seed(jax.random.fold_in(pattern, i))
            payloads[i] = dataclasses.replace(one, parts=(seed, *one.parts[1:]))
        return jax.tree.unflatten(structure, payloads)

    def bases(self, pattern: jax.Array, params: Any) -> list[Any]:
        """Returns the basis of ONE client's subspace for each array of `params`; see `Subspace`.

        Args:
          pattern: see `encode`.
          params: a pytree of arrays.
        """
        draw = self.steps[0].subspace.draw
        return [
            draw(draw_seed(jax.random.fold_in(pattern, i)), leaf)
            for i, leaf in enumerate(jax.tree.leaves(params))
        ]

    def _encode_one(self, key: jax.Array, pattern: jax.Array, x: jax.Array) -> Payload:
        parts, likes = [], []
        for i, step in enumerate(self.steps):
            likes.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
            step_key = jax.random.fold_in(key, i) if step.subspace is None else pattern
            x, part = step.split(step_key, x)
            parts.append(part)
        return Payload(x, tuple(parts), tuple(likes))

    def _decode_one(self, payload: Payload) -> jax.Array:
        x = payload.rest
        for step, part, like in reversed(
            list(zip(self.steps, payload.parts, payload.likes, strict=True))
        ):
            x = step.join(x, part, like)
        return x


def whole(codec: Codec) -> Codec:
    """Returns a codec that encodes all arrays of a pytree as one, in float32 or wider.

    `whole(rotate() >> quantize(1))` sends one least and one largest entry in all, and
    `whole(top_k(0.01))` keeps the largest entries of the model rather than of each layer.

    Args:
      codec: such as `rotate() >> quantize(1)`; not a structured one.

    Raises:
      ValueError: `codec` is no codec, or is structured.
    """
    if not isinstance(codec, Codec):
        raise ValueError(f"whole got {codec!r}; wanted a codec, such as whole(top_k(0.01))")
    if codec.is_structured:
        raise ValueError(
            f"whole({codec.name}): clients train each array in a subspace of its own; wanted "
            f"{codec.name} without whole"
        )
    return dataclasses.replace(codec, is_whole=True)


def _is_payload(node: Any) -> bool:
    return isinstance(node, Payload)


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(np.promote_types(x.dtype, np.float32))
