"""Compiled programs: a counter, and a limit to how many stay in memory."""

import logging
import pathlib
import threading
import time
from typing import Self

import jax

_COMPILE = "/jax/core/compile/backend_compile_duration"
_STAGES = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _COMPILE,
)

_MAPPINGS = pathlib.Path("/proc/self/maps")
_MOST_MAPPINGS = pathlib.Path("/proc/sys/vm/max_map_count")
_SHARE = 0.5  # of the system's limit; the other half is more than one run adds


def drop_programs_if_many() -> None:
    """Drops all compiled programs, the caller's own as well, before their memory mappings run out.

    On a CPU the programs of one run take some 400 mappings, and beyond vm.max_map_count, 65530 on most
    Linux systems, the process crashes. Programs that are needed again are compiled again.
    """
    try:
        most = _SHARE * int(_MOST_MAPPINGS.read_text())
        if _num_mappings() <= most:
            return
        jax.clear_caches()
        left = _num_mappings()
    except OSError:  # another system than Linux, or one that tells nothing
        return
    if left > most:
        logging.getLogger(__name__).warning(
            "This process has %d memory mappings without any compiled program; beyond "
            "vm.max_map_count it crashes, so raise that limit (sysctl vm.max_map_count).",
            left,
        )


def _num_mappings() -> int:
    return _MAPPINGS.read_bytes().count(b"\n")


class CompilationCounter:
    """A context manager that counts compilations.

    Attributes:
      count: programs compiled so far.
    """

    def __init__(self):
        self.count = 0
        self._spans: list[tuple[float, float]] = []  # disjoint, in order
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """The time in which something was traced, lowered or compiled, be it by several threads."""
        return sum(end - start for start, end in self._spans)

    def _listen(self, event: str, duration: float, **kwargs) -> None:
        end = time.perf_counter()
        with self._lock:
            self.count += event == _COMPILE
            if event not in _STAGES:
                return
            start = end - duration
            while self._spans and self._spans[-1][1] > start:
                first, last = self._spans.pop()
                start, end = min(start, first), max(end, last)
            self._spans.append((start, end))

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
