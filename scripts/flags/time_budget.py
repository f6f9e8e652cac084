"""A flag for work that is done in parts, and the clock that measures it."""

import math
import shlex
import sys
import time
from collections.abc import Iterator

# Before the imports that take seconds; scripts import this module first.
_STARTED = time.monotonic()

import jax  # noqa: E402
from common import say  # noqa: E402

import fedjax_sim as fs  # noqa: E402
from flags.kinds import Kind, define  # noqa: E402

TIME_BUDGET_S = define(
    Kind(float, lambda value: value > 0, "seconds above 0"),
    "time_budget_s",
    None,
    "Seconds after which no new block of rounds begins; no limit by default.",
)
_MORE_TO_DO = 75  # EX_TEMPFAIL of sysexits.h: try again later


def check() -> None:
    """Checks the flag.

    Raises:
      ValueError: the job has several processes, and their clocks differ.
    """
    if TIME_BUDGET_S.value is not None and jax.process_count() > 1:
        raise ValueError("--time_budget_s is for one process, since clocks differ; leave it out")


class Budget:
    """A clock that says whether there is time for another block of rounds; the first always has time."""

    def __init__(self):
        self._begun = False

    def __call__(self) -> bool:
        going, self._begun = not self._is_over(), True
        return going

    def while_there_is_time(self, names: list[str]) -> Iterator[str]:
        """Yields each name in turn.

        Raises:
          UnfinishedError: time ran out before the next name.
        """
        for name in names:
            if self._is_over():
                raise fs.simulation.UnfinishedError("no cell is under way")
            yield name

    def _is_over(self) -> bool:
        limit = math.inf if TIME_BUDGET_S.value is None else TIME_BUDGET_S.value
        return self._begun and time.monotonic() - _STARTED >= limit


def leave_the_rest(reason: fs.simulation.UnfinishedError, count: int, left: list[str]) -> None:
    """Ends the script with the status for unfinished work, and says what is left.

    Args:
      reason: why it ends.
      count: number of all cells.
      left: names of the unfinished cells.
    """
    say(f"time ran out after {time.monotonic() - _STARTED:.0f} s ({reason})")
    say(f"cells done: {count - len(left)} of {count}; left: {', '.join(left)}")
    say(f"to continue: {shlex.join(['python', *sys.argv])}")
    sys.exit(_MORE_TO_DO)
