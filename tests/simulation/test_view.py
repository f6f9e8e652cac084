"""Views of a run: its state, its round, and each client's own model."""

import ditto
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")


def sizes(models):
    """The norm of each model, `[n]`."""
    squares = jax.tree.map(lambda w: (w**2).reshape(len(w), -1).sum(1), models)
    return np.sqrt(sum(map(np.asarray, jax.tree.leaves(squares))))


@fs.simulation.of_view
def own_models(view):
    norms = sizes(view.models(range(10)))
    return {f"norm_{k}": norm for k, norm in enumerate(norms)} | {"round_of_view": view.round}


@pytest.fixture
def algorithm(task):
    return ditto.ditto(task, local_epochs=1, batch_size=4, client_lr=0.1, pull=0.5)


def run(algorithm, data, num_rounds=4, **settings):
    settings = {"evaluate": own_models, "client_fraction": 0.3} | settings
    return fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=num_rounds, **settings)


def norms(rows):
    return np.array([[row[f"norm_{k}"] for k in range(10)] for row in rows])


def test_clients_that_took_part_have_models_of_their_own(algorithm, data):
    result = run(algorithm, data)
    found = norms(result.rows)
    assert [row["round_of_view"] for row in result.rows] == [row["round"] for row in result.rows]
    np.testing.assert_array_equal(found[0], found[0, 0])
    changed = found[1:] != found[:-1]
    assert set(changed.sum(axis=1)) <= {2, 3}  # of 3 clients, one may have no data
    np.testing.assert_allclose(found[-1], sizes(result.state.clients), rtol=1e-6)


def test_views_compile_once(algorithm, data):
    with fs.runtime.CompilationCounter() as counter:
        counts = []

        @fs.simulation.of_view
        def look(view):
            view.models([0, 1])
            counts.append(counter.count)
            return {}

        run(algorithm, data, evaluate=look, layout=fs.Layout(1))
    assert counts[0] > 0
    assert len(set(counts[1:])) == 1  # the round is compiled after the first view


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"data_placement": "host"}, id="host"),
        pytest.param({"layout": (1, 2)}, id="two devices", marks=pytest.mark.slow),
        pytest.param(
            {"layout": (1, 2), "data_placement": "host"}, id="two devices, host", marks=pytest.mark.slow
        ),
    ],
)
def test_placement_changes_no_view(algorithm, data, settings):
    if "layout" in settings:
        settings = settings | {"layout": toys.layout(*settings["layout"])}
    expected = run(algorithm, data, layout=fs.Layout(1))
    result = run(algorithm, data, **({"layout": fs.Layout(1)} | settings))
    exact = "layout" not in settings
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5}
    np.testing.assert_allclose(norms(result.rows), norms(expected.rows), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [False, True])
def test_sweeps_show_the_same(algorithm, data, stacked):
    expected = run(algorithm, data, layout=fs.Layout(1))
    settings = {"num_rounds": 4, "client_fraction": 0.3, "evaluate": own_models, "layout": fs.Layout(1)}
    swept = fs.sweep(algorithm, data, hparams={"pull": [0.5, 2.0]}, stacked=stacked, **settings)
    np.testing.assert_allclose(norms(swept.runs[0].rows), norms(expected.rows), rtol=1e-5)
    assert (norms(swept.runs[1].rows)[-1] != norms(expected.rows)[-1]).any()


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.slow
def test_a_longer_run_continues_with_its_view(algorithm, data, tmp_path, placement):
    expected = run(algorithm, data, num_rounds=5, data_placement=placement)
    run(algorithm, data, num_rounds=3, data_placement=placement, workdir=tmp_path)

    @fs.simulation.of_view
    def other(view):
        return {name: 2 * value for name, value in own_models(view).items()}

    with pytest.raises(ValueError, match="another evaluation: norm_0 of the model of round"):
        run(algorithm, data, num_rounds=5, data_placement=placement, workdir=tmp_path, evaluate=other)

    @fs.simulation.of_view
    def fewer(view):
        return {name: value for name, value in own_models(view).items() if name != "norm_0"}

    with pytest.raises(ValueError, match=r"a run of another evaluation: norm_0 .* absent now"):
        run(algorithm, data, num_rounds=5, data_placement=placement, workdir=tmp_path, evaluate=fewer)
    result = run(algorithm, data, num_rounds=5, data_placement=placement, workdir=tmp_path)
    np.testing.assert_array_equal(norms(result.rows), norms(expected.rows))


def test_shared_models_and_state(task, data):
    seen = []

    @fs.simulation.of_view
    def look(view):
        seen.append(view)
        models = view.models([4, 4, 0])
        toys.assert_same(models, jax.tree.map(lambda w: jnp.stack([w] * 3), view.params))
        return {}

    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    result = run(algorithm, data, num_rounds=2, evaluate=[look, lambda params: {"plain": 1.0}])
    assert [view.round for view in seen] == [0, 1, 2]
    toys.assert_same(seen[-1].state, result.state)
    assert [row["plain"] for row in result.rows] == [1.0] * 3


def test_learners_show_their_models(task, data):
    seen = []

    @fs.simulation.of_view
    def look(view):
        mean = jax.tree.map(lambda w: w.mean(0), view.models(range(10)))
        seen.append(toys.largest_difference(mean, view.params))
        return {}

    protocol = fs.protocols.none(period=3)
    settings = {"num_learners": 10, "batch_size": 4, "client_lr": 0.1, "stream": "shared"}
    algorithm = fs.dynamic_averaging(task, protocol, **settings)
    for devices in (1, 2):
        run(algorithm, data, num_rounds=1, evaluate=look, layout=toys.layout(1, devices))
    assert len(seen) == 4
    assert max(seen) < 1e-6


def test_bad_ids_are_refused(task, data):
    def asked(algorithm, ids):
        run(algorithm, data, evaluate=fs.simulation.of_view(lambda view: view.models(ids) and {}))

    fed_avg = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="ids holds 10; wanted 0 to 9"):
        asked(fed_avg, [0, 10])
    with pytest.raises(ValueError, match=r"ids is float64\[1\]; wanted integers \[n\], at least one"):
        asked(fed_avg, [0.5])
    with pytest.raises(ValueError, match=r"ids is int64\[\]; wanted integers \[n\], at least one"):
        asked(fed_avg, 3)
    clustered = fs.ifca(task, num_clusters=2, client_lr=0.1, local_epochs=1, batch_size=4)
    with pytest.raises(
        ValueError, match="which model a client uses depends on its data; wanted an evaluation of all"
    ):
        asked(clustered, [0])
