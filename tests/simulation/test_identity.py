"""A workdir recognises its run by what is computed, not by names."""

import functools
import json
import logging
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from test_resumption import rows_of
from test_simulate import without_clock

import fedjax_sim as fs
from fedjax_sim.simulation import programs

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATE = {"client_lr": 0.1}


def judge(task, seed=9):
    return fs.evaluator(task, toys.dataset(31, seed=seed), layout=toys.layout())


def contents(home):
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def play(task, data, home, optimizer=optax.sgd, *, rates=RATE, server=(), epochs=1, **settings):
    algorithm = fs.fed_avg(task, optimizer, *server, **rates, local_epochs=epochs, batch_size=4)
    defaults = {"key": jax.random.key(3), "num_rounds": 3, "evaluate": judge(task)}
    return fs.simulate(algorithm, data, workdir=home, **(defaults | settings))


def network(activation, hidden=8):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(toys.CLASSES)(activation(nn.Dense(hidden)(x)))

    return fs.models.classifier(Network(), (toys.FEATURES,))


def with_loss(task, factor):
    def loss(params, batch, key):
        total, count = task.loss(params, batch, key)
        return factor * total, count

    return task._replace(loss=loss)


def doubled(task):
    return task._replace(init=lambda key: jax.tree.map(lambda w: 2 * w, task.init(key)))


@pytest.fixture(scope="module")
def home(task, data, tmp_path_factory):
    """The workdir of a finished run; nothing below may change it."""
    home = tmp_path_factory.mktemp("runs") / "run"
    play(task, data, home)
    return home


# The optimizers are told apart though each is "built", a partial or a lambda.
OTHERS = {
    "rmsprop": ("client optimizer", {"optimizer": optax.rmsprop}),
    "momentum in a lambda": (
        "client optimizer",
        {"optimizer": lambda rate: optax.sgd(rate, momentum=0.9)},
    ),
    "momentum in a partial": (
        "client optimizer",
        {"optimizer": functools.partial(optax.sgd, momentum=0.9)},
    ),
    "built": ("client optimizer", {"optimizer": optax.sgd(0.2), "rates": {}}),
    "server": ("server optimizer", {"server": (optax.rmsprop(1e-2),)}),
    "schedule": ("server optimizer", {"server": (optax.sgd(lambda step: 1 / (1 + step)),)}),
    "initial parameters": ("initial parameters", {"task": doubled}),
    "loss": ("model or loss", {"task": lambda task: with_loss(task, 2.0)}),
    "tanh": ("model or loss", {"task": lambda task: network(nn.tanh)}),
    "width": ("model or loss", {"task": lambda task: toys.task(hidden=7)}),
    "epochs": ("local_epochs", {"epochs": 2}),
    "test set": ("evaluations", {"evaluate": lambda task: judge(task, seed=8)}),
    "no evaluation": ("evaluations", {"evaluate": lambda task: ()}),
    "two evaluations": ("evaluations", {"evaluate": lambda task: (judge(task), judge(task))}),
    "metric": ("evaluations", {"evaluate": lambda task: judge(with_metric(task))}),
    "plain function": ("test_accuracy of the model of round 0", {"evaluate": lambda task: half}),
    "name of a metric": (
        "test_accuracy of the model of round 0 is .* there, absent now",
        {"evaluate": lambda task: renamed},
    ),
}


def with_metric(task):
    def metrics(params, batch):
        (total, count) = task.metrics(params, batch)["loss"]
        return task.metrics(params, batch) | {"loss": (2 * total, count)}

    return task._replace(metrics=metrics)


def half(params):
    return {"test_accuracy": 0.5}


def renamed(params):
    return {"test_loss2": 0.5}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_by_the_name_of_what_differs(task, data, home, name):
    message, settings = OTHERS[name]
    settings = dict(settings)
    before = contents(home)
    task = settings.pop("task", lambda task: task)(task)
    settings["evaluate"] = settings.get("evaluate", judge)(task)
    # Of the optimizers of optax some promote types themselves.
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        play(task, data, home, **settings)
    assert before == contents(home)


def test_the_same_run_built_anew_is_the_same(task, data, home):
    rows = rows_of(home)
    again = {
        "functions": {"optimizer": lambda rate: optax.sgd(rate)},
        "partials": {"optimizer": functools.partial(optax.sgd)},
        "everything": {"task": toys.task()},
    }
    for settings in again.values():
        result = play(settings.pop("task", task), data, home, **settings)
        assert result.rows == rows


def test_another_plain_function_is_noticed_and_the_same_is_not(task, data, tmp_path):
    def evaluation(seed):
        judged = judge(task, seed)
        return lambda params: {"test_accuracy": judged(params)["test_accuracy"]}

    play(task, data, tmp_path / "run", evaluate=evaluation(9))
    play(task, data, tmp_path / "run", evaluate=evaluation(9), num_rounds=4)
    with pytest.raises(ValueError, match="a run of another evaluation: test_accuracy of the model"):
        play(task, data, tmp_path / "run", evaluate=evaluation(8), num_rounds=4)


def test_more_rounds_continue_and_fewer_than_done_are_refused(task, data, tmp_path):
    home = tmp_path / "run"
    play(task, data, home, num_rounds=2)
    longer = play(task, data, home, num_rounds=5)
    whole = play(task, data, tmp_path / "whole", num_rounds=5)
    toys.assert_same(longer.state, whole.state)
    assert without_clock(longer.rows) == without_clock(whole.rows)
    assert json.loads((home / "config.json").read_text())["num_rounds"] == 5
    with pytest.raises(ValueError, match=r"num_rounds is 4, but the run in .* has done 5 rounds"):
        play(task, data, home, num_rounds=4)


@pytest.mark.slow
def test_more_rounds_of_a_sweep_continue(task, data, tmp_path):
    def sweep(home, num_rounds):
        algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
        settings = {"hparams": {"client_lr": [0.1, 0.2]}, "evaluate": judge(task), "eval_every": 2}
        return fs.sweep(algorithm, data, num_rounds=num_rounds, workdir=tmp_path / home, **settings)

    sweep("sweep", 2)
    longer, whole = sweep("sweep", 5), sweep("whole", 5)
    for a, b in zip(longer.runs, whole.runs, strict=True):
        assert without_clock(a.rows) == without_clock(b.rows)
        toys.assert_same(a.state, b.state)
    with pytest.raises(ValueError, match=r"num_rounds is 4, but the sweep in .* has done 5 rounds"):
        sweep("sweep", 4)


def test_another_version_is_told_in_one_line_and_continued_only_where_told_to(
    task, data, tmp_path, caplog
):
    home = tmp_path / "run"
    play(task, data, home, num_rounds=2)
    path = home / "config.json"
    config = json.loads(path.read_text())
    assert config["versions"] == {"fedjax_sim": fs.__version__, "jax": jax.__version__}
    config["versions"]["jax"] = "0.1.0"
    config["programs"]["round"] = "another"  # as another version may trace it
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"begun with .* jax 0\.1\.0, and this is") as refused:
        play(task, data, home)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="key: "):
        play(task, data, home, allow_version_change=True, key=jax.random.key(4))
    with caplog.at_level(logging.WARNING):
        play(task, data, home, allow_version_change=True)
    assert "was begun with fedjax_sim" in caplog.text
    config = json.loads(path.read_text())
    assert config["versions"]["jax"] == jax.__version__
    assert [versions["jax"] for versions in config["earlier_versions"]] == ["0.1.0"]
    play(task, data, home)  # and from now on without being told


@pytest.mark.parametrize("content", [b"[1]", b"3", b"\xff\xfe", b"{", b"[" * 100_000])
def test_a_config_that_is_none_is_refused_by_name(task, data, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json (is not JSON|holds JSON of type)"):
        play(task, data, tmp_path)


def test_a_config_of_ones_own_may_not_take_our_names(task, data, tmp_path):
    with pytest.raises(ValueError, match="config has the name 'programs'"):
        play(task, data, tmp_path / "run", config={"programs": 1})


def test_no_name_of_a_config_hides_a_setting(task, data, tmp_path):
    """`config` came last and was compared in place of the key and the rate."""
    hiding = {"client_lr": 0.1, "key": 0}
    play(task, data, tmp_path / "run", config=hiding)
    with pytest.raises(ValueError, match="key: "):
        play(task, data, tmp_path / "run", config=hiding, key=jax.random.key(7))
    with pytest.raises(ValueError, match=r"client_lr: 0\.1 there, 0\.9 now"):
        play(task, data, tmp_path / "run", config=hiding, hparams={"client_lr": 0.9})


@pytest.mark.parametrize(
    "value", [np.float32(1), {1, 2}, {"a": [object()]}], ids=["float32", "set", "object"]
)
def test_a_config_that_is_no_json_is_refused_by_name(task, data, tmp_path, value):
    with pytest.raises(ValueError, match="config holds 'mine', which is not JSON"):
        play(task, data, tmp_path / "run", config={"mine": value})
    play(task, data, tmp_path / "run", config={"mine": [float("nan"), {"a": float("inf")}]})


def test_an_evaluation_that_says_less_is_another(task, data, tmp_path):
    def evaluation(**more):
        return lambda params: {"test_accuracy": 0.5} | more

    play(task, data, tmp_path / "run", evaluate=evaluation(f1=0.3))
    for other in (evaluation(), evaluation(f1=0.3, f2=0.1)):
        with pytest.raises(ValueError, match=r"f[12] of the model of round 0 is (0\.3|absent) there"):
            play(task, data, tmp_path / "run", evaluate=other, num_rounds=4)


def test_every_run_of_a_sweep_is_looked_at(task, data, tmp_path):
    """A kill may have left any of them without a checkpoint."""
    home = tmp_path / "sweep"

    def sweep(value):
        algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
        settings = {"hparams": {"lr_decay": [1.0, 0.9]}, "num_rounds": 2, "stacked": False}
        judge_all = {"evaluate": lambda params: {"test_accuracy": value}}
        return fs.sweep(algorithm, data, workdir=home, **judge_all, **settings)

    sweep(0.1)
    (first,) = home.glob("*lr_decay=1.0*")
    shutil.rmtree(first)
    with pytest.raises(ValueError, match=r"test_accuracy of the model of round 0 is 0\.1 there, 0\.5"):
        sweep(0.5)


def test_digests_cover_closed_over_arrays_and_constants_but_no_names():
    def adds(constant, name="f"):
        def fn(x):
            return x + constant

        fn.__name__ = name
        return fn

    x = jnp.zeros(3)
    arrays = [np.arange(3, dtype=np.float32), np.arange(3, dtype=np.float32) + 1]
    digests = {programs.digest(jax.jit(adds(array)), x) for array in arrays}
    digests |= {programs.digest(adds(jnp.float32(c)), x) for c in (1, 2)}
    assert len(digests) == 4
    same = {programs.digest(jax.jit(adds(arrays[0].copy(), name)), x) for name in "fg"}
    assert len(same) == 1 <= len(same & digests)
    shapes = [programs.digest(jnp.sum, jnp.zeros(shape)) for shape in (3, 4, (3, 1))]
    assert len(set(shapes)) == 3


def test_digests_cover_the_bodies_of_loops_and_branches():
    def loop(step, bound):
        return lambda x: jax.lax.fori_loop(0, bound, lambda i, x: x * step, x)

    def branch(other):
        return lambda x: jax.lax.cond(x > 0, lambda x: x, lambda x: other * x, x)

    made = [loop(jnp.float32(2), 3), loop(jnp.float32(3), 3), loop(jnp.float32(2), 4)]
    made += [branch(jnp.float32(2)), branch(jnp.float32(3))]
    assert len({programs.digest(fn, jnp.float32(1)) for fn in made}) == len(made)
