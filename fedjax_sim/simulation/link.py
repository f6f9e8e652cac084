"""The time that a run's messages would take over a network, in closed form, without random draws."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.simulation.recorded import columns

_MOST_SPREAD = 10.0  # one client in six is then 22,000 times slower than the median; far more overflow


@dataclasses.dataclass(frozen=True)
class Link:
    """The network link between the server and each client.

    The default upload is 1 MB/s, the typical maximum (McMahan et al., "Communication-efficient learning
    of deep networks from decentralized data", AISTATS 2017, section 1). The default download is three
    times that, as in the average US broadband of 2016, 18.9 Mbit/s up and 55.0 down
    (Konečný et al., "Federated learning: strategies for improving communication efficiency", 2016,
    https://arxiv.org/abs/1610.05492, section 1). Latency and spread are our choice.

    Attributes:
      up_mbps: a client's median bandwidth to the server, in 10^6 bits per second.
      down_mbps: the same from the server.
      latency_ms: one-way delay of a message besides its transfer, in milliseconds.
      spread: sigma of the lognormal factor, of median 1, on the transfer times of a client; 0 makes all
        clients alike. At most 10.

    Raises:
      ValueError: a value is not a finite number, or out of range.
    """

    up_mbps: float = 8.0
    down_mbps: float = 24.0
    latency_ms: float = 50.0
    spread: float = 0.0

    def __post_init__(self):
        for name in ("up_mbps", "down_mbps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted megabits per second, above 0")
        if not 0 <= self.latency_ms < math.inf:
            raise ValueError(f"latency_ms is {self.latency_ms}; wanted milliseconds, at least 0")
        if not 0 <= self.spread <= _MOST_SPREAD:
            raise ValueError(f"spread is {self.spread}; wanted a number from 0 to {_MOST_SPREAD:g}")

    def slowest(self, clients: float) -> float:
        """Returns the median of the slowest client's transfer time, relative to the median client's.

        The largest of k independent factors lies below its median with probability 1/2, hence each
        factor does with probability `2^(-1/k)`: the median is `exp(spread * Phi^-1(2^(-1/k)))`.

        Args:
          clients: number of clients k, at least 1; fractional if it is a mean over rounds.
        """
        beyond = -math.expm1(-math.log(2) / clients)  # 1 - 2^(-1/k), exact for many clients too
        return math.exp(-self.spread * statistics.NormalDist().inv_cdf(beyond))

    def seconds(self, history: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns the communication time up to each row of a run.

        The messages of a trip travel in parallel, and the trip ends with the slowest; trips are
        sequential. For each kind, T trips with n messages of s bytes take
        `T * (latency + 8 s / bandwidth * slowest(n / T))`. The rounds between two rows count as equal.
        Computation on clients and server is not included.

        Args:
          history: columns of the ledger, name -> `[evaluations]`, as in `Result.history()`, or the rows
            themselves.

        Returns:
          `[evaluations]` float64, cumulative.

        Raises:
          ValueError: some bytes lack the messages and trips that carried them.
        """
        history = history if isinstance(history, Mapping) else columns(list(history))
        names = [name.removeprefix("trips_") for name in history if name.startswith("trips_")]
        _check_ledger(history, names)
        waited = np.zeros(len(history["bytes_up"]))
        for name in names:
            # Nothing was sent before the first row.
            trips, messages, size = (
                np.diff(history[f"{what}_{name}"], prepend=0) for what in ("trips", "messages", "bytes")
            )
            sent = (trips > 0) & (messages > 0)
            trips, messages, size = trips[sent], messages[sent], size[sent]
            mbps = self.up_mbps if name.startswith("up_") else self.down_mbps
            transfer = 8 * size / messages / (1e6 * mbps)
            slowest = np.array([self.slowest(clients) for clients in messages / trips])
            waited[sent] += trips * (self.latency_ms / 1e3 + transfer * slowest)
        return np.cumsum(waited)


def _check_ledger(history: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuses a history in which the kinds of messages do not add up to all bytes."""
    totals = [history.get(f"bytes_{direction}") for direction in ("up", "down")]
    missing = any(total is None for total in totals)
    by_kind = sum(np.asarray(history[f"bytes_{name}"]) for name in names)
    if missing or not np.allclose(by_kind, np.add(*totals)):
        raise ValueError(
            "the rows do not say which messages and trips carried all bytes, as in older runs; repeat "
            "the run in another workdir"
        )
