"""Valid inputs that somebody has touched, drawn by hypothesis, and what must come of them."""

import copy

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

# Always the same cases; a folder serves all cases of a test, which write its files anew.
bounded = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 9),
        st.sampled_from([2**31, 2**63, 10**30, -1, 0.5, 1.0, float("nan"), float("inf")]),
        st.text(max_size=3),
        st.sampled_from(["\0", "a\0", "\ud800", "../x", "/etc/passwd", "<i4", "|O"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def result_of(action, path):
    """What an action makes of a file; None where it refuses it, with an error that names the file."""
    refusal = None
    try:
        made = action()
    except (ValueError, FileNotFoundError) as error:
        made, refusal = None, error
    event("made" if refusal is None else "refused")  # see --hypothesis-show-statistics
    assert type(refusal) in (type(None), ValueError, FileNotFoundError), repr(refusal)
    assert refusal is None or str(path) in str(refusal)
    return made


@st.composite
def damaged(draw, content, tokens=()):
    """Bytes with a few bits flipped, pieces cut out, repeated or moved, and bytes or tokens put in."""
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(content)))
        last = draw(st.integers(first, min(len(content), first + 40)))
        piece = content[first:last]
        kind = draw(
            st.sampled_from(["flip", "cut", "end", "repeat", "bytes", *(["token"] * bool(tokens))])
        )
        if kind == "flip" and piece:
            piece = bytes([piece[0] ^ 1 << draw(st.integers(0, 7))]) + piece[1:]
        elif kind == "cut":
            piece = b""
        elif kind == "end":
            last = len(content)
            piece = b""
        elif kind == "repeat":
            piece *= draw(st.integers(2, 50))
        elif kind == "bytes":
            piece += draw(st.binary(min_size=1, max_size=4))
        elif kind == "token":
            piece += draw(st.sampled_from(tokens))
        content = content[:first] + piece + content[last:]
    return content


@st.composite
def altered(draw, value):
    """JSON of which one to three values are others, or gone, or have other keys."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(json_values)
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "drop", "copy", "rename"]))
        if kind == "replace":
            holder[key] = draw(json_values)
        elif kind == "drop":
            del holder[key]
        elif kind == "copy":
            other, there = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other.get(there) if isinstance(other, dict) else None)
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=4))] = holder.pop(key)
    return value


def _places(value):
    """Every (dict or list, key or index) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
