"""ResNet-18 against its parts written with XLA's convolutions, and its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import lax

import fedjax_sim as fs
from fedjax_sim.core import trees
from fedjax_sim.models.resnet import halving_conv

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = fs.models.ResNet18(num_classes=3, groups=2, widths=(4, 6))


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def by_xla(x, kernel, stride=1):
    pads = ((kernel.shape[0] // 2,) * 2,) * 2
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=names)


def test_the_number_of_parameters_is_that_of_the_usual_form_for_cifar():
    def parameters(**settings):
        params = jax.eval_shape(fs.models.resnet18(**settings).init, jax.random.key(0))
        return trees.num_params(params)

    blocks = sum(
        2 * 9 * (width_in * width + 3 * width * width) // 2
        + 4 * 2 * width
        + (width_in != width) * (width_in * width + 2 * width)
        for width_in, width in ((64, 64), (64, 128), (128, 256), (256, 512))
    )
    assert parameters() == 11_173_962 == 27 * 64 + 2 * 64 + blocks + 5130
    assert parameters(num_classes=100, input_shape=(16, 24, 1)) == 11_173_962 + 90 * 513 - 18 * 64


def test_a_convolution_of_stride_2_is_xlas():
    x, kernel = random(0, 2, 6, 4, 3), random(1, 3, 3, 3, 5)
    weights = random(2, 2, 3, 2, 5)

    def both(conv):
        return jax.jit(jax.value_and_grad(lambda x, k: (weights * conv(x, k)).sum(), (0, 1)))(x, kernel)

    toys.assert_close(both(halving_conv), both(lambda x, k: by_xla(x, k, 2)), rtol=1e-4, atol=1e-5)


def test_lanes_with_kernels_of_their_own_are_separate_convolutions():
    x, kernel = random(0, 2, 2, 4, 4, 3), random(1, 2, 3, 3, 3, 5)
    together = jax.jit(jax.vmap(halving_conv))(x, kernel)
    alone = [halving_conv(x[i], kernel[i]) for i in range(2)]
    toys.assert_close(together, jnp.stack(alone), rtol=1e-4, atol=1e-5)


def group_norm(x, params):
    """By loops over images and groups, as the paper's equations stand."""
    y = np.empty_like(x)
    size = x.shape[-1] // 2
    for image in range(len(x)):
        for first in (0, size):
            group = x[image, ..., first : first + size]
            y[image, ..., first : first + size] = (group - group.mean()) / np.sqrt(group.var() + 1e-6)
    return y * params["scale"] + params["bias"]


def by_parts(params, x):
    """The network of `TINY` written out: two pairs of blocks, the second of stride 2."""

    def conv(layer, x, stride=1):
        return np.asarray(by_xla(x, layer["kernel"], stride))

    x = np.maximum(group_norm(conv(params["_Convolution_0"], x), params["GroupNorm_0"]), 0)
    for i, stride in enumerate((1, 1, 2, 1)):
        block = params[f"_Block_{i}"]
        y = np.maximum(group_norm(conv(block["_Convolution_0"], x, stride), block["GroupNorm_0"]), 0)
        y = group_norm(conv(block["_Convolution_1"], y), block["GroupNorm_1"])
        if stride == 2:
            x = group_norm(conv(block["_Convolution_2"], x, 2), block["GroupNorm_2"])
        x = np.maximum(x + y, 0)
    return x.mean(axis=(1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.mark.slow
def test_the_network_is_its_parts():
    x = random(0, 2, 8, 8, 3)
    params = TINY.init(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * random(2, *leaf.shape), params)
    got = jax.jit(TINY.apply)({"params": params}, x)
    expected = by_parts(jax.device_get(params), np.asarray(x))
    toys.assert_close(np.asarray(got), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 5}, "groups is 5; wanted a divisor of 64"),
        ({"groups": 0}, "groups is 0; wanted a whole number"),
        ({"input_shape": (28, 28, 1)}, r"input_shape is \(28, 28, 1\); .* multiples of 8"),
        ({"input_shape": (784,)}, r"input_shape is \(784,\); wanted \(height, width, channels\)"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fs.models.resnet18(**settings)
