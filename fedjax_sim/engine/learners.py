"""Training of learners that keep their own models, stacked and spread over the devices.

Learners' states are pytrees with a leading axis `[m, ...]`, and each device holds a part of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import CLIENTS, Client, Cohort, Layout, Params
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD


class Group(NamedTuple):
    """The learners of one device, as code on that device sees them; all devices run in step.

    Attributes:
      size: `m`, the number of learners on all devices.
      layout: the devices that share the learners, and the lanes of each device.
      own_rows: whether the device has only the rows of its own learners.
    """

    size: int
    layout: Layout
    own_rows: bool

    @property
    def here(self) -> int:
        """The number of learners on this device."""
        return self.size // self.layout.num_devices

    @property
    def first(self) -> jax.Array | int:
        """`[]` int32, the index of this device's first learner."""
        return jax.lax.axis_index(CLIENTS) * self.here if self.layout.num_devices > 1 else 0

    def train(
        self,
        fn: Callable[[Any, Client, jax.Array], tuple[Any, Any]],
        own: Any,
        data: Any,
        key: jax.Array,
    ) -> tuple[Any, Any]:
        """Runs `fn` for each learner of this device, as many side by side as there are lanes.

        Args:
          fn: `fn(own, client, key) -> (own, report)`, for ONE learner.
          own: `[m / D, ...]`, the states of this device's learners.
          data: `(examples, offsets)` of all learners, or only of this device's.
          key: PRNG key of the round; a learner's key folds in its index.

        Returns:
          The new states and the reports, `[m / D, ...]` each.
        """
        examples, offsets = data
        lanes = min(self.layout.lanes, self.here)

        def one(own, i):
            k = jnp.asarray(self.first + i, jnp.int32)
            place = i if self.own_rows else k
            client = Client(examples, offsets[place], offsets[place + 1] - offsets[place], k)
            return fn(own, client, jax.random.fold_in(key, k))

        def chunk(width, first, carry):
            own, reports = carry
            mine = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, width), own)
            if width == 1:  # without a lane axis, which would switch conv2d to its other body
                done = one(jax.tree.map(lambda a: a[0], mine), first)
                done = jax.tree.map(lambda a: a[None], done)
            else:
                done = jax.vmap(one)(mine, first + jnp.arange(width, dtype=jnp.int32))
            return jax.tree.map(
                lambda all_, new: jax.lax.dynamic_update_slice_in_dim(all_, new, first, 0),
                (own, reports),
                done,
            )

        alone = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), own)
        _, report = jax.eval_shape(one, alone, 0)
        reports = jax.tree.map(lambda a: jnp.zeros((self.here, *a.shape), a.dtype), report)
        whole, rest = divmod(self.here, lanes)
        carry = jax.lax.fori_loop(
            0, whole, lambda c, carry: chunk(lanes, c * lanes, carry), (own, reports)
        )
        return chunk(rest, self.here - rest, carry) if rest else carry

    def gather(self, values: Any) -> Any:
        """Returns `[m, ...]` of all devices from `[m / D, ...]` of this one."""
        if self.layout.num_devices == 1:
            return values
        return jax.lax.all_gather(values, CLIENTS, tiled=True)

    def mix(self, rows: Any, weights: jax.Array) -> Any:
        """Returns `sum over j of W_ij x_j` for this device's learners i.

        The rows of one device after another come by, so that no device holds those of all.

        Args:
          rows: `[m / D, ...]`, this device's `x_j`.
          weights: `[m, m]` float32, `W`.
        """
        devices = self.layout.num_devices
        mine = jax.lax.dynamic_slice_in_dim(weights, self.first, self.here)

        def add(step, carry):
            total, block = carry
            source = (self.first + step * self.here) % self.size
            part = jax.lax.dynamic_slice_in_dim(mine, source, self.here, axis=1)
            total = jax.tree.map(lambda t, b: t + _times(part, b), total, block)
            if devices > 1:
                before = [(d, (d - 1) % devices) for d in range(devices)]
                block = jax.lax.ppermute(block, CLIENTS, before)
            return total, block

        nothing = jax.tree.map(jnp.zeros_like, rows)
        return jax.lax.fori_loop(0, devices, add, (nothing, rows))[0]

    def weighted_sum(self, models: Params, weights: jax.Array, members: jax.Array) -> Params:
        """Returns `sum of w_i f_i` over the members; only their models are read.

        Args:
          models: `[m / D, ...]`, this device's models `f_i`.
          weights: `[m]` float32, `w_i`.
          members: `[m]` bool.
        """

        def add(i, total):
            weight = weights[self.first + i]
            return jax.tree.map(
                lambda sum_, all_: sum_ + (weight * all_[i]).astype(sum_.dtype), total, models
            )

        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), models)
        total = self._walk(members, add, nothing)
        return jax.lax.psum(total, CLIENTS) if self.layout.num_devices > 1 else total

    def assign(self, models: Params, members: jax.Array, model: Params) -> Params:
        """Returns `models` `[m / D, ...]` with `model` in place of those of `members` `[m]`."""

        def replace(i, models):
            return jax.tree.map(lambda all_, new: all_.at[i].set(new), models, model)

        return self._walk(members, replace, models)

    def _walk(self, members: jax.Array, visit: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
        """Calls `visit(i, carry)` for this device's members, by their index on this device."""
        mine = jax.lax.dynamic_slice_in_dim(members, self.first, self.here)
        order = jnp.argsort(~mine, stable=True).astype(jnp.int32)
        return jax.lax.fori_loop(0, jnp.sum(mine), lambda c, carry: visit(order[c], carry), carry)


def _times(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Multiplies `[n, k]` by `[k, ...]`, to float32 or wider."""
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    return jnp.tensordot(weights.astype(wide), rows.astype(wide), 1, precision="highest")


def with_learners(
    fn: Callable[..., tuple[Any, Any]], own: Any, shared: Any, data: Any, cohort: Cohort, key: jax.Array
) -> tuple[Any, Any]:
    """Runs `fn` on every device of the cohort's layout, each with its share of the learners.

    Args:
      fn: `fn(group, own, shared, data, key) -> (own, result)`; the result is the same on all devices.
      own: `[m, ...]`, the learners' states, spread over the devices.
      shared: a pytree that all devices have.
      data: a `FederatedData` of all `m` clients, or of each device's own.
      cohort: the layout to run on, with `D` dividing `m`; `members` is given if each device has only
        its own learners' rows.
      key: PRNG key of the round.
    """
    layout = cohort.layout
    own_rows = cohort.members is not None
    group = Group(cohort.num_clients if own_rows else data.num_clients, layout, own_rows)
    rows = jax.tree.map(jnp.asarray, (dict(data.examples), data.offsets))
    if layout.is_single:
        return fn(group, own, shared, rows, key)
    return jax.shard_map(
        lambda *arguments: fn(group, *arguments),
        mesh=layout.mesh,
        in_specs=(SPREAD, EVERYWHERE, SPREAD if own_rows else EVERYWHERE, EVERYWHERE),
        out_specs=(SPREAD, EVERYWHERE),
        check_vma=False,  # replicated results are computed from gathered values
    )(own, shared, rows, key)
