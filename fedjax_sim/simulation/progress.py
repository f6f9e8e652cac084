"""The progress display of a run: a live bar on a terminal or in a notebook, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

_SECONDS_BETWEEN_LINES = 2.0


def measures_text(row: Mapping[str, Any]) -> str:
    """Returns the accuracies and test losses of a row in a few words."""
    numbers = {name: value for name, value in row.items() if not isinstance(value, list)}
    shown = {k: v for k, v in numbers.items() if k.endswith(("accuracy", "test_loss"))}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items())


class Progress:
    """A display of rounds done, accuracy and time left, on standard error.

    A bar tells the time left from the speed of the last rounds.

    Args:
      total: number of rounds, of all runs together.
      done: rounds already done at the start.
    """

    def __init__(self, total: int, done: int = 0):
        self._total, self._first = total, done
        self._started = self._shown = time.monotonic()
        self._bar, self._line = None, -1
        if sys.stderr.isatty() or _in_notebook():
            from tqdm.auto import tqdm  # looks for a notebook when it is imported

            self._bar = tqdm(total=total, initial=done, unit="round", dynamic_ncols=True)

    def update(self, done: int, text: str, *, last: bool) -> None:
        """Shows the number of rounds done.

        Args:
          done: rounds done, of all runs together.
          text: what to tell beside it.
          last: whether nothing follows.
        """
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif done != self._line and (
            last or now - self._shown >= _SECONDS_BETWEEN_LINES or done == self._first
        ):
            self._shown, self._line = now, done
            print(
                f"round {done}/{self._total}: {text}{self._left(done, last)}",
                file=sys.stderr,
                flush=True,
            )

    def _left(self, done: int, last: bool) -> str:
        new = done - self._first
        if last or new == 0:
            return ""
        seconds = (time.monotonic() - self._started) / new * (self._total - done)
        return f", at most {seconds:.0f} s left"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()


def _in_notebook() -> bool:
    """Returns whether the code runs in a notebook, whose streams are no terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
