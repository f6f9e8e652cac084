"""Clients' memory on the host: the same runs to the bit, also when interrupted; no idle rows."""

import gc
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_resumption import KilledError, rows_of
from test_simulate import without_clock

import fedjax_sim as fs
from fedjax_sim.algorithms.common import ServerState
from fedjax_sim.simulation import client_memory
from fedjax_sim.simulation.host_memory import HostMemory

pytestmark = pytest.mark.usefixtures("quick_compilation")

EVERYBODY = np.arange(len(toys.SIZES))
PLACEMENTS = ("device", "host")


def scaffold(task):
    return fs.scaffold(task, client_lr=0.2, local_epochs=2, batch_size=4)


def collecting(task):
    """Clients remember numbers of many kinds; they begin with a key and with the first model."""

    def client(model, own_k, client, key):
        own = {
            "visits": own_k["visits"] + 1,
            "odd": ~own_k["odd"],
            "key": jax.random.fold_in(own_k["key"], client.size),
            "model": jax.tree.map(lambda a, b: -a * b, own_k["model"], model),
        }
        draw = jax.random.normal(own_k["key"]) + own_k["visits"].astype(jnp.float32)
        return fs.ClientOutput(draw, {"examples": client.size}, own=own)

    def round_fn(key, state, own, data, cohort):
        result = fs.engine.map_clients(
            client, state.params, data, cohort, key=key, work=lambda s, k: s[:, None], own=own
        )
        params = jax.tree.map(lambda w: w + result.message, state.params)
        info = {"train_loss": result.message, "slots": result.slots} | result.metrics
        return state._replace(params=params), result.own, info

    def memory(key, params):
        halves = jax.tree.map(lambda w: (w * 0.3).astype(jnp.bfloat16), params)
        return {
            "visits": jax.random.randint(key, (), 0, 9, jnp.int32),
            "odd": jnp.array(False),
            "key": key,
            "model": jax.tree.map(lambda w: w.astype(jnp.float32), halves),
        }

    def init(key, hparams, num_clients):
        return ServerState({"w": jax.random.normal(key, (3,))}, (), jnp.int32(0), dict(hparams))

    return fs.Algorithm(init, round_fn, lambda state: {}, {"scale": 1.0}, {}, memory=memory)


def simulate(algorithm, data, placement, **settings):
    defaults = {"key": jax.random.key(3), "num_rounds": 4, "client_fraction": 0.4}
    defaults |= {"layout": fs.Layout(), "data_placement": placement}
    return fs.simulate(algorithm, data, **(defaults | settings))


def remembered(result):
    """The server's state and the rows of all clients, wherever they lie."""
    clients = result.state.clients
    rows = clients.rows(EVERYBODY) if isinstance(clients, HostMemory) else clients
    return result.state.server, client_memory.without_keys(rows)


@pytest.mark.slow  # without fusion emitters, XLA rounds the two programs differently
@pytest.mark.parametrize(("make", "devices"), [(scaffold, 1), (scaffold, 2), (collecting, 1)])
def test_a_run_is_the_same_to_the_bit(task, data, make, devices):
    settings = {"layout": toys.layout(devices=devices), "eval_every": 2}
    on_device, on_host = (simulate(make(task), data, p, **settings) for p in PLACEMENTS)
    toys.assert_same(remembered(on_host), remembered(on_device))
    assert without_clock(on_host.rows) == without_clock(on_device.rows)
    took_part = np.flatnonzero(on_device.state.visited)
    assert 4 <= len(took_part) < len(EVERYBODY)
    assert on_host.state.clients.store.clients.tolist() == took_part.tolist()
    for leaf in jax.tree.leaves(on_device.state.clients):
        assert leaf.sharding.is_fully_replicated == (devices == 1)


def test_first_rows_are_those_of_each_client(task, data):
    """They depend on the clients' keys and the first model, even if the model has changed since."""
    algorithm = collecting(task)
    result = simulate(algorithm, data, "host", num_rounds=2)
    init = jax.random.split(jax.random.key(3), 3)[0]
    params = algorithm.init(init, algorithm.hparams, 10).params
    absent = np.setdiff1d(EVERYBODY, result.state.clients.store.clients)
    rows = result.state.clients.rows(absent)
    key = client_memory.memory_key(init)
    for k, client in enumerate(absent.tolist()):
        expected = algorithm.memory(jax.random.fold_in(key, client), params)
        row = jax.tree.map(lambda leaf, k=k: leaf[k], rows)
        toys.assert_same(row, client_memory.without_keys(expected))


def test_memory_ends_with_its_result(task, data):
    result = simulate(collecting(task), data, "host", num_rounds=1)
    memory = weakref.ref(result.state.clients)
    assert result.summary()["num_params"] == 3
    del result
    gc.collect()
    assert memory() is None


def stop_at_call(number):
    """An evaluation that ends the run the n-th time that it is called."""
    calls = iter(range(1, number))

    def evaluate(params):
        if next(calls, None) is None:
            raise KilledError
        return {"sum": float(sum(leaf.sum() for leaf in jax.tree.leaves(params)))}

    return evaluate


@pytest.mark.slow
@pytest.mark.parametrize("first", PLACEMENTS)
def test_a_run_that_ends_far_from_its_checkpoint_resumes_to_the_bit(task, data, tmp_path, first):
    """Also where the other placement continues it."""
    algorithm, second = collecting(task), next(p for p in PLACEMENTS if p != first)
    settings = {"eval_every": 1, "num_rounds": 7, "client_fraction": 0.5, "evaluate": stop_at_call(99)}
    whole = simulate(algorithm, data, "device", **settings)
    settings["workdir"] = home = tmp_path / "run"
    simulate(algorithm, data, first, **(settings | {"num_rounds": 2}))
    # Two calls judge earlier models again; the first row after them is saved, rows after it are not.
    for placement in (first, second, first):
        with pytest.raises(KilledError):
            simulate(algorithm, data, placement, **(settings | {"evaluate": stop_at_call(5)}))
    saved = [int(path.name) for path in (home / "checkpoints").iterdir()]
    assert max(saved) == 5
    resumed = simulate(algorithm, data, second, **settings)
    toys.assert_same(remembered(resumed), remembered(whole))
    assert without_clock(rows_of(home)) == without_clock(whole.rows)


def test_a_damaged_row_falls_back_to_the_checkpoint_before(task, data, tmp_path, caplog):
    home = tmp_path / "run"
    settings = {"eval_every": 1, "workdir": home, "checkpoint_seconds": 0.0}
    whole = simulate(collecting(task), data, "host", **settings)
    store = whole.state.clients.store
    before = remembered(whole)
    path = home / "client_memory.rows"
    content = bytearray(path.read_bytes())
    newest = int(store._slots.max())  # a slot that only the last checkpoint needs
    client = int(store._slots.argmax())
    content[newest * store.row_bytes] ^= 1
    path.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        resumed = simulate(collecting(task), data, "host", **settings)
    assert f"round 4 is damaged (the row of client {client} in" in caplog.text
    toys.assert_same(remembered(resumed), before)


def test_nothing_is_written_for_clients_that_never_took_part(task, tmp_path):
    data = toys.federation([3] * 50)
    settings = {"client_fraction": 0.04, "num_rounds": 3, "eval_every": 1, "checkpoint_seconds": 0.0}
    for placement in PLACEMENTS:
        home = tmp_path / placement
        simulate(collecting(task), data, placement, workdir=home, **settings)
        versions = (home / "client_memory.rows").stat().st_size / (4 + 1 + 8 + 12)
        assert 2 <= versions <= 6


def test_auto_keeps_memory_that_takes_half_a_device_on_the_host(task, data, monkeypatch):
    needed = 10 * (4 + 1 + 8 + 12)
    for room, on_host in ((2 * needed, False), (2 * needed - 1, True)):
        monkeypatch.setattr(client_memory, "machine_bytes", lambda room=room: room)
        result = simulate(collecting(task), data, "auto", num_rounds=1)
        assert isinstance(result.state.clients, HostMemory) == on_host


def test_memory_for_which_the_disk_has_no_room_is_refused(task, data, tmp_path, monkeypatch):
    needed = 8 * (4 + 1 + 8 + 12)  # two rounds of four clients
    monkeypatch.setattr(client_memory, "free_bytes", lambda path: needed - 1)
    for home, where in ((None, r"temporary files \(TMPDIR\)"), (tmp_path / "w", "disk of .*rows")):
        with pytest.raises(ValueError, match=f"memory of 8 clients takes 2e-07 GB, and .*{where} has"):
            simulate(collecting(task), data, "host", num_rounds=2, workdir=home)
    assert not (tmp_path / "w").exists()
    with pytest.raises(ValueError, match="memory of 10 clients"):
        simulate(collecting(task), data, "host", num_rounds=200)


def worker(home):
    """A run for `test_kill_9_at_any_moment_loses_nothing`."""
    task, data = toys.task(), toys.federation()
    settings = {"eval_every": 1, "num_rounds": 60, "workdir": home, "checkpoint_seconds": 0.05}
    return simulate(scaffold(task), data, "host", **settings)


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(task, data, tmp_path):
    code = "import sys, pathlib, test_host_memory as t; t.worker(pathlib.Path(sys.argv[1]))"
    here = pathlib.Path(__file__).parent
    environment = {"PYTHONPATH": ":".join(map(str, (here, here.parent, *sys.path)))}
    killed, rng, ended_at = tmp_path / "killed", np.random.default_rng(0), []

    def newest():
        names = [path.name for path in (killed / "checkpoints").glob("*")]
        return max((int(name) for name in names if name.isdigit()), default=-1)

    for _ in range(4):
        before = newest()
        process = subprocess.Popen(
            [sys.executable, "-c", code, killed], env=os.environ | environment, stderr=subprocess.PIPE
        )
        while newest() == before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ended_at.append(newest())
    assert ended_at == sorted(ended_at)
    assert 0 < ended_at[-1] < 60, ended_at
    toys.assert_same(remembered(worker(killed)), remembered(worker(tmp_path / "whole")))
