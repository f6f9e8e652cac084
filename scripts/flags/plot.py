"""Flags of what the curves of pictures run over: rounds, bytes, or seconds over a link."""

from typing import Any

from absl import flags

import fedjax_sim as fs
from flags.kinds import define, number

_DEFAULT = fs.Link()
# Wide enough for any network, and narrow enough that no time overflows.
_MBPS = number(1e-6, 1e12)
_PLOT_AXIS = flags.DEFINE_enum(
    "plot_axis",
    "rounds",
    fs.reporting.AXES,
    "What curves run over: rounds; bytes (in MB, up and down together); or seconds of communication, "
    "without any computing. Give the same command with another axis to draw the pictures anew.",
)
_UP_MBPS = define(
    _MBPS, "up_mbps", _DEFAULT.up_mbps, "Bandwidth from a client to the server, in Mbit/s; for seconds."
)
_DOWN_MBPS = define(
    _MBPS,
    "down_mbps",
    _DEFAULT.down_mbps,
    "Bandwidth from the server to a client, in Mbit/s; for seconds.",
)
_LATENCY_MS = define(
    number(0, 1e9),
    "latency_ms",
    _DEFAULT.latency_ms,
    "Of a message one way, in milliseconds; for seconds.",
)
_LINK_SPREAD = define(
    number(0, 10),
    "link_spread",
    _DEFAULT.spread,
    "Sigma of the lognormal factor on the clients' transfer times, 0 if all are alike; for seconds.",
)

# They change how results are shown, and no result.
NAMES = tuple(flag.name for flag in (_PLOT_AXIS, _UP_MBPS, _DOWN_MBPS, _LATENCY_MS, _LINK_SPREAD))


def chosen() -> dict[str, Any]:
    """Returns the axis and the link, as `fedjax_sim.reporting.x_axis` takes them."""
    link = fs.Link(_UP_MBPS.value, _DOWN_MBPS.value, _LATENCY_MS.value, _LINK_SPREAD.value)
    return {"axis": _PLOT_AXIS.value, "link": link}
