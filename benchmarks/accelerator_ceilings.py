"""Ceilings of a device: products, batched products, bandwidth, launches.

All devices work at once, and rates are those of all together. The best repetition counts, since other
measurements are divided by these.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from peak import timed

import fedjax_sim as fs

_TWO_NN = (784, 200, 200, 10)
_SIDE = 64  # a product so small that it takes as long as its launch


def best(call, repeats):
    """Returns the least seconds of `repeats` calls, after one that compiles."""
    jax.block_until_ready(call())
    return min(timed(call) for _ in range(repeats))


def on_each_device(fn):
    """Compiles `fn` for all devices, each with its part of all arguments' leading axes."""
    mesh = fs.runtime.default_layout().mesh
    spec = PartitionSpec(mesh.axis_names)
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


def drawn(rows, *shape, dtype=jnp.float32):
    """Returns small numbers `[D * rows, *shape]`, spread over the devices."""
    mesh = fs.runtime.default_layout().mesh
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    make = functools.partial(jax.random.uniform, shape=(mesh.size * rows, *shape))
    # So small that a chain of products stays finite.
    return jax.jit(lambda: (make(jax.random.key(0)) / shape[-1]).astype(dtype), out_shardings=where)()


def square_products(size, length, repeats, dtype=jnp.float32, precision=None):
    """Times a chain of products of `size` x `size`."""

    def chain(a):
        return jax.lax.fori_loop(0, length, lambda _, c: jnp.matmul(a, c, precision=precision), a)

    a = drawn(size, size, dtype=dtype)
    seconds = best(functools.partial(on_each_device(chain), a), repeats)
    flops = fs.runtime.default_layout().mesh.size * length * 2 * size**3
    return {"gflops": flops / seconds / 1e9, "size": size, "seconds": seconds}


def lane_products(lanes, batch_size, steps, repeats):
    """Times only the products of a 2NN step with weights per lane.

    Operations are counted as in rounds, including a gradient of the images that is never needed.
    """

    def step(_, carry):
        x, (w1, w2, w3) = carry
        h1 = x @ w1
        h2 = h1 @ w2
        d3 = h2 @ w3
        d2 = d3 @ w3.mT
        d1 = d2 @ w2.mT
        gradients = (x.mT @ d1, h1.mT @ d2, h2.mT @ d3)
        return x, [w - 1e-3 * g for w, g in zip((w1, w2, w3), gradients, strict=True)]

    def chain(x, *weights):
        return jax.lax.fori_loop(0, steps, step, (x, list(weights)))[1]

    pairs = list(itertools.pairwise(_TWO_NN))
    weights = [drawn(lanes, *pair) for pair in pairs]
    x = drawn(lanes, batch_size, _TWO_NN[0])
    seconds = best(functools.partial(on_each_device(chain), x, *weights), repeats) / steps
    all_lanes = lanes * fs.runtime.default_layout().mesh.size
    weights_of_each = sum(a * b for a, b in pairs)
    flops = all_lanes * batch_size * 6 * weights_of_each
    moved = all_lanes * 24 * weights_of_each
    return {
        "gflops": flops / seconds / 1e9,
        "gbytes_per_s": moved / seconds / 1e9,
        "lanes": lanes,
        "batch_size": batch_size,
        "seconds": seconds,
    }


def bandwidth(megabytes, passes, repeats):
    """Times reading and writing an array, again and again."""
    x = drawn(megabytes * 2**18, 1)
    add = jax.jit(lambda x: 0.5 * x + 1, donate_argnums=0)

    # Not in a compiled loop, where two passes might become one.
    def run():
        nonlocal x
        for _ in range(passes):
            x = add(x)
        return x

    seconds = best(run, repeats)
    return {"gbytes_per_s": passes * 2 * x.nbytes / seconds / 1e9, "megabytes": megabytes}


def launches(trips, repeats):
    """Times a kernel that does next to nothing, and a trip of a loop, on one device.

    The data of the clients sets the length of a round's loops, so trips are counted on the device; an
    accelerator may have to ask the host at each of them.
    """

    def loop(a, trips, kernels):
        def trip(_, c):
            for _ in range(kernels):
                c = a @ c  # products, which XLA does not fuse with each other
            return c

        return jax.lax.fori_loop(0, trips, trip, a)

    a = jnp.full((_SIDE, _SIDE), 1 / _SIDE)  # its powers are all alike
    known = jax.jit(loop, static_argnums=(1, 2))
    traced = jax.jit(loop, static_argnums=2)
    count = jnp.int32(trips)
    one, eleven = (best(lambda k=k: known(a, trips, k), repeats) / trips for k in (1, 11))
    return {
        "kernel_seconds": (eleven - one) / 10,
        "trip_seconds": one,
        "counted_trip_seconds": best(lambda: traced(a, count, 1), repeats) / trips,
    }


def steps(small):
    """Yields (name, function of the seconds left) for each ceiling."""
    on_cpu = jax.default_backend() == "cpu"
    repeats = 1 if small else 5
    size, length = (256, 1) if small else (2048, 2) if on_cpu else (8192, 40)
    megabytes, passes = (8, 2) if small else (256, 5) if on_cpu else (4096, 20)
    square = functools.partial(square_products, size, length, repeats)
    yield "gemm float32", lambda left: square()
    yield "bandwidth", lambda left: bandwidth(megabytes, passes, repeats)
    yield "launches", lambda left: launches(10 if small else 1000, repeats)
    count = 2 if small else 100
    for lanes in (2,) if small else (1, 4) if on_cpu else (10, 64, 100):
        products = functools.partial(lane_products, lanes, 10, count, repeats)
        yield f"2NN products, {lanes} lanes, B=10", lambda left, products=products: products()
    yield "gemm bfloat16", lambda left: square(jnp.bfloat16)
    yield "gemm float32 highest", lambda left: square(precision="highest")
