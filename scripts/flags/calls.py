"""Values of flags that name a function and its arguments, such as "dirichlet:0.1" or "adam:b1=0.8".

Names, arguments and their types come from the functions' signatures. "clip:1.0,adaptive=0.5" stands for
the call `clip(1.0, adaptive=0.5)`, and Python's own form works as well. Nothing is evaluated: a value is
parsed, and its parts are numbers, words and calls of the functions that the flag knows.
"""

import ast
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

import fedjax_sim as fs
from flags.kinds import LARGEST_FLOAT32, SMALLEST_FLOAT32

flags.disclaim_key_flags()

_HEAD = re.compile(r"\s*([A-Za-z_]\w*)\s*(?::(.*))?", re.DOTALL)
_LONGEST = 1000  # characters of a value; far longer ones overflow Python's parser
# Types that can be written, with their names in messages.
_WRITTEN = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a word",
    type(None): "none",
}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "none": None}


class Call(NamedTuple):
    """A function with the arguments that a value gives."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]

    def takes(self, parameter: str) -> bool:
        """Says whether the function has a parameter of this name."""
        return parameter in _parameters(self.function)

    def make(self, **offered: Any) -> Any:
        """Calls the function; of what is offered, it gets what it takes and the value does not give."""
        more = {name: value for name, value in offered.items() if self.takes(name)}
        variadic = [p.name for p in _parameters(self.function).values() if p.kind is p.VAR_POSITIONAL]
        given = more | self.arguments
        places = [value for name in variadic for value in given.pop(name, ())]
        return self.function(*places, **given)


class Calls(NamedTuple):
    """The calls that a flag accepts.

    Attributes:
      kind: what the functions are, for messages, such as "partition".
      functions: name -> function.
      elsewhere: parameters that no value gives, since other flags or the script do.
      inside: name -> function of calls that stand inside others only, such as the codec of an algorithm.
    """

    kind: str
    functions: Mapping[str, Callable[..., Any]]
    elsewhere: Collection[str] = ()
    inside: Mapping[str, Callable[..., Any]] = types.MappingProxyType({})

    def read(self, text: str) -> Call:
        """Returns the call that a value stands for.

        Raises:
          ValueError: the value cannot be read, or the function or an argument is unknown, missing or of
            another type.
        """
        return self._call(_parsed(text))

    def make(self, text: str) -> Any:
        """Returns what the functions make of a value alone; codecs may stand in it with >> between them.

        Raises:
          ValueError: see `read`; or the function refuses its arguments.
        """
        return self._object(_parsed(text))

    def describe(self) -> str:
        """Returns all names, each with its arguments."""
        shown = []
        for name, function in sorted(self.functions.items()):
            of_name = ", ".join(self._writable(function))
            shown.append(f"{name} ({of_name})" if of_name else name)
        return ", ".join(shown)

    def _call(self, node: ast.expr) -> Call:
        if isinstance(node, ast.Name):
            node = ast.Call(node, [], [])
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError(f"wanted {_article(self.kind)} such as {self._example()}")
        name = node.func.id
        function = fs.checks.choose(self.kind, name, self.functions)
        writable, arguments = self._writable(function), {}
        places = iter(writable.values())
        for value in node.args:
            parameter = next(places, None)
            if parameter is None:
                raise ValueError(f"{name} takes {_listed(writable)}, and more is given")
            if parameter.kind is parameter.VAR_POSITIONAL:
                arguments.setdefault(parameter.name, []).append(self._value(name, parameter, value))
                places = iter((parameter, *places))
            else:
                arguments[parameter.name] = self._value(name, parameter, value)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError(f"wanted arguments of {name} as name=value")
            if keyword.arg in self.elsewhere:
                raise ValueError(f"{keyword.arg} of {name} is set elsewhere; leave it out (see --help)")
            parameter = fs.checks.choose(f"argument of {name}", keyword.arg, writable)
            if keyword.arg in arguments:
                raise ValueError(f"{name} is given {keyword.arg} twice; wanted it once")
            value = self._value(name, parameter, keyword.value)
            is_variadic = parameter.kind is parameter.VAR_POSITIONAL
            arguments[keyword.arg] = [value] if is_variadic else value
        for parameter in writable.values():
            is_variadic = parameter.kind is parameter.VAR_POSITIONAL
            is_free = is_variadic or parameter.default is not parameter.empty
            if not is_free and parameter.name not in arguments:
                wanted = _wanted(self._accepted(parameter))
                raise ValueError(f"{name} needs {parameter.name}, {wanted}: {name}:{parameter.name}=...")
        return Call(name, function, arguments)

    def _writable(self, function: Callable) -> dict[str, inspect.Parameter]:
        """Returns the parameters that a value may give, in their order."""
        return {
            name: parameter
            for name, parameter in _parameters(function).items()
            if name not in self.elsewhere and self._accepted(parameter) - {type(None)}
        }

    def _accepted(self, parameter: inspect.Parameter) -> set[Any]:
        """Returns the types of a parameter that can be written: plain ones and results of functions."""
        known = {*_WRITTEN, *map(_returns, (self.inside or self.functions).values())}
        annotation = parameter.annotation
        members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        if {Any, parameter.empty} & {*members}:
            return {*_WRITTEN}
        found = {member for member in members if member in known}
        return found - {bool} if {int, float} <= found else found  # arrays are numbers

    def _value(self, name: str, parameter: inspect.Parameter, node: ast.expr) -> Any:
        """Returns the value of an argument."""
        accepted = self._accepted(parameter)
        for nested in accepted - {*_WRITTEN}:
            of_type = {n: f for n, f in (self.inside or self.functions).items() if _returns(f) == nested}
            return self._replace(kind=parameter.name, functions=of_type, elsewhere=())._object(node)
        value = _plain(node, accepted)
        if type(value) not in accepted and not (type(value) is int and float in accepted):
            raise ValueError(
                f"{parameter.name} of {name} is {ast.unparse(node)}; wanted {_wanted(accepted)}"
            )
        if isinstance(value, float) or (type(value) is int and int not in accepted):
            return _float32(f"{parameter.name} of {name}", value)
        return value

    def _object(self, node: ast.expr) -> Any:
        """Returns what a nested call makes, or several with >> between them."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
            left, right = self._object(node.left), self._object(node.right)
            try:
                return left >> right
            except TypeError:
                raise ValueError(f"{ast.unparse(node)}: wanted >> between codecs only, else |") from None
        return self._call(node).make()

    def _example(self) -> str:
        name, function = min(self.functions.items())
        argument = next(iter(self._writable(function)), None)
        return name if argument is None else f"{name}:{argument}=..."


class Written(flags.ArgumentParser):
    """A flag parser of texts that a function can read; the flag's value remains the text.

    Args:
      read: function of the text; raises ValueError for what it cannot read.
    """

    def __init__(self, read: Callable[[str], Any]):
        self._read = read

    def parse(self, argument: str) -> str:
        """Returns the text.

        Raises:
          ValueError: it cannot be read.
        """
        self._read(argument)
        return argument


def functions_of(
    modules: Iterable[Any],
    results: Collection[Any],
    elsewhere: Collection[str] = (),
    inside: Mapping[str, Callable[..., Any]] = types.MappingProxyType({}),
) -> dict[str, Callable[..., Any]]:
    """Returns public functions with these results that need nothing a value cannot give.

    Args:
      modules: modules with `__all__`.
      results: annotations of the results.
      elsewhere, inside: see `Calls`.
    """
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    found = {
        name: function
        for name, function in public.items()
        if inspect.isfunction(function) and _returns(function) in results
    }
    known = Calls("", found, elsewhere, inside)
    return {
        name: function
        for name, function in found.items()
        if all(
            parameter.default is not parameter.empty or known._accepted(parameter)
            for other, parameter in _parameters(function).items()
            if other not in elsewhere
        )
    }


def split(text: str, mark: str) -> list[str]:
    """Returns the parts of a text between marks that lie in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _parsed(text: str) -> ast.expr:
    head = _HEAD.fullmatch(text)
    source = f"{head[1]}({head[2] or ''})" if head else text.strip()
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"{len(text)} characters")
        return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        shown = text if len(text) < 60 else f"{text[:60]}..."
        raise ValueError(f"{shown!r} cannot be read; wanted name:value,name=value") from None


def _plain(node: ast.expr, accepted: Collection[Any]) -> Any:
    """Returns a number, a word, true, false or none; the node itself if it is nothing of these."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        node, sign = node.operand, -1 if isinstance(node.op, ast.USub) else 1
        if not isinstance(node, ast.Constant | ast.Name) or not accepted & {int, float}:
            return node
        value = _plain(node, {float})
        return sign * value if type(value) in (int, float) else node
    if isinstance(node, ast.Constant):
        return node.value
    if not isinstance(node, ast.Name):
        return node
    if node.id in ("inf", "nan") and float in accepted:
        return float(node.id)
    if node.id in _WORDS and type(_WORDS[node.id]) in accepted:
        return _WORDS[node.id]
    return node.id


def _float32(name: str, value: float) -> float:
    """Returns a number as a float, if it is one in float32 too."""
    size = abs(value)  # perhaps a whole number that is no float
    if 0 < size < SMALLEST_FLOAT32 or LARGEST_FLOAT32 < size < math.inf:
        raise ValueError(
            f"{name} is {str(value)[:40]}; wanted 0, inf, or a number from {SMALLEST_FLOAT32:.3g} to "
            f"{LARGEST_FLOAT32:.3g}"
        )
    return float(value)


@functools.cache
def _signature(function: Callable) -> inspect.Signature:
    return inspect.signature(function, eval_str=True)


def _returns(function: Callable) -> Any:
    return _signature(function).return_annotation


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    return _signature(function).parameters


def _is_union(annotation: Any) -> bool:
    return isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union


def _wanted(accepted: Iterable[Any]) -> str:
    named = {*accepted} - ({int} if float in accepted else set())  # whole numbers are numbers
    words = [word for kind, word in _WRITTEN.items() if kind in named]
    return " or ".join(words) or "a call"


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names) or "no arguments"


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"
