"""Features that differ between clients: noise of growing strength, and rotated images."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from fedjax_sim.core.checks import check_rates, check_seed
from fedjax_sim.data.draws import generator_of
from fedjax_sim.data.drift import image_size
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.storage import mapped


def add_noise(data: FederatedData, variance: float = 0.1, *, seed: int = 0) -> FederatedData:
    """Adds Gaussian noise to the features, more of it from client to client.

    Client i of 1 to N gets noise of variance `variance * i / N`, the sigma i / N of Q. Li, Y. Diao, Q.
    Chen, B. He, "Federated learning on non-IID data silos: an experimental study", ICDE 2022,
    https://arxiv.org/abs/2102.02079, section 4, where `variance` is sigma. (Its code,
    https://github.com/Xtra-Computing/NIID-Bench, instead has standard deviations of sigma (i - 1) / (N
    - 1), and new noise in every epoch; here it is drawn once.) Give the data to test on another seed.

    Args:
      data: federation on the host. Pixels, uint8 in `"x"`, are first divided by 255, as models do; the
        noisy values are not clipped.
      variance: variance of the last client's noise.
      seed: seed of the noise.

    Returns:
      A federation in memory with floats in `"x"`, float32 if they were pixels.

    Raises:
      ValueError: `variance` is negative or not finite, or `"x"` holds neither floats nor uint8.
    """
    check_rates({"variance": variance})
    check_seed(seed)
    dtype = _dtype_of_x(data)
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(
            f"{data.name or 'data'}: column 'x' holds {dtype}; wanted floats, or pixels as uint8: noise "
            "added to other integers, such as symbols of a text, means nothing"
        )
    generator = generator_of(seed)

    def noisy(x: np.ndarray, client: int) -> np.ndarray:
        deviation = math.sqrt(variance * (client + 1) / data.num_clients)
        noise = deviation * generator.standard_normal(x.shape)
        return noise + (x / 255 if dtype == np.uint8 else x)

    return _changed(data, noisy, np.dtype(np.float32) if dtype == np.uint8 else dtype)


def rotate(data: FederatedData, degrees: Sequence[float] = (0, 90, 180, 270)) -> FederatedData:
    """Rotates all images of client k, counted from 0, by `degrees[k % len(degrees)]`.

    The default is the rotated MNIST of A. Ghosh, J. Chung, D. Yin, K. Ramchandran, "An efficient
    framework for clustered federated learning", NeurIPS 2020, https://arxiv.org/abs/2006.04088,
    section 6, except that each image occurs once; the paper has each of them at every angle.

    Positive angles turn counter-clockwise with row 0 at the top, as in `np.rot90`. Quarter turns of
    square images are exact. Otherwise values between pixels are interpolated bilinearly, values
    outside the image are zero, and integers are rounded.

    Args:
      data: federation on the host, with images in `"x"`: `[n, H, W]` or `[n, H, W, C]`, or `[n, P]`,
        squares of P pixels row by row.
      degrees: one or more angles, in degrees.

    Returns:
      A federation in memory, of the same shapes and dtypes.

    Raises:
      ValueError: there is no angle, an angle is not finite, or `"x"` does not hold images.
    """
    degrees = list(degrees)
    if not degrees or not all(map(math.isfinite, degrees)):
        raise ValueError(f"degrees are {degrees}; wanted one or more finite angles, such as (0, 90)")
    dtype = _dtype_of_x(data)
    height, width = image_size(data.examples["x"].shape)

    def rotated(x: np.ndarray, client: int) -> np.ndarray:
        images = x.reshape(len(x), height, width, -1)
        angle = degrees[client % len(degrees)] % 360
        if angle % 90 == 0 and (height == width or angle % 180 == 0):
            turned = np.rot90(images, angle // 90, axes=(1, 2))
        else:
            wide = images.astype(np.float64)
            turned = ndimage.rotate(
                wide, angle, axes=(1, 2), reshape=False, order=1, mode="grid-constant"
            )
            turned = turned if dtype.kind == "f" else np.rint(turned)
        return turned.reshape(x.shape)

    return _changed(data, rotated, dtype)


def _dtype_of_x(data: FederatedData) -> np.dtype:
    if "x" not in data.examples:
        raise ValueError(
            f"{data.name or 'data'} has the columns {sorted(data.examples)}; wanted features in 'x'"
        )
    return np.dtype(data.examples["x"].dtype)


def _changed(
    data: FederatedData, change: Callable[[np.ndarray, int], np.ndarray], dtype: np.dtype
) -> FederatedData:
    """Returns the data with `change(x [n_k, ...], k)` in place of each client's features."""
    column = data.examples["x"]
    mapped.verify(column)
    column = np.asarray(column)
    x = np.zeros(column.shape, dtype)
    for client, (start, end) in enumerate(zip(data.offsets[:-1], data.offsets[1:], strict=True)):
        if start < end:
            x[start:end] = change(column[start:end], client)
    return dataclasses.replace(data, examples={**data.examples, "x": x})
