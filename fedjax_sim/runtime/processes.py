"""The processes of a job, one or more per host: connecting, agreeing and exchanging data.

All processes run the same program on all devices of the job. Only the first writes files and reports.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedjax_sim.core import trees

# A process that is silent for so long is lost, and with it the job.
_SILENT_SECONDS = 30
# Environment variables of launchers: number of processes, index of this one, address of the first.
_LAUNCHERS = (
    ("SLURM", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"),
    ("mpirun", "PMI_SIZE", "PMI_RANK", ""),  # MPICH and its kin; never say where
)
# The error of a failed collective: a status, and a library that carries data between processes.
_SIGNS_OF_LOSS = re.compile(
    "^(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): .*"
    "(gloo|nccl|coordination|connection closed|heartbeat|socket closed)",
    re.IGNORECASE,
)


class ProcessLostError(RuntimeError):
    """The loss of another process of this job, which ended early or does not answer."""


def connect(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of this job, so that a run uses all their devices.

    Call it before anything touches JAX's backend. Without arguments it reads the job from what
    SLURM's srun or Open MPI's mpirun sets in the environment, and does nothing if neither has started
    more than one process.

    Args:
      coordinator: "host:port" at which the first process listens.
      num_processes: number of processes of the job.
      process_id: index of this process, from 0.

    Raises:
      ValueError: the arguments are incomplete or out of range, or a launcher has started several
        processes but does not say where the first one is.
    """
    patience = {
        "heartbeat_timeout_seconds": _SILENT_SECONDS,
        "shutdown_timeout_seconds": 2 * _SILENT_SECONDS,  # for the others, once one is done
    }
    if num_processes is None and process_id is None:
        num_processes, process_id, finds_itself = _launched(coordinator)
        if finds_itself:
            jax.distributed.initialize(**patience)
            return
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        return
    if None in given:
        raise ValueError(
            f"the coordinator is {coordinator}, the number of processes {num_processes}, the process id "
            f"{process_id}; wanted all three, or a job started by srun or mpirun"
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"the process id is {process_id} of {num_processes} processes; wanted a number of at "
            "least 0 and less than the number of processes"
        )
    if ":" not in coordinator:
        raise ValueError(f"the coordinator is {coordinator!r}; wanted host:port")
    if num_processes > 1:
        jax.distributed.initialize(*given, **patience)


def _launched(coordinator: str | None) -> tuple[int | None, int | None, bool]:
    """Returns the number of processes, the index of this one, and whether JAX finds the first one."""
    for launcher, count, index, address in _LAUNCHERS:
        if int(os.environ.get(count, 1)) > 1 and index in os.environ:
            known = int(os.environ[count]), int(os.environ[index])
            if coordinator is not None:
                return *known, False
            if address not in os.environ:
                raise ValueError(
                    f"{launcher} has started {known[0]} processes but does not say where the first one "
                    f"is{f' ({address} is not set)' if address else ''}; give the coordinator as "
                    "host:port"
                )
            return *known, True
    return None, None, False


def wait_for_all() -> None:
    """Waits for all processes of the job, however long the first still draws and writes."""
    if is_multiprocess():
        multihost_utils.sync_global_devices("the end of the job")


def is_multiprocess() -> bool:
    """Returns whether the job has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process is the one that writes files and reports."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Returns whole NumPy arrays on every process; all processes must call it together."""

    def one(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def local(leaf: Any) -> Any:
    """Converts an array that every process has, so that this process can use it alone."""
    is_shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(leaf) if is_shared else leaf


def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Shards an array that every process has; each process reads only what its devices need."""
    if trees.is_key(leaf):
        return trees.as_key(put(jax.random.key_data(leaf), sharding), leaf)
    is_shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or (is_shared and leaf.sharding.device_set == sharding.device_set):
        return jax.device_put(leaf, sharding)
    rows = np.asanyarray(leaf)
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: np.asarray(rows[index]))


def agree(settings: Mapping[str, Any]) -> None:
    """Checks that all processes have the same settings.

    Raises:
      ValueError: the settings differ; the message says which, and where.
    """
    if not is_multiprocess():
        return
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in settings.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).digest()
    digests = _of_all(digest)
    if len(set(digests)) == 1:
        return
    all_texts = [json.loads(text) for text in _of_all(json.dumps(texts).encode())]
    names = sorted(set().union(*all_texts))
    different = []
    for name in names:
        values = [texts.get(name, "absent") for texts in all_texts]
        if len(set(values)) > 1:
            told = ", ".join(f"{value} in process {i}" for i, value in enumerate(values))
            different.append(f"  {name}: {told}")
    raise ValueError(
        "the processes of this job have different settings:\n"
        + "\n".join(different)
        + "\nGive all of them the same flags and the same data."
    )


def on_first_process(work: Callable[[], Any]) -> Any:
    """Runs `work` on the first process alone and returns its result, a JSON value, on all.

    Raises:
      Exception: the error of `work` on the first process; elsewhere a ValueError with its message.
    """
    if not is_multiprocess():
        return work()
    error, answer = None, "{}"
    if is_first():
        try:
            answer = json.dumps({"value": work()})
        except Exception as raised:
            error, answer = raised, json.dumps({"error": str(raised)})
    answer = json.loads(_of_all(answer.encode())[0])
    if error is not None:
        raise error
    if "error" in answer:
        raise ValueError(f"process 0: {answer['error']}")
    return answer["value"]


def from_first(tree: Any) -> Any:
    """Returns the first process's NumPy arrays; the others pass arrays of the same shapes."""
    if not is_multiprocess():
        return tree
    # As bytes, since the broadcast is a sum, in which minus zero would become plus zero.
    sent = jax.tree.map(lambda a: np.ascontiguousarray(a).reshape(-1).view(np.uint8), tree)
    come = multihost_utils.broadcast_one_to_all(sent)
    return jax.tree.map(lambda a, like: np.asarray(a).view(like.dtype).reshape(like.shape), come, tree)


def _of_all(message: bytes) -> list[bytes]:
    """Returns the message of each process."""
    lengths = multihost_utils.process_allgather(np.int32(len(message)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Turns the error of a collective that has lost a process into one that says so.

    Raises:
      ProcessLostError: another process is lost.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # JAX raises one or the other
        reason = (str(error).splitlines() or [""])[0]
        if is_multiprocess() and _SIGNS_OF_LOSS.match(reason):
            raise ProcessLostError(
                f"process {jax.process_index()} of {jax.process_count()} has lost another process: it "
                f"was killed, failed, runs another program or cannot be reached ({reason[:200]}). Check "
                "the output of the others and start again: with the same workdir, the run continues "
                "from its last checkpoint"
            ) from error
        raise
