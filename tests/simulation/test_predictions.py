"""Predictions for whole data sets, and evaluations by scikit-learn."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import toys

import fedjax_sim as fs
from fedjax_sim.engine.placement import place
from fedjax_sim.simulation import predictions

pytestmark = pytest.mark.usefixtures("quick_compilation")


def auc(y, probabilities):
    return sklearn.metrics.roc_auc_score(y, probabilities, multi_class="ovr")


@pytest.mark.parametrize("n", [1, 7, 503])
def test_predictions_are_those_of_each_example(task, n):
    params, test = task.init(jax.random.key(0)), toys.dataset(n, seed=2)
    expected = task.predict(params, test.examples)
    assert expected.shape == (n, toys.CLASSES)
    np.testing.assert_allclose(expected.sum(axis=1), np.ones(n), rtol=1e-5)
    hits = task.metrics(params, test.examples)["accuracy"][0]
    np.testing.assert_array_equal(np.argmax(expected, axis=1) == test.examples["y"], hits)
    for where in (toys.layout(), toys.layout(1, 2)):
        found = fs.predict(task, params, test, layout=where)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    unlabelled = fs.predict(task, params, {"x": test.examples["x"]}, layout=toys.layout())
    np.testing.assert_allclose(unlabelled, expected, rtol=1e-5)


def test_every_factory_predicts_and_bfloat16_keeps_it(task):
    tasks = {
        "classifier": task,
        "char_lstm": fs.models.char_lstm(12, 6, padding=0),
        "cifar": fs.models.cifar_cnn(10, (24, 24, 3)),
        "regressor": fs.models.regressor(fs.models.MLP((2,)), (3,)),
        "multilabel": fs.models.multilabel(fs.models.MLP((2,)), (3,)),
    }
    for name, each in tasks.items():
        assert callable(each.predict), name
        assert fs.models.bfloat16(each).predict is each.predict, name
    image = {"x": jnp.ones((2, 30, 30, 3), jnp.uint8)}
    params = jax.eval_shape(tasks["cifar"].init, jax.random.key(0))
    assert jax.eval_shape(tasks["cifar"].predict, params, image).shape == (2, 10)  # of central crops


def test_an_evaluation_by_scikit_learn_is_in_the_rows(task, data, tmp_path):
    test = toys.dataset(31, seed=9)
    evaluate = fs.simulation.prediction_evaluator(
        task,
        test,
        {"auc": auc, "f1": lambda y, p: sklearn.metrics.f1_score(y, p.argmax(1), average=None)},
        layout=toys.layout(),
    )
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    settings = {"key": jax.random.key(0), "evaluate": evaluate, "layout": toys.layout()}
    first = fs.simulate(algorithm, data, num_rounds=1, workdir=tmp_path / "run", **settings)
    probabilities = fs.predict(task, first.params, test)
    assert first.rows[-1]["test_auc"] == pytest.approx(auc(test.examples["y"], probabilities), rel=1e-5)
    assert first.history()["test_f1"].shape == (2, toys.CLASSES)
    longer = fs.simulate(algorithm, data, num_rounds=2, workdir=tmp_path / "run", **settings)
    assert longer.rows[:2] == first.rows


@pytest.mark.parametrize(
    ("predict", "dataset", "message"),
    [
        (None, {"x": np.ones((4, 2))}, "the task has no predict; wanted .*_replace"),
        (lambda w, batch: batch["x"].sum(), {"x": np.ones((4, 2))}, r"predict returned float32\[\]"),
        (lambda w, batch: (batch["x"],), {"x": np.ones((4, 2))}, r"predict returned \(float"),
        (lambda w, batch: batch["x"], {"x": np.ones((0, 2))}, "got no examples"),
        (
            lambda w, batch: batch["x"],
            np.ones((4, 2)),
            r"the data is float64\[4, 2\]; wanted a data set",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused(predict, dataset, message):
    task = fs.Task(lambda key: jnp.zeros(2), None, None, predict=predict)
    with pytest.raises(ValueError, match=message):
        fs.predict(task, jnp.zeros(2), dataset, layout=toys.layout())


def test_parameters_of_another_model_are_refused(task):
    with pytest.raises(ValueError, match="wanted one model of the task"):
        fs.predict(task, jnp.zeros(2), toys.dataset(3), layout=toys.layout())


def test_an_evaluation_needs_functions_and_labels(task):
    make = fs.simulation.prediction_evaluator
    for functions in (auc, {"auc": 0.5}):
        with pytest.raises(ValueError, match=r"functions is .*; wanted a dict from names to functions"):
            make(task, toys.dataset(3), functions)
    unlabelled = types.SimpleNamespace(examples={"x": np.ones((3, toys.FEATURES))})
    with pytest.raises(ValueError, match="no column 'y'"):
        make(task, unlabelled, {"auc": auc})


def test_the_work_is_done_where_the_parameters_are(task, monkeypatch):
    """In a sweep each run has a core of its own, and an evaluation on all would disturb the others."""
    layouts = []
    map_rows = predictions.map_rows

    def watched(function, params, rows, layout, **settings):
        layouts.append(layout)
        return map_rows(function, params, rows, layout, **settings)

    monkeypatch.setattr(predictions, "map_rows", watched)
    jax.clear_caches()  # so that all is traced
    data, params = toys.dataset(31), task.init(jax.random.key(0))
    everywhere = fs.runtime.default_layout()
    assert everywhere.num_devices > 1
    alone = fs.predict(task, params, data)
    shared = fs.predict(task, place(params, everywhere), data)
    jax.clear_caches()
    on_host = fs.predict(task, jax.tree.map(np.asarray, params), data)
    assert layouts == [fs.Layout(), everywhere, everywhere]
    np.testing.assert_allclose(alone, shared, rtol=1e-5)
    np.testing.assert_array_equal(shared, on_host)
