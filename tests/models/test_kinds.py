"""Models of other libraries and other shapes get one sentence that says what to write."""

import types

import jax
import pytest
import toys
from small_models import bare_apply, bare_init, batch_of, task_of


def made_by(package):
    """A class as another library would define it, without importing that library."""
    return type("Model", (), {"__module__": f"{package}._src.layers", "__call__": lambda self, x: x})


def of_a_user(package):
    return type("Mine", (made_by(package),), {"__module__": "__main__"})


@pytest.mark.parametrize(
    ("package", "cure"),
    [
        ("haiku", r"a Haiku transform: write the pair .*hk\.without_apply_rng\(model\)\.apply"),
        ("equinox", r"an Equinox module: write the pair .*eqx\.filter.*eqx\.combine"),
        ("torch", "a PyTorch module: .* write the same layers as a flax module"),
        ("keras", "a Keras model: .* write the same layers as a flax module"),
    ],
)
def test_a_model_of_another_library_is_refused_with_the_cure(package, cure):
    for model in (made_by(package)(), of_a_user(package)(), of_a_user(package)):
        with pytest.raises(ValueError, match=cure):
            task_of(model)


def test_an_object_with_init_and_apply_is_a_pair():
    task = task_of(types.SimpleNamespace(init=bare_init, apply=bare_apply))
    pair = task_of((bare_init, bare_apply))
    params = task.init(jax.random.key(0))
    toys.assert_same(params, pair.init(jax.random.key(0)))
    toys.assert_same(task.metrics(params, batch_of()), pair.metrics(params, batch_of()))


@pytest.mark.parametrize(
    ("init", "apply", "message"),
    [
        (lambda rng, x: bare_init(rng), bare_apply, r"init takes \(rng, x\); wanted init\(key\)"),
        (bare_init, lambda params: params, r"apply takes \(params\); wanted apply\(params, x\)"),
        (
            bare_init,
            lambda params, rng, x: bare_apply(params, x),
            r"takes \(params, rng, x\); .*apply\(params, None, x\)",
        ),
        # Two arguments would do, and x would be taken for a key.
        (
            bare_init,
            lambda params, rng, *inputs: bare_apply(params, *inputs),
            r"takes \(params, rng, inputs\); .*apply\(params, None, x\)",
        ),
    ],
)
def test_a_pair_with_other_arguments_is_refused(init, apply, message):
    with pytest.raises(ValueError, match=message):
        task_of((init, apply))


class Opaque:
    """A function whose arguments Python cannot tell, like those of some extensions."""

    __signature__ = "unknown"

    def __call__(self, params, x):
        return bare_apply(params, x)


def test_a_function_without_a_known_signature_is_accepted():
    assert task_of((bare_init, Opaque())).num_classes == toys.CLASSES
    assert task_of((bare_init, lambda *inputs: bare_apply(*inputs))).num_classes == toys.CLASSES
