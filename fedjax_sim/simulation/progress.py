"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Self

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Shows rounds done, accuracy and time left on standard error.

    Args:
      num_rounds: where the run ends.
      rows: those of the part of the run that is done.
    """

    def __init__(self, num_rounds: int, rows: list[dict]):
        done = rows[-1]["round"] if rows else 0
        self._num_rounds, self._first = num_rounds, done
        self._started = self._shown = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=num_rounds, initial=done, unit="round", dynamic_ncols=True)

    def update(self, row: dict, last: bool) -> None:
        """Shows a row of metrics; `last` says that the run ends with it."""
        shown = {k: v for k, v in row.items() if k.endswith(("accuracy", "test_loss"))}
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(row["round"] - self._bar.n)
        elif last or now - self._shown >= _SECONDS_BETWEEN_LINES or row["round"] == self._first:
            self._shown = now
            print(
                f"round {row['round']}/{self._num_rounds}: {text}{self._left(row, last)}",
                file=sys.stderr,
                flush=True,
            )

    def _left(self, row: dict, last: bool) -> str:
        done = row["round"] - self._first
        if last or done == 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * (self._num_rounds - row["round"])
        return f", at most {seconds:.0f} s left"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()
