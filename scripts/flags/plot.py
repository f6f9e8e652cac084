"""Flags of the x-axis of plots: rounds, bytes, or seconds over a link."""

from typing import Any

from absl import flags

import fedjax_sim as fs
from flags.kinds import define, number

_DEFAULT = fs.simulation.Link()
# Wide enough for any network, and narrow enough that no time overflows.
_MBPS = number(1e-6, 1e12)
_PLOT_AXIS = flags.DEFINE_enum(
    "plot_axis",
    "rounds",
    fs.reporting.AXES,
    "x-axis of the curves: rounds; bytes (in MB, up and down together); or seconds of communication, "
    "without any computing. Repeat the command with another axis to redraw the plots.",
)
_UP_MBPS = define(
    _MBPS, "up_mbps", _DEFAULT.up_mbps, "Uplink bandwidth of a client in Mbit/s, to compute seconds."
)
_DOWN_MBPS = define(
    _MBPS,
    "down_mbps",
    _DEFAULT.down_mbps,
    "Downlink bandwidth of a client in Mbit/s, to compute seconds.",
)
_LATENCY_MS = define(
    number(0, 1e9),
    "latency_ms",
    _DEFAULT.latency_ms,
    "One-way latency of a message in milliseconds, to compute seconds.",
)
_LINK_SPREAD = define(
    number(0, 10),
    "link_spread",
    _DEFAULT.spread,
    "Sigma of the lognormal factor on clients' transfer times (0 if all are alike), to compute seconds.",
)

# Flags that change how results are shown, but no result.
NAMES = tuple(flag.name for flag in (_PLOT_AXIS, _UP_MBPS, _DOWN_MBPS, _LATENCY_MS, _LINK_SPREAD))


def chosen() -> dict[str, Any]:
    """Returns the axis and the link, as `fedjax_sim.reporting.x_axis` takes them."""
    link = fs.simulation.Link(_UP_MBPS.value, _DOWN_MBPS.value, _LATENCY_MS.value, _LINK_SPREAD.value)
    return {"axis": _PLOT_AXIS.value, "link": link}
