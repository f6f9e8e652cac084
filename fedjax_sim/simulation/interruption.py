"""Ctrl-C during a run: the first asks it to stop after the current block, the second ends it at once."""

import contextlib
import signal
import sys
import threading
from typing import Any, Self

from fedjax_sim.runtime.processes import is_multiprocess


class Interruption:
    """A context in which the first Ctrl-C raises nothing and is remembered.

    An exception in the middle of a block would lose the run, since a block consumes its state. Only
    Python's own handler is replaced: a program that handles Ctrl-C itself keeps its handler. In threads
    other than the main one, and in jobs of several processes, Ctrl-C raises KeyboardInterrupt as usual.

    Attributes:
      requested: whether the user has asked to stop.
    """

    def __init__(self):
        self.requested = False

    def _note(self, signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.requested = True
        with contextlib.suppress(RuntimeError):  # the signal came while this stream was written to
            print(
                "Interrupted: the run stops after its current block of rounds. Press Ctrl-C again to "
                "stop at once, without a result.",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if in_main_thread and usual and not is_multiprocess():
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception) -> None:
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.default_int_handler)
