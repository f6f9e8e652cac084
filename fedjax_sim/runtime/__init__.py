"""The environment of a run: devices, processes and compilation."""

from fedjax_sim.runtime.compilations import CompilationCounter
from fedjax_sim.runtime.devices import available_cores, default_layout, layout_for, use_all_cores
from fedjax_sim.runtime.errors import OutOfMemoryError
from fedjax_sim.runtime.processes import ProcessLostError, connect, is_first, wait_for_all
from fedjax_sim.runtime.program_cache import keep_programs

__all__ = [
    "CompilationCounter",
    "OutOfMemoryError",
    "ProcessLostError",
    "available_cores",
    "connect",
    "default_layout",
    "is_first",
    "keep_programs",
    "layout_for",
    "use_all_cores",
    "wait_for_all",
]
