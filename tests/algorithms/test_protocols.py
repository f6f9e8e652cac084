"""The operators on configurations of models that are given, against the papers' pseudo-code."""

import functools

import averaging_toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.algorithms import protocols
from fedjax_sim.algorithms.protocols import View

M, P = 12, 5


OPERATORS = {
    "dynamic": protocols.dynamic(delta=2.0, period=1),
    "hedged": protocols.hedged(delta=2.0, period=1),
    "periodic": protocols.periodic(period=1),
    "fed_avg": protocols.fed_avg(period=1, fraction=0.5),
    "none": protocols.none(),
}


def configuration(seed, shift=0.0, weights=None):
    """Models around a point that lies `shift` from the reference in every direction."""
    rng = np.random.default_rng(seed)
    models = {"w": jnp.asarray(shift + rng.normal(size=(M, P)), jnp.float32)}
    weights = jnp.ones(M) if weights is None else jnp.asarray(weights, jnp.float32)
    reference = {"w": jnp.asarray(0.1 * rng.normal(size=P), jnp.float32)}
    return models, weights, reference


def meet(protocol, models, weights, reference, *, violations=0, seed=0, **hparams):
    """The meeting, and the models after it."""
    distances = jnp.asarray(averaging_toys.distances(models, reference), jnp.float32)
    hparams = {k: jnp.float32(v) for k, v in (dict(protocol.hparams) | hparams).items()}
    seen = (distances, weights, reference, jnp.int32(violations))
    meeting = run(jax.random.key(seed), seen, models, hparams, meet=protocol.meet)
    after = np.where(np.asarray(meeting.members)[:, None], meeting.mean["w"], models["w"])
    return meeting, {"w": after}


@functools.partial(jax.jit, static_argnames="meet")
def run(key, seen, models, hparams, *, meet):
    def weighted_sum(members):
        chosen = jnp.where(members, seen[1], 0)
        return jax.tree.map(lambda leaf: jnp.tensordot(chosen, leaf, 1), models)

    return meet(key, View(*seen, weighted_sum), hparams)


def algorithm_1(models, reference, delta, violations, order):
    """The paper's pseudo-code, in Python: (B, mean, r, v), members in the order of their joining."""
    f, r = averaging_toys.flat(models), averaging_toys.flat_one(reference)
    members = [i for i in range(M) if np.sum((f[i] - r) ** 2) > delta]
    if not members:
        return members, None, r, violations
    violations += len(members)
    if violations >= M:
        members, violations = list(range(M)), 0
    others = [i for i in order if i not in members]
    while len(members) < M and np.sum((f[members].mean(0) - r) ** 2) > delta:
        members.append(others.pop(0))
    mean = f[members].mean(0)
    return members, mean, mean if len(members) == M else r, violations


@pytest.mark.parametrize("violations", [0, 3, 11])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_dynamic_averaging_is_the_papers_algorithm(shift, violations):
    sizes = set()
    for seed in range(16):
        models, weights, reference = configuration(seed, shift)
        # About as far as the mean of all is, so that it takes some to keep the condition, or everybody.
        middle = averaging_toys.flat(models).mean(0) - averaging_toys.flat_one(reference)
        delta = float(np.sum(middle**2) * np.linspace(0.95, 1.5, 16)[seed])
        order = np.argsort(jax.random.uniform(jax.random.key(seed), (M,)))
        expected = algorithm_1(models, reference, delta, violations, order)
        settings = {"violations": violations, "seed": seed, "delta": delta}
        meeting, _ = meet(OPERATORS["dynamic"], models, weights, reference, **settings)
        assert sorted(expected[0]) == np.flatnonzero(meeting.members).tolist()
        np.testing.assert_allclose(meeting.mean["w"], expected[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(meeting.reference["w"], expected[2], rtol=1e-4, atol=1e-5)
        assert int(meeting.violations) == expected[3]
        sizes.add(len(expected[0]))
    # Sets of several sizes that are balanced, or meetings that are forced.
    assert len(sizes) > 2 if violations < 11 else sizes == {M}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_no_operator_moves_the_mean(name, weighted):
    for seed in range(5):
        own = np.random.default_rng(seed).integers(1, 9, M) if weighted else None
        models, weights, reference = configuration(seed, weights=own)
        _, after = meet(OPERATORS[name], models, weights, reference)
        before, after = (np.average(averaging_toys.flat(x), 0, weights) for x in (models, after))
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["dynamic", "hedged"])
@pytest.mark.parametrize("delta", [0.0, 0.3, 2.0, 6.0])
def test_what_is_left_of_the_divergence_is_at_most_delta(name, delta, weighted):
    partial = 0
    for seed in range(8):
        own = np.random.default_rng(seed).integers(1, 9, M) if weighted else None
        models, weights, reference = configuration(seed, weights=own)
        settings = {"seed": seed, "delta": delta}
        meeting, after = meet(OPERATORS[name], models, weights, reference, **settings)
        tolerance = delta * (1 + 1e-5) + 1e-9
        assert averaging_toys.distances(after, meeting.reference).max() <= tolerance
        mean = {"w": np.average(averaging_toys.flat(after), 0, weights)}
        assert np.average(averaging_toys.distances(after, mean), weights=weights) <= tolerance
        if not np.all(meeting.members):
            partial += 1
            np.testing.assert_array_equal(meeting.reference["w"], reference["w"])
        else:
            np.testing.assert_array_equal(meeting.reference["w"], meeting.mean["w"])
    assert partial > 0 or delta < 2


def sent(meeting):
    return {name: int(count) for name, count in meeting.traffic.items() if count}


def one_violator(length):
    """All learners at the reference but number 4, which is `length` away."""
    models = {"w": jnp.zeros((M, P)).at[4, 0].set(length)}
    return models, jnp.ones(M), {"w": jnp.zeros(P)}


def test_messages_of_a_balancing_counted_by_hand():
    # The mean of k models is 4 / k away, so that 1.5 is kept from k = 3 on: (4 / 3)^2 < 2.25.
    meeting, _ = meet(OPERATORS["dynamic"], *one_violator(4.0), delta=2.25)
    assert sent(meeting) == {
        "messages_up_violation": 1,
        "trips_up_violation": 1,
        "messages_down_request": 2,
        "trips_down_request": 2,
        "messages_up_model": 2,
        "trips_up_model": 2,
        "messages_down_model": 3,
        "trips_down_model": 1,
    }
    assert int(meeting.violations) == 1


def test_messages_of_a_forced_meeting_counted_by_hand():
    meeting, _ = meet(OPERATORS["dynamic"], *one_violator(4.0), violations=M - 1, delta=2.25)
    assert sent(meeting) == {
        "messages_up_violation": 1,
        "trips_up_violation": 1,
        "messages_down_request": M - 1,
        "trips_down_request": 1,
        "messages_up_model": M - 1,
        "trips_up_model": 1,
        "messages_down_model": M,
        "trips_down_model": 1,
    }
    assert int(meeting.violations) == 0


@pytest.mark.parametrize(("delta", "joined", "trips"), [(2.25, 2, 1), (0.5, M - 1, 2)])
def test_a_hedged_set_triples_and_from_half_on_is_everybody(delta, joined, trips):
    meeting, _ = meet(OPERATORS["hedged"], *one_violator(4.0), violations=M - 1, delta=delta)
    assert sent(meeting)["messages_up_model"] == joined
    assert sent(meeting)["trips_down_request"] == trips
    assert sent(meeting)["messages_down_model"] == joined + 1


def test_silence_costs_nothing():
    models, weights, reference = configuration(0)
    for name in ("dynamic", "hedged", "none"):
        settings = {} if name == "none" else {"delta": float("inf")}
        meeting, after = meet(OPERATORS[name], models, weights, reference, **settings)
        assert sent(meeting) == {}
        np.testing.assert_array_equal(after["w"], models["w"])
        assert not np.any(meeting.members)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 1), (0.25, 3), (0.3, 3), (1.0, M)])
def test_fed_avg_asks_a_random_part(fraction, count):
    models, weights, reference = configuration(0)
    protocol, chosen = OPERATORS["fed_avg"], set()
    for seed in range(12):
        meeting, after = meet(protocol, models, weights, reference, seed=seed, fraction=fraction)
        members = np.flatnonzero(meeting.members)
        assert len(members) == count
        chosen |= set(members.tolist())
        np.testing.assert_allclose(
            after["w"][members[0]], np.asarray(models["w"])[members].mean(0), rtol=1e-4, atol=1e-6
        )
        assert {sent(meeting)[f"messages_{k}"] for k in protocol.kinds} == {count}
    assert len(chosen) >= min(M, 2 * count)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="delta is -1; wanted a number of at least 0, or inf"):
        protocols.dynamic(delta=-1, period=1)
    with pytest.raises(ValueError, match="delta is nan"):
        protocols.hedged(delta=float("nan"), period=1)
    for factory in (protocols.periodic, protocols.none):
        with pytest.raises(ValueError, match="period is 0; wanted a whole number from 1 to 2147483647"):
            factory(period=0)
    with pytest.raises(ValueError, match="period is -3"):
        protocols.dynamic(delta=1.0, period=-3)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction is .*; wanted a number in \[0, 1\]"):
            protocols.fed_avg(period=1, fraction=fraction)
