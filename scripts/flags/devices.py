"""Flags of where a script runs: devices, processes, memory, and the precision of products."""

import os
import sys
import time

import jax
from absl import flags, logging

import fedjax_sim as fs
from flags import calls
from flags.kinds import COUNT, LARGEST, Kind, define, number, whole


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535


def _mesh(runs: int | None = None, clients: int | None = None) -> dict[str, int | None]:
    return {"mesh_runs": runs, "mesh_clients": clients}


_MESHES = calls.Calls("mesh", {"mesh": _mesh})


def _read_mesh(text: str) -> dict[str, int | None]:
    return _MESHES.make(f"mesh:{text}")


LANES = define(
    COUNT,
    "lanes",
    None,
    "Clients that a device trains side by side; by default chosen for it. Fewer need less memory.",
)
_MESH = define(
    calls.Written(_read_mesh),
    "mesh",
    None,
    "How devices share the work: runs=2,clients=4 makes 2 groups of devices for the runs of a sweep, of "
    "4 devices each for the clients of a run. Chosen by default.",
)
_COORDINATOR = define(
    Kind(str, _is_address, "host:port, with a port from 1 to 65535"),
    "coordinator",
    None,
    "host:port of the first of several processes that share a job; needs --num_processes and "
    "--process_id. Not needed under srun or mpirun.",
)
_NUM_PROCESSES = define(COUNT, "num_processes", None, "Number of processes that share the job.")
_PROCESS_ID = define(whole(0, LARGEST), "process_id", None, "Index of this process, from 0.")
_MATMUL_PRECISION = flags.DEFINE_enum(
    "matmul_precision",
    None,
    ["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"],
    "Precision of float32 matrix products and convolutions. By default JAX's: float32 on a CPU, "
    "tensorfloat32 on newer GPUs.",
)

_MAX_UNPACKED_GB = define(
    number(1e-9, 1e9),
    "max_unpacked_gb",
    None,
    "Maximum GB (10^9 bytes) to which a file of --data_dir may unpack; reading takes several times as "
    "much memory. Errors call it max_unpacked_bytes. By default about 1.",
)

ALLOW_VERSION_CHANGE = flags.DEFINE_bool(
    "allow_version_change",
    False,
    "Continue in a workdir begun with another version of JAX or of fedjax_sim. Programs then cannot be "
    "compared and may round differently.",
)

_LAST_WORDS = 2.0  # seconds

# Flags that change no result, beyond the order of a float sum.
NAMES = (
    "lanes",
    "mesh",
    "coordinator",
    "num_processes",
    "process_id",
    "max_unpacked_gb",
    "allow_version_change",
)


def start() -> None:
    """Starts JAX as the flags say, with compiled programs kept for the next script.

    Raises:
      ValueError: the flags contradict each other.
    """
    try:
        fs.runtime.keep_programs()
    except (OSError, ValueError) as error:
        logging.warning("Compiled programs are not kept: %s", error)
    if _MATMUL_PRECISION.value is not None:
        jax.config.update("jax_default_matmul_precision", _MATMUL_PRECISION.value)
    fs.runtime.connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)


def check(num_learners: int | None = None) -> None:
    """Checks that the mesh suits this job's devices.

    Args:
      num_learners: number of learners with models of their own, where known.

    Raises:
      ValueError: the mesh does not divide the devices, or these cannot share the learners evenly.
    """
    try:
        layout = fs.runtime.default_layout(LANES.value, num_learners=num_learners, **mesh())
    except ValueError as error:
        raise ValueError(f"--mesh={_MESH.value}: {error}") from None
    if num_learners is not None and num_learners % layout.num_devices:
        raise ValueError(
            f"--mesh={_MESH.value}: {layout.num_devices} devices cannot share {num_learners} learners "
            "evenly; leave it out"
        )


def check_one_run() -> None:
    """Refuses groups of devices for runs where there is one run.

    Raises:
      ValueError: --mesh asks for several.
    """
    if mesh()["mesh_runs"] not in (None, 1):
        raise ValueError(f"--mesh={_MESH.value}, but there is one run; wanted clients=... alone")


def layout(algorithm: fs.Algorithm, clients: fs.data.FederatedData, num_runs: int) -> fs.Layout | None:
    """Returns a sweep's layout from the flags of lanes and mesh, or None if none is set."""
    if (LANES.value, _MESH.value) == (None, None):
        return None
    return fs.runtime.layout_for(algorithm, clients, LANES.value, num_runs=num_runs, **mesh())


def mesh() -> dict[str, int | None]:
    """Returns --mesh as `layout_for` takes it."""
    return _read_mesh(_MESH.value or "")


def unpacking() -> dict[str, int]:
    """Returns the flags' limit on what a file unpacks to, as `fs.data.load` takes it."""
    if _MAX_UNPACKED_GB.value is None:
        return {}
    return {"max_unpacked_bytes": round(_MAX_UNPACKED_GB.value * 1e9)}


def leave(message: str) -> None:
    """Ends the script with a message.

    One of several processes ends at once: JAX would make it wait for the others, which wait for it.
    """
    if not jax.distributed.is_initialized():
        sys.exit(message)
    print(f"[process {jax.process_index()}] {message}", file=sys.stderr, flush=True)
    if fs.runtime.is_first():
        time.sleep(_LAST_WORDS)  # the others end with this process and may have more to say
    os._exit(1)
