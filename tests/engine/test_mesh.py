"""Devices along two axes, lanes by memory, clients of a device's own, one message a round."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.sharding import Mesh

import fedjax_sim as fs
from fedjax_sim.core.types import ABSENT
from fedjax_sim.engine.collectives import sum_over_devices
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD, place
from fedjax_sim.runtime import devices
from fedjax_sim.runtime.errors import OutOfMemoryError, device_errors_explained
from fedjax_sim.simulation.host_rounds import CohortPrefetcher
from fedjax_sim.simulation.sharded_cohorts import send_learners, share_out

pytestmark = pytest.mark.usefixtures("quick_compilation")


def algorithm(task, **settings):
    settings = {"client_lr": 0.1, "local_epochs": 2, "batch_size": 4} | settings
    return fs.fed_avg(task, **settings)


@pytest.mark.parametrize(
    ("count", "asked", "shape"),
    [
        (8, {}, (1, 8)),
        (8, {"num_runs": 3}, (2, 4)),
        (8, {"num_runs": 44}, (8, 1)),
        (8, {"num_runs": 44, "mesh_clients": 4}, (2, 4)),
        (8, {"mesh_runs": 4}, (4, 2)),
        (8, {"mesh_runs": 2, "mesh_clients": 2}, (2, 2)),
        (7, {"num_learners": 100}, (1, 5)),
        (3, {"num_runs": 2}, (1, 3)),
    ],
)
def test_runs_are_shared_out_before_clients(count, asked, shape):
    given = {"runs": None, "clients": None, "num_runs": 1, "num_learners": None}
    given |= {name.removeprefix("mesh_"): value for name, value in asked.items()}
    assert devices._mesh_shape(count, **given) == shape


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mesh_runs": 3}, "mesh_runs is 3, which does not divide the 2 devices; wanted one of 1, 2"),
        ({"mesh_clients": 0}, "mesh_clients is 0"),
        ({"mesh_runs": 2, "mesh_clients": 2}, "a mesh of 2 times 2 does not divide the 2 devices"),
    ],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        fs.runtime.default_layout(**asked)


def test_one_run_takes_no_mesh_of_several_parts(task, data):
    with pytest.raises(ValueError, match="2 parts for the runs of a sweep, and there is one run"):
        fs.simulate(
            algorithm(task),
            data,
            key=jax.random.key(0),
            num_rounds=1,
            layout=fs.runtime.default_layout(mesh_runs=2),
        )


def test_a_mesh_of_other_axes_is_refused():
    with pytest.raises(ValueError, match="wanted 'clients' and, for sweeps, 'runs'"):
        fs.Layout(1, Mesh(np.array(jax.devices()), ("data",)))


def test_a_process_without_a_device_in_the_mesh_is_told(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="leaves process 1 without any"):
        fs.runtime.default_layout(mesh_clients=1)


class Accelerator:
    """What a layout asks of a device."""

    platform, process_index, device_kind = "gpu", 0, "an accelerator"

    def memory_stats(self):
        return {"bytes_limit": 10_000_000}


@pytest.mark.parametrize(
    ("asked", "lanes"),
    [
        ({}, 64),
        ({"lane_bytes": 1_000_000}, 5),
        ({"lane_bytes": 1_000_000, "num_runs": 3}, 1),
        ({"lane_bytes": 10**9}, 1),
        ({"lane_bytes": 10}, 64),
    ],
)
def test_an_accelerator_has_as_many_lanes_as_half_its_memory_holds(monkeypatch, asked, lanes):
    monkeypatch.setattr(jax, "devices", lambda: [Accelerator()])
    monkeypatch.setattr(jax, "local_devices", jax.devices)
    assert fs.runtime.default_layout(**asked).lanes == lanes
    assert fs.runtime.default_layout(7, **asked).lanes == 7


def test_a_lane_needs_three_models_and_what_the_backward_pass_reads(task, data):
    model = 4 * (6 * 8 + 8 + 8 * 3 + 3)
    small = algorithm(task).lane_bytes(data.examples)
    large = algorithm(task, batch_size=400).lane_bytes(data.examples)
    assert 3 * model < small < 10 * model
    # Hidden values, logits and features of each further example, and their gradients.
    assert 2 * 4 * (8 + 3) * 396 < large - small < 8 * 4 * (6 + 8 + 3) * 396


def test_a_round_out_of_memory_says_what_to_lower(task, data):
    chosen = algorithm(task)
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\n more")
    with (
        pytest.raises(OutOfMemoryError) as raised,
        device_errors_explained(chosen, data, fs.Layout(9), num_runs=4),
    ):
        raise error
    told = str(raised.value)
    needs = chosen.lane_bytes(data.examples) / 1e6
    assert f"9 lanes of each of 4 runs, about {needs:.1f} MB a lane" in told
    assert "--lanes" in told
    assert told.endswith("allocating 7 bytes.")
    with pytest.raises(jax.errors.JaxRuntimeError), device_errors_explained(chosen, data, fs.Layout()):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize("lanes", [pytest.param(lanes, marks=pytest.mark.slow) for lanes in (1, 3)])
def test_clients_of_a_device_s_own_learn_the_same(task, data, lanes):
    chosen, layout = algorithm(task), toys.layout(lanes, 2)
    with CohortPrefetcher(
        data, jax.random.key(5), toys.draws(data, 7), layout, num_rounds=2, spread=True
    ) as feed:
        fed = feed.cohort(0)
    present = np.sort(np.asarray(fed.drawn.cohort.ids))
    members = np.asarray(fed.drawn.cohort.members).reshape(2, 7)
    np.testing.assert_array_equal(np.sort(members[members != ABSENT]), np.arange(7))
    assert all((part != ABSENT).any() for part in members)
    state = place(toys.init(chosen), layout)
    key = place(jax.random.fold_in(jax.random.key(1), 0), layout)
    ours, info = toys.round_of(chosen)(key, state, fed.data, fed.drawn.cohort)
    theirs, expected = toys.play(chosen, data, present, where=layout)
    toys.assert_close(ours.params, theirs.params)
    for name in expected.keys() - {"slots", "train_loss"}:
        assert int(info[name]) == int(expected[name]), name
    if lanes == 1:  # no lane waits for another, and places of nobody cost nothing
        steps = 2 * -(-np.asarray(data.sizes)[present] // 4)
        assert int(info["slots"]) == 4 * steps.sum()


def test_learners_with_rows_of_a_device_s_own_learn_the_same_to_the_bit(task):
    data, layout = toys.federation((12, 9, 14, 11)), toys.layout(1, 2)
    protocol = fs.protocols.periodic(period=2)
    chosen = fs.dynamic_averaging(
        task, protocol, num_learners=4, batch_size=3, client_lr=0.1, stream="repeat"
    )
    assert chosen.reads_own_rows
    whole, _ = toys.play(chosen, data, where=layout)
    cohort, own = send_learners(data, layout)
    assert len(own.examples["x"]) == 2 * 25  # the larger half has 25 rows, and room for none more
    state = place(toys.init(chosen), layout, chosen.specs)
    key = place(jax.random.fold_in(jax.random.key(1), 0), layout)
    state, _ = toys.round_of(chosen)(key, state, own, cohort)
    toys.assert_same(state.params, whole.params)


def test_a_device_gets_no_rows_of_others(data):
    with CohortPrefetcher(
        data, jax.random.key(5), toys.draws(data, 4), toys.layout(1, 2), num_rounds=1, spread=True
    ) as feed:
        fed = feed.cohort(0)
    ids = np.asarray(fed.drawn.cohort.ids)
    members, offsets = (
        np.asarray(a).reshape(2, -1) for a in (fed.drawn.cohort.members, fed.data.offsets)
    )
    for shard, mine, ends in zip(
        fed.data.examples["x"].addressable_shards, members, offsets, strict=True
    ):
        own = data.select(ids[mine[mine != ABSENT]])
        np.testing.assert_array_equal(shard.data[: ends[-1]], own.examples["x"])
        assert not np.asarray(shard.data[ends[-1] :]).any()


def test_clients_are_shared_out_by_size():
    sizes = np.array([10, 1, 1, 30, 9, 9])
    parts = share_out(sizes, 2)
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(int(sizes[part].sum()) for part in parts) == [29, 31]
    assert [len(part) for part in share_out(np.array([5]), 3)] == [1, 0, 0]


def messages(task, data, size, lanes, mesh_runs=1):
    """The collectives in the program of a round."""
    layout = fs.runtime.default_layout(lanes, mesh_runs=mesh_runs)
    chosen = algorithm(task)
    cohort = fs.Cohort(jnp.arange(size, dtype=jnp.int32), layout)
    arguments = place((jax.random.key(0), toys.init(chosen), data), layout)
    program = toys.round_of(chosen).lower(*arguments, cohort).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf"= \S+ ({kinds})(?:-start)?\(", program)


@pytest.mark.parametrize("size", [2, 9])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_round_sends_one_message_however_many_clients_take_part(task, data, size, lanes):
    assert messages(task, data, size, lanes) == ["all-reduce"]


def test_counts_survive_the_message_to_the_last_one():
    layout = fs.runtime.default_layout()
    counts = np.array([[2**31 - 2, -5], [1, 2**30 + 12345]], np.int32)

    def total(part):
        return sum_over_devices({"floats": jnp.ones((2, 3)), "counts": part[0]})

    spread = jax.shard_map(
        total, mesh=layout.mesh, in_specs=SPREAD, out_specs=EVERYWHERE, check_vma=False
    )
    summed = jax.jit(spread)(counts)
    np.testing.assert_array_equal(summed["counts"], counts.sum(0))
    np.testing.assert_array_equal(summed["floats"], np.full((2, 3), 2))


@pytest.mark.slow
def test_parts_of_a_mesh_have_runs_of_their_own(task, data):
    settings = {
        "hparams": {"client_lr": [0.03, 0.1, 0.3]},
        "num_rounds": 3,
        "client_fraction": 0.5,
        "eval_every": 2,
        "evaluate": fs.evaluator(task, toys.dataset(30), layout=fs.Layout()),
    }
    spread = fs.sweep(algorithm(task), data, layout=fs.runtime.default_layout(mesh_runs=2), **settings)
    alone = fs.sweep(algorithm(task), data, layout=fs.Layout(), stacked=False, **settings)
    for ours, theirs in zip(spread.runs, alone.runs, strict=True):
        assert ours.hparams == theirs.hparams
        toys.assert_close(ours.state.params, theirs.state.params)
        assert [row["examples"] for row in ours.rows] == [row["examples"] for row in theirs.rows]
    one = dict(settings, hparams={"client_lr": [0.1]})
    widened = fs.sweep(algorithm(task), data, layout=fs.runtime.default_layout(mesh_runs=2), **one)
    toys.assert_close(widened.runs[0].state.params, alone.runs[1].state.params)
    with pytest.raises(ValueError, match="stacked is False"):
        fs.sweep(
            algorithm(task),
            data,
            layout=fs.runtime.default_layout(mesh_runs=2),
            stacked=False,
            **settings,
        )
