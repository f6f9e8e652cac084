"""Programs as content: identified by what they compute, not by names."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from fedjax_sim.core import trees

_CALLS = ("jit", "pjit")
# Their parameters hold functions that no digest shows: callbacks, and what becomes of lanes.
_OPAQUE = ("pure_callback", "io_callback", "debug_callback", "custom_vmap_call")


def digest(fn: Callable, *args: Any) -> str:
    """Identifies what `fn` computes from arguments of these shapes.

    The digest covers the operations in order, the shapes and dtypes of their operands, and the values of
    all constants, including closed-over arrays. It does not cover names, so the same function built anew
    has the same digest, nor what a callback to the host does. It may change with the version of JAX.

    Args:
      fn: a pure function.
      *args: pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      16 hexadecimal digits.
    """
    return trace(fn, *args).digest[:16]


class Program:
    """A traced function, equal to any other that computes the same.

    Equality ignores the values of constants: they are arguments of `run`, so functions that close over
    different arrays of the same shapes are compiled once. Callbacks to the host, and rules for lanes,
    must be the same objects.

    Attributes:
      digest: hash that covers the constants as well.
    """

    def __init__(self, closed: ClosedJaxpr, out_tree: Any):
        self._closed, self._out_tree = closed, out_tree
        structure = hashlib.sha256(str(out_tree).encode())
        _add_jaxpr(structure, closed.jaxpr)
        self._structure = structure.digest(), tuple(_opaque_parts(closed.jaxpr))
        for const in closed.consts:
            _add(structure, const)
        self.digest = structure.hexdigest()

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Program) and self._structure == other._structure

    def __hash__(self) -> int:
        return hash(self._structure[0])

    @property
    def consts(self) -> list[Any]:
        """The arrays that the function closes over."""
        return self._closed.consts

    def run(self, consts: list[Any], *args: Any) -> Any:
        """Runs the function with these constants and arguments."""
        fn = jaxpr_as_fun(ClosedJaxpr(self._closed.jaxpr, consts))
        return jax.tree.unflatten(self._out_tree, fn(*jax.tree.leaves(args)))


def trace(fn: Callable, *args: Any) -> Program:
    """Traces `fn` anew, so that closed-over arrays are read now."""
    # A new function each time, since JAX caches the traces of functions that it has seen.
    closed, shape = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(*args)
    return Program(closed, jax.tree.structure(shape))


def trace_once(fn: Callable, *args: Any, **static: Any) -> Program:
    """Traces `fn(*args, **static)`, unless the same objects were traced with these shapes before.

    A program does not tell which devices its mesh has; whatever compiles it needs the layout too.

    Args:
      fn: function of the module, whose keyword arguments are static.
      *args: pytrees of arrays.
      **static: hashable values.
    """
    traced = _jitted(fn, *sorted(static)).trace(*args, **static)
    return _program_of(traced.jaxpr, jax.tree.structure(traced.out_info))


@functools.cache
def _jitted(fn: Callable, *static: str) -> Any:
    return jax.jit(fn, static_argnames=static)


# By identity: JAX returns the same object for what it has traced before.
_program_of = functools.lru_cache(maxsize=128)(Program)


def shapes_of(tree: Any) -> Any:
    """Returns the shapes and dtypes of the arrays of a pytree."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def digest_arrays(tree: Any) -> str:
    """Identifies the values of a pytree of arrays, by 16 hexadecimal digits."""
    whole = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        _add(whole, leaf)
    return whole.hexdigest()[:16]


def _opaque_parts(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yields the functions in a program that its operations do not show."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=callable):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from _opaque_parts(getattr(value, "jaxpr", value))
            elif name in _OPAQUE and callable(value):
                yield getattr(value, "rule", value)


def _add_jaxpr(whole: Any, jaxpr: Jaxpr) -> None:
    numbers: dict[Any, int] = {}

    def define(variables):
        for variable in variables:
            numbers[variable] = len(numbers)
            _say(whole, variable.aval.str_short())

    define((*jaxpr.constvars, *jaxpr.invars))
    for equation in jaxpr.eqns:
        _say(whole, equation.primitive.name)
        for operand in equation.invars:
            if isinstance(operand, Literal):
                _add(whole, operand.val)
            else:
                _say(whole, numbers[operand])
        # The placement and the name of a call do not change what it computes.
        is_call = equation.primitive.name in _CALLS
        for name in ("jaxpr",) if is_call else sorted(equation.params):
            _say(whole, name)
            _add(whole, equation.params[name])
        define(equation.outvars)
    for result in jaxpr.outvars:
        if isinstance(result, Literal):
            _add(whole, result.val)
        else:
            _say(whole, numbers[result])


def _add(whole: Any, value: Any) -> None:
    """Adds a constant or a parameter of an operation."""
    if isinstance(value, ClosedJaxpr):
        _add_jaxpr(whole, value.jaxpr)
        _add(whole, list(value.consts))
    elif isinstance(value, Jaxpr):
        _add_jaxpr(whole, value)
    elif isinstance(value, Mapping):
        _add(whole, sorted(value.items()))
    elif isinstance(value, tuple | list):
        _say(whole, len(value))
        for item in value:
            _add(whole, item)
    elif isinstance(value, jax.Array) and trees.is_key(value):
        _say(whole, jax.random.key_impl(value))
        _add(whole, jax.random.key_data(value))
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        _say(whole, f"{array.dtype} {np.shape(value)}")
        whole.update(array.tobytes())
    elif callable(value) and not isinstance(value, type | jnp.dtype):
        # Rules for derivatives or lanes, already part of the program where they are used, and callbacks
        # to the host, which are opaque.
        _say(whole, type(value).__name__)
    else:
        # Without addresses, which differ between processes.
        _say(whole, re.sub(" at 0x[0-9a-f]+", "", f"{type(value).__name__} {value}"))


def _say(whole: Any, word: Any) -> None:
    whole.update(f"{word};".encode())
