"""What the scripts share: their frame, and talking to the person who waits."""

import sys
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging
from flags import devices

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
# What takes memory, of any script that has such a flag.
_LESS = (
    "Lower --num_clients, --num_examples, --num_rounds or --batch_size, sweep fewer rates and seeds at "
    "once, or give less data"
)


def run(script: str, work: Callable[[], None]) -> None:
    """Parses the flags and does the work; a mistake of the user ends in one message."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # not every step of JAX and orbax
        try:
            devices.start()
            work()
            fs.runtime.wait_for_all()
        except _EXPECTED as error:
            devices.leave(f"{script}: {error}")
        except MemoryError as error:
            devices.leave(
                f"{script}: this machine's memory does not hold what was asked for ({error}). {_LESS}"
            )
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            devices.leave(traceback.format_exc())

    app.run(main)


def say_idle_lanes(clients: int) -> None:
    """Tells where --lanes asks for more than `clients`, of a round, can use."""
    if devices.LANES.value is not None and devices.LANES.value > clients:
        say(f"--lanes={devices.LANES.value}: a round has {clients} clients, and no more lanes are used")


def say(text: str) -> None:
    """Tells the person who waits, apart from the results on standard output; once a job."""
    if fs.runtime.is_first():
        print(text, file=sys.stderr, flush=True)
