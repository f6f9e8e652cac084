"""Runs: blocks, evaluation, stopping, compilations, divergence, files and resumption."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.runtime import compilations
from fedjax_sim.simulation.block import Blocks

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3)


@functools.cache  # so that tests share what is compiled
def algorithm(task, **settings):
    return fs.fed_avg(task, **({"client_lr": 0.1, "local_epochs": 1, "batch_size": 4} | settings))


def run(task, data, *, chosen=None, **settings):
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
    defaults = {
        "key": KEY,
        "num_rounds": 6,
        "client_fraction": 0.4,
        "evaluate": evaluate,
        "layout": toys.layout(),
    }
    return fs.simulate(chosen or algorithm(task), data, **(defaults | settings))


def without_clock(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def test_rounds_in_blocks_are_the_same_rounds(task, data):
    one_block = run(task, data, eval_every=6)
    blocks = run(task, data, eval_every=2)
    uneven = run(task, data, eval_every=4)
    toys.assert_same(one_block.params, blocks.params)
    toys.assert_same(one_block.params, uneven.params)
    assert [row["round"] for row in uneven.rows] == [0, 4, 6]


def test_results_print_in_a_few_lines(task, data):
    result = run(task, data)
    last = result.rows[-1]
    told = f"<Result of 6 rounds in {last['seconds']:.3g} s: train_loss {last['train_loss']:.4g}, "
    assert repr(result).startswith(told)
    assert repr(result).endswith(
        f"_accuracy {last['test_accuracy']:.4g}, test_loss {last['test_loss']:.4g}>"
    )
    rates = [0.01 * i for i in range(1, 16)]
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
    settings = {"num_rounds": 1, "evaluate": evaluate, "client_fraction": 0.4}
    swept = fs.sweep(algorithm(task), data, hparams={"client_lr": rates}, **settings)
    lines = repr(swept).splitlines()
    assert lines[0].startswith("<SweepResult of 15 runs in ")
    assert len(lines) == 14
    assert lines[-1] == "  and 3 more, see summary()>"
    assert "client_lr=0.01, server_lr=1, lr_decay=1, seed=0: 1 rounds, best test accuracy" in repr(
        swept.runs[0]
    )


def test_programs_are_dropped_before_their_mappings_run_out(task, data, monkeypatch, tmp_path):
    for limit, compiled in (("1000000", False), ("200", True)):
        (tmp_path / "limit").write_text(f"{limit}\n")
        monkeypatch.setattr(compilations, "_MOST_MAPPINGS", tmp_path / "limit")
        run(task, data)
        with fs.runtime.CompilationCounter() as counter:
            run(task, data)
        assert bool(counter.count) == compiled


@pytest.mark.slow
def test_two_devices_and_lanes_give_the_same_run(task, data):
    alone, spread = (run(task, data, layout=toys.layout(*where)) for where in ((1, 1), (2, 2)))
    toys.assert_close(alone.params, spread.params, rtol=1e-3, atol=1e-4)


def test_a_run_depends_on_its_key_alone(task, data):
    first, again, other = (run(task, data, key=jax.random.key(s)) for s in (3, 3, 4))
    toys.assert_same(first.params, again.params)
    assert without_clock(first.rows) == without_clock(again.rows)
    assert toys.largest_difference(first.params, other.params) > 1e-3


def test_messages_without_sizes_and_sizes_without_messages_are_refused(task, data):
    chosen = fs.fed_avg(task, client_lr=1.0, local_epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="wanted the same kinds in both"):
        run(task, data, chosen=chosen._replace(message_bytes=lambda state: {}))


def test_rows_count_bytes_examples_and_slots(task, data):
    result = run(task, data, client_fraction=1.0, num_rounds=3)
    model = 4 * (toys.FEATURES * 8 + 8 + 8 * toys.CLASSES + toys.CLASSES)
    last = result.rows[-1]
    assert last["bytes_up"] == last["bytes_down"] == 3 * 10 * model
    assert last["examples"] == 3 * sum(toys.SIZES)
    slots = 4 * sum(math.ceil(n / 4) for n in toys.SIZES)
    assert last["slots"] == 3 * slots
    summary = result.summary()
    assert summary["padding_waste"] == pytest.approx(1 - sum(toys.SIZES) / slots)
    assert summary["num_params"] * 4 == model
    assert summary["rounds"] == 3


def test_the_loss_reported_is_the_cohorts(task, data):
    """With a rate of zero and everybody taking part it is the loss on all data."""
    result = run(task, data, client_fraction=1.0, num_rounds=1, hparams={"client_lr": 0.0})
    evaluate = fs.evaluator(task, data, prefix="full_train", layout=toys.layout())
    expected = evaluate(result.params)["full_train_loss"]
    assert result.rows[-1]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_masks_its_padding(task, data):
    params = task.init(jax.random.key(0))
    for n in (1, 7, 31, 503):
        test = toys.dataset(n, seed=2)
        logits_metrics = task.metrics(params, test.examples)
        for where in (toys.layout(), toys.layout(1, 2)):
            got = fs.evaluator(task, test, layout=where)(params)
            for name, (total, _) in logits_metrics.items():
                assert got[f"test_{name}"] == pytest.approx(float(np.mean(total)), rel=1e-5)


def test_accuracy_of_each_client(task, data):
    params = task.init(jax.random.key(0))
    values = fs.simulation.each_client_evaluator(task, data, layout=toys.layout(1, 2))(params)
    correct = np.asarray(task.metrics(params, data.examples)["accuracy"][0])
    for k, size in enumerate(toys.SIZES):
        rows = slice(int(data.offsets[k]), int(data.offsets[k + 1]))
        if size:
            assert values[k] == pytest.approx(correct[rows].mean())
        else:
            assert np.isnan(values[k])
    spread = fs.simulation.client_evaluator(task, data, layout=toys.layout())(params)
    assert spread["client_accuracy_min"] == pytest.approx(np.nanmin(values))
    assert spread["client_accuracy_median"] == pytest.approx(np.nanmedian(values))


def test_another_metric_of_each_client(task, data):
    params, where = task.init(jax.random.key(0)), toys.layout()
    losses = np.asarray(task.metrics(params, data.examples)["loss"][0])
    owned = np.split(losses[: data.offsets[-1]], data.offsets[1:-1])
    wanted = [own.mean() if len(own) else np.nan for own in owned]
    found = fs.simulation.each_client_evaluator(task, data, metric="loss", layout=where)(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    spread = fs.simulation.client_evaluator(task, data, metric="loss", layout=where)(params)
    assert spread["client_loss_max"] == pytest.approx(np.nanmax(wanted))
    with pytest.raises(ValueError, match="no metric 'f1'; its metrics are accuracy, loss"):
        fs.simulation.client_evaluator(task, data, metric="f1", layout=where)


def test_stop_at_ends_at_the_first_evaluation_that_reaches_it(task, data):
    longest = run(task, data, num_rounds=30)
    curve = [row["test_accuracy"] for row in longest.rows]
    target = sorted(curve)[len(curve) // 2]
    first = next(i for i, value in enumerate(curve) if value >= target)
    stopped = run(task, data, num_rounds=30, stop_at=target)
    assert [row["test_accuracy"] for row in stopped.rows] == curve[: first + 1]
    assert stopped.summary()["rounds_to_target"] is not None


def test_nothing_compiles_for_other_cohorts_rates_and_seeds(task, data):
    chosen = algorithm(task)
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())

    def play(**settings):
        return run(task, data, chosen=chosen, evaluate=evaluate, eval_every=2, **settings)

    play()
    with fs.runtime.CompilationCounter() as counter:
        play(key=jax.random.key(99), hparams={"client_lr": 0.3, "server_lr": 0.5})
        play(num_rounds=5, hparams={"lr_decay": 0.9})
        other = toys.federation(tuple(reversed(toys.SIZES)), seed=4)
        play_other = run(task, other, chosen=chosen, evaluate=evaluate, eval_every=2)
    assert counter.count == 0
    assert play_other.compilations == 0


def test_divergence_names_the_round_and_the_rate_and_keeps_the_last_good_state(task, data, tmp_path):
    home = tmp_path / "run"
    with pytest.raises(fs.DivergenceError, match=r"in round \d+.*client_lr=1e\+30") as caught:
        run(task, data, hparams={"client_lr": 1e30}, workdir=home, num_rounds=50)
    assert 1 <= caught.value.round <= 50
    assert (home / "checkpoints" / "0").is_dir()
    rows = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(caught.value.round))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rounds": 0}, "num_rounds is 0"),
        ({"eval_every": 0}, "eval_every is 0"),
        ({"client_fraction": 1.5}, "client_fraction is 1.5"),
        ({"client_fraction": -0.1}, "client_fraction is -0.1"),
        ({"client_fraction": math.nan}, "client_fraction is nan"),
        ({"stop_at": 97}, "target accuracy is 97"),
        ({"stop_at": 0.9, "evaluate": ()}, "needs an evaluation"),
        ({"hparams": {"client_lr": -1}}, "client_lr is -1"),
        ({"hparams": {"client_lr": math.nan}}, "client_lr is nan"),
        ({"hparams": {"momentum": 0.9}}, "no hyper-parameter momentum; it has client_lr"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(task, data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(task, data, workdir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_target_needs_the_evaluation_it_speaks_of(task, data):
    valid = fs.evaluator(task, toys.dataset(31), prefix="valid", layout=toys.layout())
    with pytest.raises(ValueError, match=r"needs an evaluation named test_accuracy; there are .*valid"):
        run(task, data, evaluate=valid, stop_at=0.9)


def test_labels_beyond_the_models_classes_are_not_blamed_on_the_rate(data):
    narrow = fs.models.classifier(fs.models.MLP((2,)), (toys.FEATURES,))
    evaluate = fs.evaluator(narrow, toys.dataset(31), layout=toys.layout())
    with pytest.raises(ValueError, match=r"column 'y' holds 2 at row .*; wanted labels from 0 to 1"):
        run(narrow, data, chosen=algorithm(narrow), evaluate=evaluate)
    examples = data.examples | {"y": np.minimum(data.examples["y"], 1)}
    data = dataclasses.replace(data, examples=examples)  # now the test set alone has more
    with pytest.raises(fs.DivergenceError, match="before any training; check that all labels"):
        run(narrow, data, chosen=algorithm(narrow), evaluate=evaluate)


def test_a_federation_without_data_is_refused(task):
    empty = fs.data.FederatedData(
        {"x": np.zeros((0, toys.FEATURES), np.float32), "y": np.zeros(0, np.int32)},
        np.zeros(3, np.int32),
    )
    with pytest.raises(ValueError, match="no client of the federation has any data"):
        run(task, empty)


def test_cohort_size_is_max_of_c_k_and_1():
    assert [fs.participation.cohort_size(100, c) for c in (0, 0.005, 0.1, 0.29, 1)] == [
        1,
        1,
        10,
        29,
        100,
    ]
    assert fs.participation.cohort_size(539, 0.1) == 53
    assert fs.participation.cohort_size(10, 0.3) == 3
    with pytest.raises(ValueError, match="no clients"):
        fs.participation.cohort_size(0, 0.5)


@pytest.mark.parametrize(
    ("accuracies", "target", "expected"),
    [
        ([0.1, 0.5, 0.9], 0.7, 15.0),
        ([0.1, 0.8, 0.6, 0.9], 0.85, 25.0),  # from the best so far, not from the dip
        ([0.1, 0.9, 0.9], 0.9, 10.0),
        ([0.5, 0.9], 0.4, 0.0),
        ([0.5, 0.6], 0.7, None),
        ([], 0.7, None),
    ],
)
def test_rounds_to_target_interpolates_the_monotone_curve(accuracies, target, expected):
    rounds = 10 * np.arange(len(accuracies))
    got = fs.rounds_to_target(rounds, accuracies, target)
    assert got == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("devices", [1, 2])
def test_the_rounds_compile_once_beside_the_first_evaluation(task, data, monkeypatch, devices):
    def count():
        jax.clear_caches()
        algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
        settings = {"num_rounds": 1, "client_fraction": 0.5, "layout": toys.layout(2, devices)}
        return fs.simulate(algorithm, data, key=jax.random.key(0), **settings).compilations

    beside = count()
    monkeypatch.setattr(Blocks, "compile_beside", lambda *arguments: None)
    assert beside == count()
