"""Arrays as they are sent: a number of bits for each element, and bytes on the host.

One rule gives the size of a message: each array takes its elements times their bits, rounded up to whole
bytes. The ledger counts by this rule, and `pack` writes exactly so many bytes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wire:
    """An array whose elements are sent with fewer bits than they take in memory.

    Attributes:
      data: `[...]`, unsigned integers below `2 ** bits`; anything if `bits` is 0.
      bits: static; 0 if nothing is sent, because the receiver knows the value.
    """

    data: jax.Array
    bits: int = dataclasses.field(metadata={"static": True})


def num_bytes(message: Any) -> int:
    """Returns the packed size of a message, from shapes alone.

    Args:
      message: a pytree of `Wire` and of arrays, which may be abstract; arrays are sent with all their
        bits, booleans with one.
    """
    return sum(-(-wire.data.size * wire.bits // 8) for wire in _wires(message))


def pack(message: Any) -> bytes:
    """Returns a message as bytes, lowest bits first; see `num_bytes`."""
    return b"".join(map(_pack_one, _wires(jax.device_get(message))))


def unpack(data: bytes, like: Any) -> Any:
    """Returns the message that `pack` turned into bytes.

    Args:
      data: what `pack` returned.
      like: a message of the same shapes; its arrays may be abstract.

    Raises:
      ValueError: there are more or fewer bytes than such a message has, or bits that only fill up a
        byte are not zero.
    """
    if len(data) != num_bytes(like):
        raise ValueError(
            f"got {len(data)} bytes; wanted {num_bytes(like)}, the size of a message of these shapes"
        )
    leaves, structure = jax.tree.flatten(like, is_leaf=_is_wire)
    unpacked, start = [], 0
    for leaf in leaves:
        size = num_bytes(leaf)
        unpacked.append(_unpack_one(data[start : start + size], leaf))
        start += size
    return jax.tree.unflatten(structure, unpacked)


def _is_wire(node: Any) -> bool:
    return isinstance(node, Wire)


def _as_wire(leaf: Any) -> Wire:
    if _is_wire(leaf):
        return leaf
    return Wire(leaf, 1 if leaf.dtype == bool else 8 * leaf.dtype.itemsize)


def _wires(message: Any) -> list[Wire]:
    return [_as_wire(leaf) for leaf in jax.tree.leaves(message, is_leaf=_is_wire)]


def _pack_one(wire: Wire) -> bytes:
    data = np.ascontiguousarray(wire.data).reshape(-1)
    words = data.view(f"u{data.dtype.itemsize}").astype(f"<u{data.dtype.itemsize}")
    octets = words.view(np.uint8).reshape(data.size, data.dtype.itemsize)
    bits = np.unpackbits(octets, axis=1, bitorder="little")[:, : wire.bits]
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def _unpack_one(data: bytes, leaf: Any) -> Any:
    wire = _as_wire(leaf)
    count, dtype = wire.data.size, np.dtype(wire.data.dtype)
    given = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if given[count * wire.bits :].any():
        raise ValueError(
            f"the bits behind an array of {count} x {wire.bits} bits are not zero; wanted bytes that "
            "pack returned"
        )
    given = given[: count * wire.bits]
    bits = np.zeros((count, 8 * dtype.itemsize), np.uint8)
    bits[:, : wire.bits] = given.reshape(count, wire.bits)
    octets = np.packbits(bits, axis=1, bitorder="little")
    words = octets.reshape(-1).view(f"<u{dtype.itemsize}").astype(f"u{dtype.itemsize}")
    array = jnp.asarray(words.view(dtype).reshape(wire.data.shape))
    return Wire(array, wire.bits) if _is_wire(leaf) else array
