"""Gossip against dynamic averaging, NumPy, and the rates that theory gives."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim import topologies
from fedjax_sim.compression import low_rank, qsgd, quantize, random_k, top_k

pytestmark = pytest.mark.usefixtures("quick_compilation")

M = 6
SETTINGS = {"num_learners": M, "batch_size": 4, "client_lr": 0.1}


@pytest.fixture(scope="module")
def data():
    return toys.federation((8,) * M)


@pytest.fixture(scope="module")
def linear():
    return fs.models.classifier(fs.models.MLP((toys.CLASSES,)), (toys.FEATURES,))


def apart(task, m=M, scale=1.0):
    """Models of learners that disagree."""
    keys = jax.random.split(jax.random.key(4), m)
    return [jax.tree.map(lambda w: scale * w, task.init(key)) for key in keys]


def run(algorithm, data, num_rounds, **settings):
    settings = {"key": jax.random.key(0), "eval_every": 1, "layout": fs.Layout()} | settings
    return fs.simulate(algorithm, data, num_rounds=num_rounds, **settings)


def flat(learners):
    """Returns models `[m, ...]` as float64 rows, `[m, P]`."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(learners)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def test_complete_gossip_is_continuous_averaging(linear, data):
    settings = SETTINGS | {"stream": "repeat"}
    gossip = run(fs.gossip(linear, topologies.complete(), **settings), data, 4)
    averaging = fs.dynamic_averaging(linear, fs.protocols.continuous(), **settings)
    toys.assert_close(gossip.state.learners, run(averaging, data, 4).state.learners, 1e-4, 1e-6)


def test_models_are_mixed_by_the_matrix_after_a_step(linear, data):
    """Against learners that train alone, from where each round begins."""
    rng = np.random.default_rng(0)
    permutations = [np.eye(M)[rng.permutation(M)] for _ in range(3)]
    matrices = np.stack(
        [
            0.5 * np.eye(M) + 0.3 * p + 0.2 * q
            for p, q in zip(permutations, permutations[1:] + permutations[:1], strict=True)
        ]
    )
    learners = apart(linear)
    for rounds in range(1, 4):
        algorithm = fs.gossip(linear, topologies.mixing(matrices), initial=apart(linear), **SETTINGS)
        found = flat(run(algorithm, data, rounds).state.learners)
        alone = fs.dynamic_averaging(
            linear, fs.protocols.none(), stream="repeat", initial=learners, **SETTINGS
        )
        state = toys.init(alone, num_clients=M)._replace(round=jnp.int32(rounds - 1))
        trained, _ = toys.play(alone, data, range(M), state=state)
        mixed = jax.tree.map(
            lambda leaf, w=matrices[rounds - 1]: jnp.tensordot(jnp.float32(w), leaf, 1), trained.learners
        )
        np.testing.assert_allclose(found, flat(mixed), rtol=1e-4, atol=1e-6)
        learners = [jax.tree.map(lambda leaf, i=i: leaf[i], mixed) for i in range(M)]


def test_gamma_is_the_share_of_the_way(linear, data):
    w = topologies.ring().matrices(M)[0]
    still = SETTINGS | {"client_lr": 0.0, "initial": apart(linear)}
    state = run(fs.gossip(linear, topologies.ring(), gamma=0.25, **still), data, 1).state
    before = flat(jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart(linear)))
    np.testing.assert_allclose(flat(state.learners), 0.75 * before + 0.25 * w @ before, atol=1e-6)


@pytest.mark.parametrize("codec", [None, top_k(0.5)])
def test_devices_mix_as_one_does(linear, data, codec):
    algorithm = fs.gossip(
        linear, topologies.expander(seed=1), codec=codec, gamma=0.5, initial=apart(linear), **SETTINGS
    )
    one = run(algorithm, data, 3).state
    two = run(algorithm, data, 3, layout=toys.layout(lanes=2, devices=2)).state
    toys.assert_close(one.learners, two.learners, 1e-4, 1e-6)


THREE_DEVICES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 3)
sys.path.insert(0, sys.argv[1])
import test_gossip, toys
import fedjax_sim as fs
assert len(jax.devices()) == 3
linear = fs.models.classifier(fs.models.MLP((toys.CLASSES,)), (toys.FEATURES,))
algorithm = fs.gossip(
    linear, fs.topologies.ring(), initial=test_gossip.apart(linear), **test_gossip.SETTINGS
)
data = toys.federation((8,) * test_gossip.M)
one, three = (
    test_gossip.run(algorithm, data, 3, layout=toys.layout(devices=devices)).state for devices in (1, 3)
)
toys.assert_close(one.learners, three.learners, 1e-4, 1e-6)
"""


@pytest.mark.slow
def test_blocks_of_models_go_round_three_devices():
    """With two, both ways round are the same."""
    here = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here.parent, here.parents[1])))}
    command = [sys.executable, "-c", THREE_DEVICES, str(here)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_codec_that_loses_nothing_is_plain_gossip(linear, data):
    plain = run(fs.gossip(linear, topologies.ring(), initial=apart(linear), **SETTINGS), data, 3)
    algorithm = fs.gossip(linear, topologies.ring(), codec=top_k(1.0), initial=apart(linear), **SETTINGS)
    toys.assert_close(run(algorithm, data, 3).state.learners, plain.state.learners, 1e-4, 1e-5)


def test_choco_follows_its_pseudo_code(linear, data):
    """Algorithm 2 of Koloskova et al. with rate 0, in NumPy; top-k draws nothing."""
    gamma, w = 0.3, topologies.ring().matrices(M)[0]
    algorithm = fs.gossip(
        linear,
        topologies.ring(),
        codec=top_k(0.3),
        gamma=gamma,
        initial=apart(linear),
        **SETTINGS | {"client_lr": 0.0},
    )
    state = run(algorithm, data, 5).state
    models = apart(linear)
    x = [[np.asarray(leaf) for leaf in jax.tree.leaves(model)] for model in models]
    public = [[np.zeros_like(leaf) for leaf in model] for model in x]
    for _ in range(5):
        for i in range(M):
            for leaf in range(len(x[i])):
                lost = (x[i][leaf] - public[i][leaf]).reshape(-1)
                kept = np.argsort(-np.abs(lost), kind="stable")[: max(1, int(np.ceil(0.3 * lost.size)))]
                public[i][leaf].reshape(-1)[kept] += lost[kept]
        for i in range(M):
            for leaf in range(len(x[i])):
                pull = sum(w[i, j] * (public[j][leaf] - public[i][leaf]) for j in range(M))
                x[i][leaf] = x[i][leaf] + gamma * pull
    wanted = np.stack([np.concatenate([leaf.reshape(-1) for leaf in model]) for model in x])
    np.testing.assert_allclose(flat(state.learners), wanted, rtol=1e-4, atol=1e-5)
    known = np.stack([np.concatenate([leaf.reshape(-1) for leaf in model]) for model in public])
    np.testing.assert_allclose(flat(state.public), known, rtol=1e-4, atol=1e-5)


def test_models_agree_at_the_rate_of_the_spectral_gap(linear):
    m, data = 10, toys.federation((4,) * 10)
    settings = {"num_learners": m, "batch_size": 4, "client_lr": 0.0, "initial": apart(linear, m)}
    rows = run(fs.gossip(linear, topologies.ring(), **settings), data, 40).rows
    consensus = [row["consensus"] for row in rows[1:]]
    rate = np.sqrt(consensus[-1] / consensus[-6]) ** (1 / 5)
    assert rate == pytest.approx(1 - topologies.ring().spectral_gap(m), rel=1e-2)
    # In a ring of ten: (1 + 2 cos(2 pi / 10)) / 3.
    assert topologies.ring().spectral_gap(m) == pytest.approx(1 - (1 + 2 * np.cos(np.pi / 5)) / 3)
    before = flat(jax.tree.map(lambda *w: jnp.stack(w), *apart(linear, m))).mean(axis=0)
    after = run(fs.gossip(linear, topologies.ring(), **settings), data, 40).state
    np.testing.assert_allclose(flat(after.learners).mean(axis=0), before, atol=1e-5)


@pytest.mark.parametrize("codec", [top_k(0.1), random_k(0.3), qsgd(16)])
def test_choco_reaches_consensus_linearly(linear, data, codec):
    gamma = 0.2 if codec.name != "qsgd" else 0.6
    settings = SETTINGS | {"client_lr": 0.0}
    algorithm = fs.gossip(
        linear, topologies.ring(), codec=codec, gamma=gamma, initial=apart(linear), **settings
    )
    consensus = [row["consensus"] for row in run(algorithm, data, 400).rows[1:]]
    assert consensus[-1] < 1e-4 * consensus[0]
    # Linearly: each half of the decline, down to rounding, takes about as many rounds.
    reached = [
        next(t for t, c in enumerate(consensus) if c < share * consensus[0]) for share in (1e-2, 1e-4)
    ]
    assert reached[1] < 3 * reached[0]
    mean = flat(jax.tree.map(lambda *w: jnp.stack(w), *apart(linear))).mean(axis=0)
    found = flat(run(algorithm, data, 400).state.learners)
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=1e-4)


def test_one_message_for_each_neighbour_is_counted(linear, data):
    params = toys.FEATURES * toys.CLASSES + toys.CLASSES
    plain = run(fs.gossip(linear, topologies.ring(), **SETTINGS), data, 3)
    assert plain.rows[-1]["bytes_up"] == 3 * M * 2 * 4 * params
    one_way = run(fs.gossip(linear, topologies.exponential(), **SETTINGS), data, 3)
    assert one_way.rows[-1]["messages_up_neighbour"] == 3 * M
    coded = fs.gossip(linear, topologies.ring(), codec=quantize(8), **SETTINGS)
    row = run(coded, data, 3).rows[-1]
    assert row["messages_up_neighbour"] == 3 * M * 2
    assert row["bytes_up"] == 3 * M * 2 * (params + 2 * 8)
    assert row["bytes_down"] == 0


def test_exponential_gossip_of_a_power_of_two_averages_exactly(linear):
    m, data = 8, toys.federation((4,) * 8)
    settings = {"num_learners": m, "batch_size": 4, "client_lr": 0.0, "initial": apart(linear, m)}
    state = run(fs.gossip(linear, topologies.exponential(), **settings), data, 3).state
    learners = flat(state.learners)
    np.testing.assert_allclose(learners, np.tile(learners.mean(axis=0), (m, 1)), atol=1e-6)


TOPOLOGIES = {
    "ring": (topologies.ring(), 3),
    "torus": (topologies.torus(), 5),
    "complete": (topologies.complete(), 12),
    "expander": (topologies.expander(degree=4), 5),
    "exponential": (topologies.exponential(), 2),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topologies_are_doubly_stochastic(name):
    topology, most = TOPOLOGIES[name]
    for w in topology.matrices(12):
        np.testing.assert_allclose(w.sum(axis=0), 1)
        np.testing.assert_allclose(w.sum(axis=1), 1)
        assert w.min() >= 0
        assert (w > 0).sum(axis=1).max() <= most
        if name != "exponential":
            np.testing.assert_array_equal(w, w.T)
    assert 0 < topology.spectral_gap(12) <= 1


def halves():
    """Learners 0, 1 and 5 mix, and so do the others."""
    w, order = np.kron(np.eye(2), np.full((3, 3), 1 / 3)), [0, 1, 3, 4, 5, 2]
    return w[np.ix_(order, order)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: fs.gossip(t, topologies.mixing(halves()), **SETTINGS), r"learners \[2, 3, 4\] never"),
        (lambda t: fs.gossip(t, topologies.mixing(np.eye(4)), **SETTINGS), r"wanted \[T, 6, 6\]"),
        (lambda t: fs.gossip(t, topologies.mixing(2 * np.eye(6)), **SETTINGS), "doubly stochastic"),
        (
            lambda t: fs.gossip(t, topologies.mixing(np.tri(6) / np.tri(6).sum(1)[:, None]), **SETTINGS),
            "doubly stochastic",
        ),
        (lambda t: fs.gossip(t, topologies.torus(), **SETTINGS | {"num_learners": 7}), "a prime number"),
        (lambda t: fs.gossip(t, np.eye(6), **SETTINGS), r"wanted one such as fs.topologies.ring\(\)"),
        (
            lambda t: fs.gossip(t, topologies.exponential(), codec=top_k(0.5), **SETTINGS),
            "codec is top_k on the topology exponential, whose neighbours change",
        ),
        (
            lambda t: fs.gossip(
                t,
                topologies.mixing(np.roll(np.eye(6), 1, 0) / 2 + np.eye(6) / 2),
                codec=top_k(0.5),
                **SETTINGS,
            ),
            "or do not hear each other",
        ),
        (lambda t: fs.gossip(t, topologies.ring(), codec=8, **SETTINGS), "codec is 8"),
        (
            lambda t: fs.gossip(t, topologies.ring(), codec=low_rank(1), **SETTINGS),
            "codec is 'low_rank'",
        ),
        (lambda t: fs.gossip(t, topologies.ring(), gamma=1.5, **SETTINGS), "gamma is 1.5"),
        (lambda t: fs.gossip(t, topologies.ring(), **SETTINGS | {"num_learners": 1}), "at least 2"),
        (lambda t: topologies.expander(degree=3), "degree is 3; wanted an even number"),
    ],
)
def test_what_makes_no_sense_is_refused(linear, make, message):
    with pytest.raises(ValueError, match=message):
        make(linear)
