"""Metrics that are arrays: from a task through rows and files to what people read."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import toys

import fedjax_sim as fs
from fedjax_sim.simulation.identity import check_evaluations

pytestmark = pytest.mark.usefixtures("quick_compilation")
RATES = {"client_lr": 0.1, "local_epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def by_class(task):
    return fs.models.with_class_metrics(task)


def lacking(label, n=31):
    """Examples without one of the labels."""
    test = toys.dataset(n, seed=9)
    kept = test.examples["y"] != label
    examples = {name: column[kept] for name, column in test.examples.items()}
    return fs.data.from_arrays(**examples, num_classes=toys.CLASSES)


@pytest.mark.parametrize("n", [7, 503])
def test_classes_are_judged_as_by_scikit_learn(task, by_class, n):
    params, test = task.init(jax.random.key(3)), toys.dataset(n, seed=2)
    y, predicted = test.examples["y"], fs.predict(task, params, test).argmax(axis=1)
    labels = list(range(toys.CLASSES))
    expected = sklearn.metrics.confusion_matrix(y, predicted, labels=labels)
    assert not (expected == expected.T).all()
    for where in (toys.layout(), toys.layout(1, 2)):
        found = fs.evaluator(by_class, test, layout=where)(params)
        np.testing.assert_allclose(n * found["test_confusion_matrix"], expected, rtol=1e-6)
        np.testing.assert_allclose(found["test_class_accuracy"], expected.diagonal() / expected.sum(1))
        plain = fs.evaluator(task, test, layout=where)(params)
        assert {name: found[name] for name in plain} == plain


def test_a_label_without_examples_has_no_accuracy(task, by_class):
    found = fs.evaluator(by_class, lacking(1), layout=toys.layout())(task.init(jax.random.key(0)))
    np.testing.assert_array_equal(np.isnan(found["test_class_accuracy"]), [False, True, False])
    assert found["test_confusion_matrix"].sum() == pytest.approx(1)


def test_rows_history_and_what_is_printed(by_class, data, tmp_path, capsys):
    evaluate = fs.evaluator(by_class, lacking(1), layout=toys.layout())
    algorithm = fs.fed_avg(by_class, **RATES)
    settings = {"key": jax.random.key(0), "evaluate": evaluate, "layout": toys.layout()}
    home = tmp_path / "run"
    first = fs.simulate(algorithm, data, num_rounds=1, workdir=home, progress=True, **settings)
    assert "test_accuracy" in capsys.readouterr().err
    assert first.rows[-1]["test_class_accuracy"][1] is None
    history = first.history()
    assert history["test_class_accuracy"].shape == (2, toys.CLASSES)
    assert history["test_confusion_matrix"].shape == (2, toys.CLASSES, toys.CLASSES)
    assert np.isnan(history["test_class_accuracy"][:, 1]).all()
    assert "test_accuracy" in repr(first)
    assert "class" not in repr(first)
    fs.reporting.write_report(first, home)

    longer = fs.simulate(algorithm, data, num_rounds=2, workdir=home, **settings)
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert lines == longer.rows
    assert lines[:2] == first.rows


def test_tensorboard_has_a_curve_for_each_class(tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("tensorboardX")
    written = []
    monkeypatch.setattr(
        tensorboard.SummaryWriter, "add_scalar", lambda self, *scalar: written.append(scalar)
    )
    row = {"round": 3, "by_class": [0.5, None], "matrix": [[1.0]], "loss": 2.0}
    assert fs.reporting.write_tensorboard([row], tmp_path / "events")
    assert written == [("by_class/0", 0.5, 3), ("loss", 2.0, 3)]


def test_a_workdir_knows_arrays_of_a_plain_function():
    view = types.SimpleNamespace(params=None)
    known = {"round": 1, "shares": [0.5, None]}

    def check(*values):
        check_evaluations([lambda params: {"shares": np.array(values)}], known, view, "runs", ["shares"])

    check(0.5, np.nan)
    check(0.5001, np.nan)
    for values in ((0.6, np.nan), (0.5, 0.5), (0.5,)):
        with pytest.raises(ValueError, match="another evaluation: shares of the model"):
            check(*values)


def test_an_infinity_in_an_array_is_divergence_and_nan_is_not(task, data):
    def play(value):
        fs.simulate(
            fs.fed_avg(task, **RATES),
            data,
            key=jax.random.key(0),
            num_rounds=1,
            evaluate=lambda params: {"values": jnp.array([1.0, value])},
            layout=toys.layout(),
        )

    play(float("nan"))
    with pytest.raises(fs.DivergenceError):
        play(float("inf"))


def test_a_nan_of_the_model_is_not_a_class_without_examples(task):
    def metrics(params, batch):
        return {"values": (jnp.full((len(batch["y"]), 2), jnp.nan), jnp.array([[0.0, 1.0]] * 5))}

    own = task._replace(metrics=metrics)
    found = fs.evaluator(own, toys.dataset(5), layout=toys.layout())(task.init(jax.random.key(0)))
    np.testing.assert_array_equal(found["test_values"], [np.nan, np.inf])


def test_the_name_that_everybody_reads_is_a_number(task, data):
    with pytest.raises(ValueError, match=r"an array named test_accuracy, .* wanted another name"):
        fs.simulate(
            fs.fed_avg(task, **RATES),
            data,
            key=jax.random.key(0),
            num_rounds=1,
            evaluate=lambda params: {"test_accuracy": np.ones(3)},
            layout=toys.layout(),
        )


def test_metrics_of_classes_need_a_classifier(task):
    for other in (
        fs.models.regressor(fs.models.MLP((2,)), (3,)),
        task._replace(predict=None),
    ):
        with pytest.raises(ValueError, match=r"wanted both, as fs\.models\.classifier sets them"):
            fs.models.with_class_metrics(other)
    several = fs.models.with_class_metrics(fs.models.multilabel(fs.models.MLP((2,)), (3,)))
    data = fs.data.from_clients({"ann": (np.ones((4, 3)), np.ones((4, 2), int))}, num_classes=2)
    with pytest.raises(ValueError, match=r"labels have the shape \[4, 2\]"):
        fs.evaluator(several, data, layout=toys.layout())


def test_evaluations_of_clients_say_which_metric_they_lack(by_class, data):
    with pytest.raises(ValueError, match="'class_accuracy' is an array, which is not summed by client"):
        fs.simulation.cluster_evaluator(by_class, data, layout=toys.layout())
    own = fs.models.from_loss(lambda key: jnp.zeros(()), lambda w, batch: w * batch["x"][:, 0])
    with pytest.raises(ValueError, match="no metric 'accuracy'; its metrics are loss"):
        fs.simulation.client_evaluator(own, data, layout=toys.layout())
    unnamed = own._replace(metrics=lambda w, batch: {})
    with pytest.raises(ValueError, match="no metric 'loss'; its metrics are none"):
        fs.simulation.cluster_evaluator(unnamed, data, layout=toys.layout())
