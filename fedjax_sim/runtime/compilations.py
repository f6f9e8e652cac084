"""A counter of JAX's compilations and the time they take."""

from typing import Self

import jax

_COMPILE = "/jax/core/compile/backend_compile_duration"
_STAGES = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _COMPILE,
)


class CompilationCounter:
    """A context manager that counts compilations.

    Attributes:
      count: programs compiled so far.
      seconds: time spent tracing, lowering and compiling them; an upper bound, since nested traces
        count twice.
    """

    def __init__(self):
        self.count = 0
        self.seconds = 0.0

    def _listen(self, event: str, duration: float, **kwargs) -> None:
        if event in _STAGES:
            self.seconds += duration
        if event == _COMPILE:
            self.count += 1

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
