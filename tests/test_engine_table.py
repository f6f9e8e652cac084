"""Every algorithm on every number of lanes and devices, against one lane and against plain NumPy.

Clients are ragged, some are empty, last batches are short, optimizers have a memory, and each step of
the task's loss draws from its key, so that a lane that does not begin anew with its next client is seen.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_rounds
import optax
import pytest
import toys

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")

FEATURES, CLASSES, ROUNDS = 4, 2, 2
# On 16 lanes of one device each lane is used, most of them by several clients.
SIZES = np.random.default_rng(5).permutation([*range(24), 63, 0, *range(4, 20)])
COHORT = [k for k in np.random.default_rng(6).permutation(len(SIZES)).tolist() if k not in (8, 30)]
LEARNERS = (9, 4, 13, 7, 5, 11, 6, 10)
BATCHES = (2, 3, 1, 3, 2, 2, 3, 1)
LAYOUTS = [(1, 1), (3, 1), (3, 2), (4, 2), (16, 2)]  # lanes and devices
momentum = functools.partial(optax.sgd, momentum=0.8)


def loss(params, batch, key):
    keep = numpy_rounds.kept(key, batch["x"].shape)
    logits = jnp.where(keep, batch["x"], 0) @ params["w"] + params["b"][None]
    return batch["terms"] * optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch["y"]
    ), batch["terms"]


def start(key):
    w = 0.5 * jax.random.normal(key, (FEATURES, CLASSES))
    return {"w": w, "b": jnp.linspace(-0.1, 0.1, CLASSES)}


TASK = fs.Task(start, loss, lambda params, batch: {})


def federation(sizes):
    rng, n = np.random.default_rng(0), int(np.sum(sizes))
    examples = {
        "x": rng.normal(size=(n, FEATURES)).astype(np.float32),
        "y": rng.integers(0, CLASSES, n).astype(np.int32),
        "terms": rng.integers(1, 4, n).astype(np.float32),
    }
    return fs.data.FederatedData(examples, np.cumsum([0, *sizes]).astype(np.int32))


def fed_avg(**settings):
    settings = {"local_epochs": 3, "batch_size": 5, "shuffle": "each_epoch"} | settings
    return fs.fed_avg(TASK, momentum, momentum, client_lr=0.3, server_lr=1.0, lr_decay=0.5, **settings)


def averaging(protocol, **settings):
    settings = {"batch_size": BATCHES, "stream": "repeat"} | settings
    return fs.dynamic_averaging(
        TASK, protocol, momentum, num_learners=len(LEARNERS), client_lr=0.3, lr_decay=0.5, **settings
    )


DYNAMIC = fs.protocols.dynamic(delta=1.5, period=3)  # some learners meet, others do not
ALGORITHMS = {
    "fed_avg": fed_avg,
    "fed_avg, once": lambda: fed_avg(shuffle="once", weighting="uniform"),
    "fed_avg, never": lambda: fed_avg(shuffle="never"),
    "fed_avg, B=inf": lambda: fed_avg(batch_size=math.inf),
    "fed_sgd": lambda: fs.fed_sgd(TASK, momentum, client_lr=0.5, lr_decay=0.5),
    "fed_sgd, uniform": lambda: fs.fed_sgd(TASK, client_lr=0.5, weighting="uniform"),
    "sgd": lambda: fs.sgd(
        TASK, momentum, client_lr=0.1, lr_decay=0.5, batch_size=50, steps_per_round=11
    ),
    "averaging": lambda: averaging(fs.protocols.periodic(period=5)),
    "averaging, examples": lambda: averaging(fs.protocols.periodic(period=5), weighting="examples"),
    "averaging, dynamic": lambda: averaging(DYNAMIC),
    "averaging, shared": lambda: averaging(DYNAMIC, stream="shared"),
}
WITHOUT_REFERENCE = ("averaging, dynamic", "averaging, shared")  # their protocol draws by itself


@functools.cache
def played(name, lanes, devices):
    """The model after some rounds, and what each of them reports."""
    algorithm, where = ALGORITHMS[name](), toys.layout(lanes, devices)
    learning = algorithm.num_learners is not None
    data = federation(LEARNERS if learning else SIZES)
    ids = jnp.asarray(range(len(LEARNERS)) if learning else COHORT, jnp.int32)
    state = fs.engine.place(toys.init(algorithm), where, algorithm.specs)
    data, ids = fs.engine.place((jax.tree.map(jnp.asarray, data), ids), where)
    round_fn, infos = toys.round_of(algorithm), []
    for r in range(ROUNDS):
        key = fs.engine.place(round_key(r), where)
        state, info = round_fn(key, state, data, fs.Cohort(ids, where))
        infos.append(jax.device_get(info))
    learners = state.learners if learning else ()
    return jax.device_get((state.params, learners)), infos


def round_key(r):
    return jax.random.fold_in(jax.random.key(1), r)


@functools.cache
def in_numpy(name):
    """The same, `(params, [Totals])`."""
    algorithm = ALGORITHMS[name]()
    settings, hparams = algorithm.settings, algorithm.hparams
    data = federation(SIZES if algorithm.num_learners is None else LEARNERS)
    columns = {name: np.asarray(column, np.float64) for name, column in data.examples.items()}
    columns["y"] = data.examples["y"]
    rows = [slice(a, b) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
    clients = [{name: column[own] for name, column in columns.items()} for own in rows]
    cohort = {k: clients[k] for k in COHORT if algorithm.num_learners is None}
    begin = jax.tree.map(lambda w: np.asarray(w, np.float64), toys.init(algorithm).params)
    beta = 0.0 if name == "fed_sgd, uniform" else 0.8
    model = numpy_rounds.Descent(begin, beta)
    learners = [numpy_rounds.Descent(dict(begin), beta) for _ in clients]
    totals = []
    for r in range(ROUNDS):
        key, rate = round_key(r), hparams["client_lr"] * hparams["lr_decay"] ** r
        if settings["algorithm"] == "fed_avg":
            found = numpy_rounds.fed_avg_round(
                key,
                model,
                cohort,
                rate=rate,
                epochs=settings["local_epochs"],
                batch_size=math.inf if settings["batch_size"] == "inf" else int(settings["batch_size"]),
                shuffle=settings["shuffle"],
                momentum=0.8,
                weighting=settings["weighting"],
            )
        elif settings["algorithm"] == "fed_sgd":
            found = numpy_rounds.fed_sgd_round(
                key, model, cohort, rate=rate, weighting=settings["weighting"]
            )
        elif settings["algorithm"] == "sgd":
            order_key, steps = toys.init(algorithm).key, settings["steps_per_round"]
            found = numpy_rounds.sgd_round(
                key,
                order_key,
                model,
                columns,
                first_step=r * steps,
                steps=steps,
                batch_size=50,
                rate=rate,
            )
        else:
            steps = settings["sync_period"]
            found = numpy_rounds.averaging_round(
                key,
                learners,
                dict(enumerate(clients)),
                first_step=r * steps,
                steps=steps,
                batch_sizes=BATCHES,
                rate=rate,
                weights=BATCHES if settings["weighting"] == "examples" else None,
            )
            model = learners[0]
        totals.append(found)
    return model.params, totals


def check_against_numpy(name, lanes, devices):
    (params, _), infos = played(name, lanes, devices)
    expected, totals = in_numpy(name)
    toys.assert_close(params, expected, rtol=1e-4, atol=3e-6)
    for info, total in zip(infos, totals, strict=True):
        assert info["examples"] == total.examples <= info["slots"]
        np.testing.assert_allclose(info["train_loss"], total.loss / total.count, rtol=1e-5)


def check_against_one_lane(name, lanes, devices):
    """Lanes and devices change nothing but the order of float sums, and the work executed."""
    models, infos = played(name, lanes, devices)
    alone, expected = played(name, 1, 1)
    toys.assert_close(models, alone, rtol=1e-4, atol=3e-6)
    for info, other in zip(infos, expected, strict=True):
        assert info.keys() == other.keys()
        for what in info.keys() - {"slots"}:
            np.testing.assert_allclose(info[what], other[what], rtol=1e-4, err_msg=what)


# Compiling takes most of the time: here each algorithm is on few layouts, below on all of them.
@pytest.mark.parametrize(
    ("name", "lanes", "devices"),
    [
        ("fed_avg", 3, 1),
        ("fed_avg, once", 1, 2),
        pytest.param("fed_avg, never", 4, 2, marks=pytest.mark.slow),
        ("fed_avg, B=inf", 4, 1),
        ("fed_sgd", 3, 2),
        ("fed_sgd, uniform", 1, 1),
        ("sgd", 1, 1),
        ("averaging, examples", 3, 2),
    ],
)
def test_lanes_and_devices_train_as_numpy_does(name, lanes, devices):
    check_against_numpy(name, lanes, devices)


@pytest.mark.parametrize(
    ("name", "lanes", "devices"),
    [("averaging, dynamic", 4, 2), pytest.param("averaging, shared", 3, 1, marks=pytest.mark.slow)],
)
def test_lanes_and_devices_change_nothing(name, lanes, devices):
    check_against_one_lane(name, lanes, devices)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(("lanes", "devices"), LAYOUTS)
def test_all_lanes_and_devices_train_alike(name, lanes, devices):
    check_against_one_lane(name, lanes, devices)
    if name not in WITHOUT_REFERENCE:
        check_against_numpy(name, lanes, devices)
