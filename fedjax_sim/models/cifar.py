"""The network of TensorFlow's CIFAR-10 tutorial, which the FedAvg paper trains.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3,
refers to the tutorial for the model and for the preparation of images. Layers, initialisation and
distortions are those of tutorials/image/cifar10 in the history of https://github.com/tensorflow/models.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.core.checks import check_rates
from fedjax_sim.core.types import Batch, Params, Task
from fedjax_sim.models.classifier import classifier
from fedjax_sim.models.ops.conv import conv2d, max_pool3

CROP = 24  # height and width of the images that the network sees

_MAX_BRIGHTNESS = 63.0
_MIN_CONTRAST, _MAX_CONTRAST = 0.2, 1.8


class CifarCNN(nn.Module):
    """Two convolutions of 64 channels, pooled and normalised; dense layers of 384 and 192; logits."""

    num_classes: int
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]`, H and W multiples of 4, to logits `[B, num_classes]`."""
        x = local_response_norm(_Convolution(0.0, True, self.conv, name="conv1")(x))
        x = max_pool3(local_response_norm(_Convolution(0.1, False, self.conv, name="conv2")(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(_dense(384, 0.04, 0.1, "local3")(x))
        x = nn.relu(_dense(192, 0.04, 0.1, "local4")(x))
        return _dense(self.num_classes, 1 / 192, 0.0, "softmax")(x)


class _Convolution(nn.Module):
    """A SAME convolution (64 kernels, 5 x 5), perhaps 3 x 3 max-pooling of stride 2, biases and ReLU."""

    bias: float
    pool: bool
    conv: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, 64]`, or `[B, H/2, W/2, 64]` if pooled."""
        shape = (5, 5, x.shape[-1], 64)
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.05), shape)
        bias = self.param("bias", nn.initializers.constant(self.bias), shape[-1:])
        x = conv2d(x, kernel, conv=self.conv)
        # Pooling first gives the same result; biases and ReLU then touch a quarter of the numbers.
        return nn.relu((max_pool3(x) if self.pool else x) + bias[None, None, None])


def _dense(features: int, spread: float, bias: float, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        kernel_init=nn.initializers.truncated_normal(spread),
        bias_init=nn.initializers.constant(bias),
        name=name,
    )


def local_response_norm(x: jax.Array) -> jax.Array:
    """Computes x_c / (1 + 0.001 / 9 sum_{|j - c| <= 4} x_j^2)^0.75 over the channels of `[..., C]`.

    A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep convolutional neural
    networks", NIPS 2012, section 3.3, with the tutorial's constants.
    """
    channels = np.arange(x.shape[-1])
    near = np.abs(channels[:, None] - channels) <= 4
    # A product with a banded matrix gives the window sums, and roots give the power: forward and
    # backward of 50 images of 12 x 12 x 64 take 1.2 ms, against 3.7 with a general power and 52 with
    # sums of shifted slices (one Zen 5 core, jax 0.10.2).
    sums = x * x @ jnp.asarray(near, x.dtype)
    root = lax.rsqrt(1 + 0.001 / 9 * sums)
    return x * (root * jnp.sqrt(root))


def distort(x: jax.Array, key: jax.Array) -> jax.Array:
    """Distorts stored images `[B, H, W, C]` for training, to floats `[B, 24, 24, C]`.

    Applies a random crop, a random left-right flip, random brightness and contrast, and `standardise`.
    The result for a row depends on the key and its place in the batch, not on the batch's length.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    return jax.vmap(_distort_one)(x, keys)


def _distort_one(image: jax.Array, key: jax.Array) -> jax.Array:
    """Distorts an image `[H, W, C]` to `[24, 24, C]`."""
    height, width, channels = image.shape
    down, across, swap, brightness, contrast = jax.random.uniform(key, (5,))
    top = (down * (height - CROP + 1)).astype(jnp.int32)
    left = (across * (width - CROP + 1)).astype(jnp.int32)
    image = lax.dynamic_slice(image, (top, left, jnp.zeros_like(top)), (CROP, CROP, channels))
    image = jnp.where(swap < 0.5, image[:, ::-1], image).astype(jnp.float32)
    # Standardisation removes any change of brightness; it is here because the tutorial has it.
    image = image + _MAX_BRIGHTNESS * (2 * brightness - 1)
    mean = image.mean((0, 1), keepdims=True)
    factor = _MIN_CONTRAST + (_MAX_CONTRAST - _MIN_CONTRAST) * contrast
    return standardise((image - mean) * factor + mean)


def central(x: jax.Array) -> jax.Array:
    """Returns standardised central crops `[B, 24, 24, C]` of stored test images `[B, H, W, C]`."""
    top, left = ((size - CROP) // 2 for size in x.shape[1:3])
    crop = x[:, top : top + CROP, left : left + CROP]
    return standardise(crop.astype(jnp.float32))


def standardise(x: jax.Array) -> jax.Array:
    """Gives each image of `[..., H, W, C]` mean 0 and variance 1 over all its numbers.

    The standard deviation counts as at least 1 / sqrt(H W C), so a uniform image becomes 0.
    """
    axes = (-3, -2, -1)
    x = x - x.mean(axes, keepdims=True)
    deviation = jnp.sqrt(jnp.square(x).mean(axes, keepdims=True))
    return x / jnp.maximum(deviation, 1 / math.sqrt(math.prod(x.shape[-3:])))


def cifar_cnn(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (32, 32, 3),
    *,
    weight_decay: float = 0.0,
    conv: str = "auto",
) -> Task:
    """Makes the tutorial's network: 1,068,298 parameters on three colours and ten classes.

    It trains on `distort`ed images, distorted anew at each step, and is evaluated on `central` crops.

    Args:
      num_classes: number of classes.
      input_shape: shape of a stored image, at least 24 x 24.
      weight_decay: factor of `||w||^2 / 2`, which is added to the training loss for the weights of the
        two hidden dense layers. The tutorial has 0.004; the FedAvg paper does not say.
      conv: that of `conv2d`.

    Returns:
      A task with the metrics "accuracy" and "loss", the latter without weight decay.

    Raises:
      ValueError: the images are smaller than the crop, or `weight_decay` is negative or not finite.
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < CROP:
        raise ValueError(
            f"input_shape is {input_shape}; wanted (height, width, channels) of at least "
            f"{CROP} x {CROP}, since the network sees crops of that size"
        )
    check_rates({"weight_decay": weight_decay})
    prepared = classifier(CifarCNN(num_classes, conv), (CROP, CROP, input_shape[-1]))

    def loss(params: Params, batch: Batch, key: jax.Array):
        total, count = prepared.loss(params, dict(batch, x=distort(batch["x"], key)), key)
        if weight_decay:
            kernels = [params[layer]["kernel"].astype(jnp.float32) for layer in ("local3", "local4")]
            total = total + weight_decay / 2 * sum(jnp.sum(kernel**2) for kernel in kernels) * count
        return total, count

    def metrics(params: Params, batch: Batch):
        return prepared.metrics(params, dict(batch, x=central(batch["x"])))

    def predict(params: Params, batch: Batch) -> jax.Array:
        return prepared.predict(params, dict(batch, x=central(batch["x"])))

    return prepared._replace(loss=loss, metrics=metrics, predict=predict)
