"""Samplers in runs: the same cohorts wherever the data is, after a kill, in sweeps and on devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_simulate import without_clock

import fedjax_sim as fs
from fedjax_sim.core.types import ABSENT
from fedjax_sim.simulation.host_rounds import CohortPrefetcher

pytestmark = pytest.mark.usefixtures("quick_compilation")

SAMPLERS = {
    "poisson": fs.participation.poisson(0.15, 10),  # some rounds have no clients
    "arrivals": fs.participation.arrivals(5, 3, fs.participation.half_normal(2.0)),
}


@pytest.fixture(scope="module")
def algorithms(task):
    """One of each for all tests, which share what is compiled."""
    return {
        "poisson": fs.fed_sgd(task, client_lr=0.5),
        "arrivals": fs.fed_buff(
            task, concurrency=5, buffer=3, client_lr=0.1, local_epochs=1, batch_size=4
        ),
        "scaffold": fs.scaffold(task, client_lr=0.1, local_epochs=1, batch_size=4),
    }


def run(algorithm, data, **settings):
    defaults = {"key": jax.random.key(3), "num_rounds": 20, "eval_every": 5, "layout": fs.Layout()}
    return fs.simulate(algorithm, data, **(defaults | settings))


@pytest.fixture(scope="module")
def whole(algorithms, data):
    return {name: run(algorithms[name], data, cohorts=SAMPLERS[name]) for name in SAMPLERS}


@pytest.mark.parametrize("name", SAMPLERS)
def test_data_on_the_host_gives_the_same_run_to_the_bit(whole, algorithms, data, name):
    on_host = run(algorithms[name], data, cohorts=SAMPLERS[name], data_placement="host")
    toys.assert_same(on_host.state, whole[name].state)
    assert without_clock(on_host.rows) == without_clock(whole[name].rows)


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        pytest.param("poisson", "host", marks=pytest.mark.slow),
        pytest.param("arrivals", "device", marks=pytest.mark.slow),
        ("arrivals", "host"),
    ],
)
def test_a_run_resumes_to_the_bit(whole, algorithms, data, tmp_path, name, placement):
    settings = {"cohorts": SAMPLERS[name], "workdir": tmp_path / "run", "data_placement": placement}
    run(algorithms[name], data, num_rounds=5, **settings)
    resumed = run(algorithms[name], data, **settings)
    toys.assert_same(resumed.state, whole[name].state)
    assert without_clock(resumed.rows) == without_clock(whole[name].rows)


def test_the_ledger_counts_those_who_come(whole, data):
    """As many as were drawn, in the rounds that had any."""
    key = jax.random.split(jax.random.key(3), 3)[1]
    draw = SAMPLERS["poisson"].draw
    counts = [
        int(draw(jax.random.fold_in(key, r), jnp.int32(r), (), jnp.asarray(data.sizes))[0].count)
        for r in range(20)
    ]
    last = whole["poisson"].rows[-1]
    assert min(counts) == 0
    assert last["messages_up"] == last["messages_down"] == sum(counts)
    assert last["trips_up_update"] == 20 - counts.count(0)


def test_a_fraction_is_a_uniform_sampler_and_compiles_nothing_new(algorithms, data, tmp_path):
    settings = {"num_rounds": 5, "workdir": tmp_path / "run"}
    by_fraction = run(algorithms["poisson"], data, client_fraction=0.4, **settings)
    uniform = fs.participation.uniform
    again = run(algorithms["poisson"], data, cohorts=uniform(0.4), **settings)  # finds its workdir
    assert again.rows == by_fraction.rows
    for choice in ({"cohorts": uniform(clients_per_round=4)}, {"clients_per_round": 4}):
        by_number = run(algorithms["poisson"], data, num_rounds=5, **choice)
        assert by_number.compilations == 0
        toys.assert_same(by_number.params, by_fraction.params)


def test_another_rate_duration_or_seed_compiles_nothing(whole, algorithms, data):
    for name, sampler in (
        ("poisson", fs.participation.poisson(0.1, 10)),
        ("arrivals", fs.participation.arrivals(5, 3, fs.participation.half_normal(3.5))),
    ):
        other = {"cohorts": sampler, "key": jax.random.key(9), "hparams": {"client_lr": 0.3}}
        assert run(algorithms[name], data, **other).compilations == 0


def test_a_workdir_knows_its_sampler(algorithms, data, tmp_path):
    settings = {"num_rounds": 5, "workdir": tmp_path / "run"}
    run(algorithms["arrivals"], data, cohorts=SAMPLERS["arrivals"], **settings)
    for duration, message in (
        (fs.participation.half_normal(1.0), "programs, cohorts"),
        (2.0, "programs, cohorts"),
    ):
        with pytest.raises(ValueError, match=message):
            run(
                algorithms["arrivals"],
                data,
                cohorts=fs.participation.arrivals(5, 3, duration),
                **settings,
            )
    other = fs.participation.arrivals(6, 3, fs.participation.half_normal(2.0))
    with pytest.raises(ValueError, match="concurrency: 5 there, 6 now"):
        run(algorithms["arrivals"], data, cohorts=other, **settings)


@pytest.mark.parametrize(
    ("name", "stacked"),
    [("arrivals", False), *(pytest.param(name, True, marks=pytest.mark.slow) for name in SAMPLERS)],
)
def test_sweeps_draw_as_single_runs_do(whole, algorithms, data, name, stacked):
    sweep = fs.sweep(
        algorithms[name],
        data,
        hparams={"client_lr": list({algorithms[name].hparams["client_lr"], 0.3})},
        seeds=[3],
        num_rounds=20,
        eval_every=5,
        cohorts=SAMPLERS[name],
        layout=fs.Layout(),
        stacked=stacked,
    )
    ours = next(run for run in sweep.runs if run.hparams["client_lr"] != 0.3)
    if not stacked:
        toys.assert_same(ours.state, whole[name].state)
    toys.assert_close(ours.state, whole[name].state, rtol=1e-4, atol=1e-6)
    for column in ("messages_up", "examples", "cumulative_virtual_seconds", "mean_lag"):
        assert ours.rows[-1].get(column) == whole[name].rows[-1].get(column), column


@pytest.mark.parametrize("name", ["poisson", pytest.param("arrivals", marks=pytest.mark.slow)])
def test_two_devices_draw_the_same_cohorts(whole, algorithms, data, name):
    where = {"layout": toys.layout(1, 2), "cohorts": SAMPLERS[name]}
    ours = run(algorithms[name], data, **where)
    toys.assert_close(jax.device_get(ours.state), whole[name].state, rtol=1e-4, atol=1e-5)
    for column in ("messages_up", "examples", "cumulative_virtual_seconds", "mean_lag"):
        assert ours.rows[-1].get(column) == whole[name].rows[-1].get(column), column


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_two_devices_receive_the_same_cohorts_from_the_host(algorithms, data, name):
    where = {"layout": toys.layout(1, 2), "cohorts": SAMPLERS[name]}
    ours, theirs = (run(algorithms[name], data, data_placement=p, **where) for p in ("host", "device"))
    toys.assert_same(ours.state, theirs.state)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in SAMPLERS])
def test_devices_with_rows_of_their_own_draw_the_same_cohorts(algorithms, data, name):
    """As with several processes, each of which reads only the rows of its own clients."""
    layout, key, draws = toys.layout(1, 2), jax.random.key(5), toys.draws(data, SAMPLERS[name])
    chosen = algorithms[name]
    state = fs.engine.place(toys.init(chosen), layout)
    begin = draws.sampler.init(key, jnp.asarray(draws.sizes))
    with (
        CohortPrefetcher(data, key, draws, layout, num_rounds=3, spread=True) as parts,
        CohortPrefetcher(data, key, draws, layout, num_rounds=3) as everywhere,
    ):
        for r in range(3):
            ours, theirs = (feed.cohort(r, begin) for feed in (parts, everywhere))
            np.testing.assert_array_equal(ours.drawn.cohort.ids, theirs.drawn.cohort.ids)
            members = np.asarray(ours.drawn.cohort.members)
            there = np.flatnonzero(np.asarray(ours.drawn.cohort.ids) != ABSENT)
            np.testing.assert_array_equal(np.sort(members[members != ABSENT]), there)
            of_round = fs.engine.place(jax.random.fold_in(key, r), layout)
            round_fn = toys.round_of(chosen)
            after, info = round_fn(of_round, state, ours.data, ours.drawn.cohort)
            expected, same = round_fn(of_round, state, theirs.data, theirs.drawn.cohort)
            toys.assert_close(after.params, expected.params)
            assert int(info["messages_up_update"]) == int(same["messages_up_update"])


def overflowing():
    """Half of all clients and room for one."""
    sampler = fs.participation.poisson(0.5, 1)
    return sampler._replace(most=lambda num_clients: 1)


@pytest.mark.parametrize("placement", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_too_many_clients_end_the_run(algorithms, data, placement):
    with pytest.raises(ValueError, match="round 1: more clients were drawn than most = 1"):
        run(algorithms["poisson"], data, cohorts=overflowing(), data_placement=placement)


def test_too_many_clients_end_a_sweep(algorithms, data):
    settings = {"hparams": {"client_lr": [0.1]}, "num_rounds": 5, "eval_every": 5, "layout": fs.Layout()}
    with pytest.raises(ValueError, match="more clients were drawn than most = 1"):
        fs.sweep(algorithms["poisson"], data, cohorts=overflowing(), **settings)


def test_a_strange_duration_ends_the_run(algorithms, data):
    sampler = fs.participation.arrivals(5, 3, lambda key, k, size: jnp.float32(-1))
    with pytest.raises(ValueError, match="round 1: a client's duration is negative, NaN or longer than"):
        run(algorithms["arrivals"], data, cohorts=sampler)


def draws_badly(**cohort):
    ids = jnp.zeros(4, jnp.int32)
    draw = lambda key, r, state, sizes: (fs.Cohort(**({"ids": ids} | cohort)), state, {})  # noqa: E731
    return fs.participation.Sampler(lambda num_clients: 4, draw, {})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("poisson", {"cohorts": SAMPLERS["poisson"], "client_fraction": 0.1}, "wanted one of them"),
        ("poisson", {"clients_per_round": 3, "client_fraction": 0.1}, "0.1 and clients_per_round is 3;"),
        ("poisson", {"clients_per_round": 11}, "clients_per_round is 11; wanted at most"),
        ("poisson", {"cohorts": SAMPLERS["arrivals"]}, "trains every client from the current model"),
        ("poisson", {"cohorts": fs.participation.poisson(0.5, 5)}, "most is 5, but 10 clients with q"),
        (
            "arrivals",
            {"cohorts": fs.participation.arrivals(11, 3, 1.0)},
            "wanted at most the federation's",
        ),
        ("arrivals", {"client_fraction": 0.3}, "the cohorts have no lag"),
        (
            "poisson",
            {"cohorts": fs.participation.uniform(clients_per_round=11)},
            "clients_per_round is 11",
        ),
        ("poisson", {"cohorts": draws_badly(ids=jnp.zeros(3, jnp.int32))}, r"ids as int32\[3\]; wanted"),
        (
            "poisson",
            {"cohorts": draws_badly(count=jnp.float32(3))},
            r"count as float32\[\]; wanted int32",
        ),
    ],
)
def test_what_does_not_fit_is_refused(algorithms, data, name, settings, message):
    with pytest.raises(ValueError, match=message):
        run(algorithms[name], data, **settings)


def in_turn(name="turn"):
    """Four clients in each round, one after another; it remembers whose turn it is."""

    def draw(key, r, state, sizes):
        ids = (state + jnp.arange(4, dtype=jnp.int32)) % sizes.size
        return fs.Cohort(ids), (state + 4) % sizes.size, {name: state}

    return fs.participation.Sampler(lambda num_clients: 4, draw, {}, lambda key, sizes: jnp.int32(3))


class Counted(NamedTuple):
    params: jax.Array
    hparams: Any


def counting():
    """An algorithm that compiles at once: clients remember how often they took part."""

    def client(nothing, own_k, client, key):
        return fs.ClientOutput(own_k, {"examples": client.size}, own=own_k + 1)

    def round_fn(key, state, own, data, cohort):
        work = lambda sizes, keys: jnp.ones((sizes.size, 1), jnp.int32)  # noqa: E731
        result = fs.engine.map_clients(client, (), data, cohort, key=key, work=work, own=own)
        info = {"train_loss": jnp.float32(0), "slots": result.slots} | result.metrics
        return state._replace(params=state.params + result.message), result.own, info

    def init(key, hparams, num_clients):
        return Counted(jnp.zeros((), jnp.int32), dict(hparams))

    return fs.Algorithm(
        init, round_fn, lambda state: {}, {"scale": 1.0}, {}, memory=lambda key, params: jnp.int32(0)
    )


def test_a_custom_sampler_with_a_state_serves_clients_with_a_memory(data, tmp_path):
    settings, chosen = {"cohorts": in_turn(), "num_rounds": 20}, counting()
    on_device = run(chosen, data, **settings)
    ids = np.array([(3 + 4 * r + np.arange(4)) % 10 for r in range(20)])
    seen = [[np.sum(ids[:r] == k) for k in ids[r]] for r in range(20)]
    assert int(on_device.params) == np.sum(seen)
    assert on_device.rows[-1]["turn"] == ids[:, 0].sum()
    settings |= {"data_placement": "host", "workdir": tmp_path / "run"}
    run(chosen, data, **(settings | {"num_rounds": 5}))
    resumed = run(chosen, data, **settings)
    toys.assert_same(resumed.params, on_device.params)
    assert resumed.rows[-1]["turn"] == on_device.rows[-1]["turn"]


def test_names_of_the_sampler_hide_none_of_the_round(algorithms, data):
    with pytest.raises(ValueError, match="the sampler's info and the round's both hold 'slots'"):
        run(algorithms["poisson"], data, cohorts=in_turn("slots"))


def test_clients_with_a_memory_do_not_arrive_twice_at_once(algorithms, data):
    chosen = algorithms["scaffold"]._replace(check_cohort=lambda cohort: None)
    with pytest.raises(ValueError, match="may take part twice in a round"):
        run(chosen, data, cohorts=SAMPLERS["arrivals"])


def test_learners_take_no_sampler(task, data):
    learners = fs.dynamic_averaging(
        task, fs.protocols.none(), num_learners=10, batch_size=4, client_lr=0.1, stream="shared"
    )
    with pytest.raises(ValueError, match="all learners take part in every round; leave it out"):
        run(learners, data, cohorts=SAMPLERS["poisson"])


def test_a_state_that_changes_its_form_is_refused(algorithms, data):
    def draw(key, r, state, sizes):
        return fs.Cohort(jnp.zeros(4, jnp.int32)), jnp.float32(0), {}

    sampler = fs.participation.Sampler(lambda n: 4, draw, {}, lambda key, sizes: jnp.int32(0))
    with pytest.raises(ValueError, match=r"the sampler's state was .* and is .* after a draw"):
        run(algorithms["poisson"], data, cohorts=sampler)
    sampler = sampler._replace(init=lambda key, sizes: key)
    with pytest.raises(ValueError, match="the sampler's state holds a PRNG key"):
        run(algorithms["poisson"], data, cohorts=sampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "client_fraction is None and clients_per_round is None; wanted one"),
        ({"client_fraction": 0.1, "clients_per_round": 3}, "wanted one of them"),
        ({"client_fraction": 1.5}, "client_fraction is 1.5"),
        ({"clients_per_round": 0}, "clients_per_round is 0"),
    ],
)
def test_strange_uniform_samplers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.participation.uniform(**arguments)
