"""What the scripts share: their frame, and reading numbers from flags."""

import math
import sys
import traceback
from collections.abc import Callable

import jax
import machine
from absl import app, flags, logging

import fedjax_sim as fs

# What tells the user all there is to tell.
_EXPECTED = (
    ValueError,
    OSError,
    ImportError,
    fs.DivergenceError,
    fs.OutOfMemoryError,
    fs.ProcessLostError,
)


def run(script: str, work: Callable[[], None]) -> None:
    """Parses the flags and does the work; a mistake of the user ends in one message."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # not every step of JAX and orbax
        try:
            machine.start()
            work()
            fs.wait_for_all()
        except _EXPECTED as error:
            machine.leave(f"{script}: {error}")
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            machine.leave(traceback.format_exc())

    app.run(main)


def say(text: str) -> None:
    """Tells the person who waits, apart from the results on standard output; once a job."""
    if fs.is_first():
        print(text, file=sys.stderr, flush=True)


def numbers(flag: str, entries: list[str], kind: Callable[[str], float]) -> list:
    """The entries of a list flag as numbers.

    Raises:
      ValueError: there are none, or one is not a number.
    """
    entries = [entry.strip() for entry in entries if entry.strip()]
    if not entries:
        raise ValueError(f"--{flag} is empty; wanted numbers with commas between them")
    parsed = []
    for entry in entries:
        try:
            parsed.append(kind(entry))
        except ValueError:
            raise ValueError(f"--{flag} holds {entry!r}; wanted {_WANTED[kind]}") from None
    return parsed


def batch_size(text: str) -> float:
    """A whole number or infinity.

    Raises:
      ValueError: it is neither.
    """
    return math.inf if text in ("inf", "infinity") else int(text)


_WANTED = {int: "a whole number", float: "a number", batch_size: "a whole number or inf"}
