"""The FedAvg paper's models of MNIST, logistic regression, and a network with dropout.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3.
The paper does not give its initialisation; kernels are Glorot-uniform and biases zero, as in the
code that its authors' group published later.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim.core.types import Task
from fedjax_sim.models.classifier import classifier
from fedjax_sim.models.ops.conv import conv2d, max_pool2

_glorot = nn.initializers.glorot_uniform()


class MLP(nn.Module):
    """Dense layers with ReLU between them; `features` ends with the number of classes."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, ...]` to logits `[B, features[-1]]`."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.features):
            x = nn.Dense(width, kernel_init=_glorot)(x if i == 0 else nn.relu(x))
        return x


class ConvPool(nn.Module):
    """A convolution of `features` kernels, biases, ReLU and, if `pool`, 2 x 2 max-pooling."""

    features: int
    size: int
    padding: str = "SAME"
    pool: bool = True
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', features]`, or `[B, H'/2, W'/2, features]` if pooled."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _glorot, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = conv2d(x, kernel, padding=self.padding, conv=self.conv)
        # Pooling first gives the same result; biases and ReLU then touch a quarter of the numbers.
        return nn.relu((max_pool2(x) if self.pool else x) + bias[None, None, None])


class CNN(nn.Module):
    """Max-pooled 5 x 5 convolutions of 32 and 64 channels, a dense layer of 512, logits."""

    num_classes: int
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]`, H and W multiples of 4, to logits `[B, num_classes]`."""
        x = ConvPool(32, 5, conv=self.conv)(x)
        x = ConvPool(64, 5, conv=self.conv)(x)
        return MLP((512, self.num_classes))(x)


class _Dropout(nn.Module):
    """Drops each entry with a probability that is a multiple of 1/256, and scales the others up.

    A random byte per entry is exact for such a rate. On 10 x 12,544 entries it takes 0.14 ms, where
    flax's 32 bits take 0.55 (one core of an Intel Xeon, jax 0.10.2).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, D]` to `[B, D]`."""
        if not train:
            return x
        rows, width = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (rows, -(-width // 4)))
        drawn = lax.bitcast_convert_type(words, jnp.uint8).reshape(rows, -1)[:, :width]
        return jnp.where(
            drawn >= jnp.uint8(256 * self.rate), x / (1 - self.rate), jnp.zeros((), x.dtype)
        )


class DropoutCNN(nn.Module):
    """VALID 3 x 3 convolutions of 32 and 64 channels, max-pooling, a layer of 128, logits; dropout."""

    num_classes: int
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]`, H and W even, to logits `[B, num_classes]`."""
        x = ConvPool(32, 3, "VALID", pool=False, conv=self.conv)(x)
        x = ConvPool(64, 3, "VALID", conv=self.conv)(x)
        x = _Dropout(0.25)(x.reshape(x.shape[0], -1), train)
        x = nn.relu(nn.Dense(128, kernel_init=_glorot)(x))
        x = _Dropout(0.5)(x, train)
        return nn.Dense(self.num_classes, kernel_init=_glorot)(x)


def mnist_2nn(num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1)) -> Task:
    """Makes the paper's 2NN, with two layers of 200 ReLU units: 199,210 parameters on 28 x 28 digits."""
    return classifier(MLP((200, 200, num_classes)), input_shape)


def mnist_cnn(
    num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1), *, conv: str = "auto"
) -> Task:
    """Makes the paper's convolutional network: 1,663,370 parameters on 28 x 28 digits.

    `conv` is that of `conv2d`.
    """
    return classifier(CNN(num_classes, conv), input_shape)


def dropout_cnn(
    num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1), *, conv: str = "auto"
) -> Task:
    """Makes `DropoutCNN`: 1,199,882 parameters on 28 x 28 digits, 1,626,442 on CIFAR-10's 32 x 32 x 3.

    S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan, "Adaptive
    federated optimization", ICLR 2021, https://arxiv.org/abs/2003.00295, train it on EMNIST;
    F. Granqvist, C. Song, Á. Cahill, R. van Dalen, M. Pelikan, Y. S. Chan, X. Feng, N. Krishnaswami,
    V. Jina, M. Chitnis, "pfl-research: simulation framework for accelerating research in private
    federated learning", NeurIPS 2024, https://arxiv.org/abs/2404.06430, on CIFAR-10.

    The loss drops a quarter of the pooled values and half of the 128 units, by its key. The choice for a
    row depends on its place in the batch, not on the batch's length. Metrics drop nothing. `conv` is
    that of `conv2d`.
    """
    return classifier(DropoutCNN(num_classes, conv), input_shape)


def logistic_regression(num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1)) -> Task:
    """Makes one linear layer: 7,850 parameters on 28 x 28 digits."""
    return classifier(MLP((num_classes,)), input_shape)
