"""Code that the scripts share: running them, and messages to the user."""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from flags import devices, help

import fedjax_sim as fs

# Errors that need no traceback.
_EXPECTED = (
    ValueError,
    OSError,
    ImportError,
    fs.DivergenceError,
    fs.runtime.OutOfMemoryError,
    fs.runtime.ProcessLostError,
)
# How to save memory; no script has all of these flags.
_LESS = (
    "Lower --num_clients, --num_rounds or --batch_size, sweep fewer rates and seeds at "
    "once, or give less data"
)


def run(script: str, work: Callable[[], None], first: Sequence[str] = ()) -> None:
    """Parses the flags and runs `work`; a user's mistake ends in one message.

    Args:
      script: its name, for messages.
      work: what it does.
      first: flags that --help shows first.
    """

    def parse(argv: list[str]) -> list[str]:
        if {"-h", "--h", "-help", "--help"} & {*argv[1:]}:
            print(help.text(first))
            sys.exit()
        return app.parse_flags_with_usage(argv)

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        # A handler of our own, so that Ctrl-C ends the script: `simulate` would otherwise return the
        # rounds done, which are no finished result.
        signal.signal(signal.SIGINT, _interrupt)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # JAX and orbax log every step
        try:
            devices.start()
            work()
            fs.runtime.wait_for_all()
        except _EXPECTED as error:
            devices.leave(f"{script}: {error}")
        except MemoryError as error:
            devices.leave(
                f"{script}: what was asked for does not fit in this machine's memory ({error}). {_LESS}"
            )
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            devices.leave(traceback.format_exc())

    app.run(main, flags_parser=parse)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def say_idle_lanes(clients: int) -> None:
    """Warns if --lanes asks for more lanes than a round's `clients` can use."""
    if devices.LANES.value is not None and devices.LANES.value > clients:
        say(f"--lanes={devices.LANES.value}: a round has {clients} clients and uses only as many lanes")


def say(text: str) -> None:
    """Prints a message to standard error, apart from the results; once per job."""
    if fs.runtime.is_first():
        print(text, file=sys.stderr, flush=True)
