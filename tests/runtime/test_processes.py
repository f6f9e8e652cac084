"""Jobs of several processes on this machine, started as launchers start them, killed and resumed."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import CASES
from script_runs import ROOT, rows_of, train

import fedjax_sim as fs
from fedjax_sim.runtime import processes

SCRIPT = ROOT / "scripts" / "train.py"
EVERY, ROWS = 16, 6
FLAGS = (
    "--model=logistic",
    "--local_epochs=1",
    f"--num_rounds={EVERY * (ROWS - 1)}",
    f"--eval_every={EVERY}",
    "--checkpoint_seconds=0",
)


def free_port():
    """A port nobody listens on, of those that JAX takes in jobs of launchers."""
    for port in random.sample(range(61440, 65535), 50):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("all ports are taken")


def by_slurm(count, port):
    """What srun sets; JAX makes the port of the job's number."""
    job = 4096 + port - 61440
    common = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": count}
    return [
        common | {"SLURM_STEP_NUM_TASKS": count, "SLURM_PROCID": i, "SLURM_LOCALID": i}
        for i in range(count)
    ]


def by_open_mpi(count, port):
    """What mpirun sets; JAX makes the port of the job's number."""
    uri = f"{(port - 61440) * 4096}.0;tcp://127.0.0.1:1"
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    common = {"OMPI_MCA_orte_hnp_uri": uri, "OMPI_COMM_WORLD_SIZE": count}
    return [common | dict.fromkeys(names, i) for i in range(count)]


def by_flags(count, port):
    return [{}] * count


def start(count, *flags, cwd, launcher=by_flags, own=()):
    """Processes of scripts/train.py; `own` are further flags of the last one."""
    port = free_port()
    running = []
    for i, environment in enumerate(launcher(count, port)):
        named = ()
        if launcher is by_flags:
            named = (
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={count}",
                f"--process_id={i}",
            )
        running.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), *flags, *named, *(own if i == count - 1 else ())],
                cwd=cwd,
                env=os.environ
                | {"JAX_NUM_CPU_DEVICES": "1"}
                | {k: str(v) for k, v in environment.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def finish(running, timeout=200):
    """The processes' exit codes and what they wrote on standard error."""
    try:
        told = [process.communicate(timeout=timeout)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], told


@pytest.mark.slow
def test_a_killed_process_ends_the_job_which_others_finish_as_one_process_would(tmp_path):
    running = start(2, *FLAGS, "--workdir=job", cwd=tmp_path, launcher=by_slurm)
    metrics = tmp_path / "job" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        ended = any(process.poll() is not None for process in running)
        if ended or time.monotonic() > deadline:
            pytest.fail(str(finish(running, timeout=1)))
        time.sleep(0.02)
    running[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes, told = finish(running)
    assert time.monotonic() - killed < 60
    assert codes[0] != 0
    assert codes[1] == -signal.SIGKILL
    assert "has lost another process" in told[0] or "another task died" in told[0], told[0]

    before = rows_of(tmp_path / "job")
    assert len(before) < ROWS
    codes, told = finish(start(3, *FLAGS, "--workdir=job", cwd=tmp_path, launcher=by_open_mpi))
    assert codes == [0] * 3, told
    assert ["Writing to" in words for words in told] == [True, False, False]

    train(*FLAGS, "--workdir=alone", cwd=tmp_path)
    job, alone = rows_of(tmp_path / "job"), rows_of(tmp_path / "alone")
    assert [row["round"] for row in job] == list(range(0, EVERY * ROWS, EVERY))
    for ours, theirs in zip(job, alone, strict=True):
        assert ours.keys() == theirs.keys()
        names = [name for name in ours if "seconds" not in name and ours[name] is not None]
        np.testing.assert_allclose([ours[n] for n in names], [theirs[n] for n in names], rtol=1e-4)
    for name in ("summary.json", "curve.png", "clients.png"):
        assert (tmp_path / "job" / name).exists()


def work(worker, folder, *job):
    """A process of a worker on two devices, or of two that have one each."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, ROOT / "tests" / worker, folder, "1" if job else "2", *job]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def found_alone_and_by_two(worker, folder):
    """Returns the arrays that a worker leaves, run by one process and by two."""
    address = f"127.0.0.1:{free_port()}"
    running = [work(worker, folder / "alone")]
    running += [work(worker, folder / "job", address, str(i)) for i in range(2)]
    codes, told = finish(running, timeout=500)
    assert codes == [0, 0, 0], told
    return tuple(np.load(folder / name / "found.npz") for name in ("alone", "job"))


@pytest.mark.slow
def test_the_contract_holds_for_two_processes_and_after_kill_9(tmp_path):
    """Every algorithm, and chains drawn at random; see `test_contract_table.py`."""
    alone, job = found_alone_and_by_two("table_worker.py", tmp_path)
    assert set(alone.files) == set(job.files)
    assert {name.split(",")[0] for name in alone.files} == {*CASES}
    for name in alone.files:
        if "slots" not in name:  # each device pads its own clients
            np.testing.assert_allclose(job[name], alone[name], rtol=1e-4, atol=1e-5, err_msg=name)

    draw, killed = random.Random(0), tmp_path / "killed"
    workdirs = list(dict.fromkeys(name.split(" [")[0] for name in alone.files))  # in their order
    for place in sorted(draw.sample(range(len(workdirs) - 1), 4)):
        metrics, rows = killed / workdirs[place] / "metrics.jsonl", draw.randint(0, 2)
        running, deadline = work("table_worker.py", killed), time.monotonic() + 200
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= rows):
            if running.poll() is not None or time.monotonic() > deadline:
                pytest.fail(str(finish([running], timeout=1)))
            time.sleep(0.01)
        time.sleep(0.3 * draw.random())
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    codes, told = finish([work("table_worker.py", killed)], timeout=500)
    assert codes == [0], told
    after = np.load(killed / "found.npz")
    assert set(after.files) == set(alone.files)
    for name in alone.files:
        np.testing.assert_array_equal(after[name], alone[name], err_msg=name)


@pytest.mark.slow
def test_two_processes_sweep_and_teach_learners_as_one_does(tmp_path):
    alone, job = found_alone_and_by_two("job_worker.py", tmp_path)
    assert len(alone.files) == len(job.files) > 12
    for name in alone.files:
        np.testing.assert_allclose(job[name], alone[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_processes_of_other_flags_are_named_before_any_training(tmp_path):
    codes, told = finish(start(2, *FLAGS, "--workdir=job", cwd=tmp_path, own=("--client_lr=0.7",)))
    assert codes == [1, 1]
    for words in told:
        assert "client_lr: 0.1 in process 0, 0.7 in process 1" in words
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
def test_more_processes_than_clients_are_refused(tmp_path):
    codes, told = finish(start(2, *FLAGS, "--client_fraction=0", cwd=tmp_path))
    assert codes == [1, 1]
    assert all("2 processes share 1 clients a round" in words for words in told)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host:1"}, "wanted all three"),
        ({"num_processes": 2}, "wanted all three"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, "process id is 2 of 2"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "wanted host:port"),
    ],
)
def test_an_incomplete_job_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        fs.runtime.connect(**given)


def test_a_process_alone_connects_to_nobody(monkeypatch):
    fs.runtime.connect()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    fs.runtime.connect()
    fs.runtime.connect("host:1", 1, 0)
    assert not jax.distributed.is_initialized()


def test_a_launcher_that_hides_the_first_process_is_told_to_name_it(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(ValueError, match=r"Open MPI has started 2 processes .* give the coordinator"):
        fs.runtime.connect()


def test_differing_settings_are_listed_by_process(monkeypatch):
    said = []

    def of_all(message):
        said.append(message)
        other = message.replace(b"0.1", b"0.2") if message.startswith(b"{") else b"another digest"
        return [message, other]

    monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
    monkeypatch.setattr(processes, "_of_all", of_all)
    with pytest.raises(ValueError, match=r"client_lr: 0\.1 in process 0, 0\.2 in process 1") as raised:
        processes.agree({"client_lr": 0.1, "num_rounds": 3})
    assert "num_rounds" not in str(raised.value)


def test_what_fails_in_the_first_process_fails_in_all(monkeypatch):
    monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
    monkeypatch.setattr(processes, "_of_all", lambda message: [b'{"error": "no room"}', message])
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with pytest.raises(ValueError, match="process 0: no room"):
        processes.on_first_process(lambda: pytest.fail("not here"))


def test_an_array_put_on_devices_keeps_its_values():
    layout = fs.runtime.default_layout()
    where = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec("clients"))
    rows, key = np.arange(8.0), jax.random.key(3)
    np.testing.assert_array_equal(processes.fetch(processes.put(rows, where)), rows)
    everywhere = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())
    assert jnp.array_equal(processes.put(key, everywhere), key)


def test_a_lost_process_is_told_apart_from_other_errors(monkeypatch):
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
    continued = "continues from its last checkpoint"
    with pytest.raises(fs.runtime.ProcessLostError, match=continued), processes.watched():
        raise lost
    monkeypatch.setattr(processes, "is_multiprocess", lambda: False)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"), processes.watched():
        raise lost
