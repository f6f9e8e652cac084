"""Concept drift: the meaning of a stream's labels or images changes during training.

A stream is the sequence of rows that a learner, a client of a `FederatedData`, observes: at step t, from
0, its rows `t * B` to `t * B + B - 1`, with batches of B. A concept is the distribution of an example,
the same for all learners; a drift changes it for all of them at once. Any data can drift: a `Drift`
alters each batch inside the compiled step and leaves the stored rows alone. Streams with a drift in the
rows themselves come from `random_graphical_model`.

M. Kamp, L. Adilova, J. Sicking, F. Hüger, P. Schlicht, T. Wirtz, S. Wrobel, "Efficient decentralized
deep learning by dynamic model averaging", ECML-PKDD 2018, https://arxiv.org/abs/1807.03210, trigger
drifts at random steps; the ways of changing labels and images here are our own choice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from fedjax_sim.core.checks import check_count, check_seed
from fedjax_sim.core.types import Batch


class Drift(NamedTuple):
    """A change of a stream's concept, the same for all learners.

    Attributes:
      apply: pure function `apply(batch, step) -> batch` of one learner's batch, column -> `[B, ...]`,
        and the step, `[]` int32 from 0; it keeps shapes and dtypes.
      at: the steps at which a new concept begins; empty for a gradual change.
      settings: name -> JSON value; they identify the drift in a run's configuration.
    """

    apply: Callable[[Batch, jax.Array], Batch]
    at: tuple[int, ...]
    settings: Mapping[str, Any]


def drift_steps(probability: float, num_steps: int, seed: int = 0) -> tuple[int, ...]:
    """Draws the steps of a stream at which a drift happens, each but step 0 independently.

    Args:
      probability: probability of a drift at a step.
      num_steps: length of the stream; a longer one begins with the same drifts.
      seed: seed of the draws.

    Returns:
      The steps, ascending, from 1 to at most `num_steps - 1`.

    Raises:
      ValueError: an argument is out of range.
    """
    if not 0 <= probability <= 1:
        raise ValueError(
            f"probability is {probability}; wanted a number from 0 to 1, the chance of a drift at a step"
        )
    num_steps = check_count("num_steps", num_steps)
    check_seed(seed)
    # PCG64 by name: default_rng may change its algorithm between versions of NumPy.
    generator = np.random.Generator(np.random.PCG64(seed))
    return tuple((1 + np.flatnonzero(generator.random(num_steps - 1) < probability)).tolist())


def label_drift(at: Sequence[int], *, num_classes: int, seed: int = 0) -> Drift:
    """Permutes the labels, with a new random permutation of the classes from each step of `at` on.

    Before the first of these steps, labels are as stored. Each permutation is drawn from all that
    differ from the previous one.

    Args:
      at: ascending steps, such as those of `drift_steps`; if empty, labels never change.
      num_classes: number of labels, as in `FederatedData.num_classes`.
      seed: seed of the permutations.

    Returns:
      A drift of the column "y", integers `[B]` in `[0, num_classes)`.

    Raises:
      ValueError: the steps are not ascending whole numbers of at least 1, `num_classes` is below 2, the
        seed is negative, or, when applied, labels are not `[B]`.
    """
    at = check_drift_times("at", at)
    num_classes = check_count("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError("num_classes is 1; wanted at least 2: a single class has no other to swap with")
    check_seed(seed)
    generator = np.random.Generator(np.random.PCG64(seed))
    permutations = [np.arange(num_classes, dtype=np.int32)]
    while len(permutations) <= len(at):
        permutation = generator.permutation(permutations[0])
        if (permutation != permutations[-1]).any():
            permutations.append(permutation)
    table, steps = np.stack(permutations), np.array(at, np.int32)

    def apply(batch: Batch, step: jax.Array) -> Batch:
        y = batch["y"]
        if y.ndim != 1:
            raise ValueError(
                f"labels of a batch are {y.shape}; wanted [B], one for each example: label_drift suits "
                "classification, where no label stands for padding"
            )
        concept = jnp.searchsorted(steps, step, side="right")
        permutation = jnp.asarray(table)[concept]
        return {**batch, "y": permutation[y.astype(jnp.int32)].astype(y.dtype)}

    settings = {"name": "label_drift", "at": list(at), "num_classes": num_classes, "seed": int(seed)}
    return Drift(apply, at, settings)


def rotation_drift(degrees_per_step: float) -> Drift:
    """Rotates the images by `degrees_per_step * step`: a gradual drift.

    Positive angles turn counter-clockwise with row 0 at the top, as in `np.rot90`. Values between
    pixels are interpolated bilinearly, values outside the image are zero, and integers are rounded.

    Args:
      degrees_per_step: rotation per step, in degrees; step 0 sees the stored images.

    Returns:
      A drift of the column "x": images `[B, H, W]` or `[B, H, W, C]`, or `[B, P]`, squares of P pixels
      row by row. It keeps their dtype.

    Raises:
      ValueError: the angle is not finite or, when applied, the column does not hold images.
    """
    if not math.isfinite(degrees_per_step):
        raise ValueError(
            f"degrees_per_step is {degrees_per_step}; wanted a finite number of degrees, such as 0.1"
        )
    degrees_per_step = float(degrees_per_step)

    def apply(batch: Batch, step: jax.Array) -> Batch:
        x = batch["x"]
        height, width = image_size(x.shape)
        # Drop whole turns first: radians in float32 would lose the fraction of a large angle.
        degrees = jnp.mod(jnp.float32(degrees_per_step) * jnp.float32(step), jnp.float32(360))
        sources = _rotated_places(height, width, jnp.deg2rad(degrees))

        def turn(plane):
            return map_coordinates(plane, sources, order=1)

        planes = x.reshape(x.shape[0], height, width, math.prod(x.shape[3:])).astype(jnp.float32)
        turned = jax.vmap(jax.vmap(turn, in_axes=-1, out_axes=-1))(planes).reshape(x.shape)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            turned = jnp.round(turned)
        return {**batch, "x": turned.astype(x.dtype)}

    return Drift(apply, (), {"name": "rotation_drift", "degrees_per_step": degrees_per_step})


def check_drift_times(name: str, times: Sequence[int]) -> tuple[int, ...]:
    """Returns `times`, steps or positions of a stream, as a tuple of ints.

    Raises:
      ValueError: `times` are not ascending whole numbers from 1 to the int32 maximum.
    """
    if np.ndim(times) != 1:
        raise ValueError(
            f"{name} is {times!r}; wanted a sequence of whole numbers, such as () or (100,)"
        )
    before = 0
    for i, time in enumerate(times):
        # Bounds first: math.floor takes neither NaN nor infinity.
        if not before < time < 2**31 or time != math.floor(time):
            raise ValueError(
                f"{name}[{i}] is {time}; wanted a whole number above {before}: give strictly ascending "
                "ones from 1 on, since a stream's first concept needs no drift"
            )
        before = int(time)
    return tuple(int(time) for time in times)


def image_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the height and width, in pixels, of images in an array of this shape.

    Raises:
      ValueError: the shape is neither `[n, H, W]` nor `[n, H, W, C]`, nor `[n, P]` with P a square.
    """
    if len(shape) in (3, 4):
        return shape[1], shape[2]
    side = math.isqrt(shape[1]) if len(shape) == 2 else 0
    if side == 0 or side * side != shape[1]:
        raise ValueError(
            f"'x' is {shape}; wanted images [n, H, W] or [n, H, W, C], or [n, P] with P a square: "
            "reshape the column before it is divided among clients"
        )
    return side, side


def _rotated_places(height: int, width: int, angle: jax.Array) -> list[jax.Array]:
    """Returns the source row and column, `[H, W]` float32 each, of each pixel of the rotated image.

    Args:
      height: H.
      width: W.
      angle: `[]` float32, radians, counter-clockwise about the centre.
    """
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    down = jnp.arange(height, dtype=jnp.float32)[:, None] - middle_row
    right = jnp.arange(width, dtype=jnp.float32)[None, :] - middle_column
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return [cos * down + sin * right + middle_row, cos * right - sin * down + middle_column]
