"""Flags of the x-axis of plots: rounds, bytes, or seconds over a link."""

from typing import Any

from absl import flags

import fedjax_sim as fs
from flags import calls, kinds

_LINKS = calls.Calls("link", {"link": fs.simulation.Link})
# Wide enough for any network, and narrow enough that no time overflows.
_MBPS, _MS = kinds.number(1e-6, 1e12), kinds.number(0, 1e9)


def _link(text: str) -> fs.simulation.Link:
    """Returns the link with these arguments.

    Raises:
      ValueError: an argument is unknown or out of range.
    """
    link = _LINKS.make(f"link:{text}")
    for name, kind in (("up_mbps", _MBPS), ("down_mbps", _MBPS), ("latency_ms", _MS)):
        try:
            kind.parse(getattr(link, name))
        except ValueError as error:
            raise ValueError(f"{name} is {getattr(link, name):g}; {error}") from None
    return link


_PLOT_AXIS = flags.DEFINE_enum(
    "plot_axis",
    "rounds",
    fs.reporting.AXES,
    "x-axis of the curves: rounds; bytes (in MB, up and down together); or seconds of communication, "
    "without any computing. Repeat the command with another axis to redraw the plots.",
)
_LINK = kinds.define(
    calls.Written(_link),
    "link",
    "8,24,50,0",
    "Network link of a client, to compute seconds: Mbit/s up, Mbit/s down, milliseconds of latency one "
    "way, and sigma of the lognormal factor by which clients differ. By name, such as "
    "up_mbps=2,spread=0.5, the others keep their defaults.",
)

# Flags that change how results are shown, but no result.
NAMES = tuple(flag.name for flag in (_PLOT_AXIS, _LINK))


def chosen() -> dict[str, Any]:
    """Returns the axis and the link, as `fedjax_sim.reporting.x_axis` takes them."""
    return {"axis": _PLOT_AXIS.value, "link": _link(_LINK.value)}
