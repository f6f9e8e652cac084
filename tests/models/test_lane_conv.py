"""The ways to convolve with a kernel per lane: each right, and the fastest measured one used."""

import functools
import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import lax

from fedjax_sim.models import conv2d
from fedjax_sim.models.ops import lane_conv

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).parent.parent.parent
VARIANTS = list(lane_conv.VARIANTS)
LANES = 3
WINDOWS = [(3, 3, "SAME"), (3, 1, "VALID"), (4, 2, "SAME"), (2, 4, "VALID")]
SETTINGS = [*((*window, jnp.float32) for window in WINDOWS), (3, 2, "SAME", jnp.bfloat16)]


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """The variant that every product uses."""
    monkeypatch.setattr(lane_conv, "choose", lambda *_: request.param)
    return request.param


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(conv, padding, x, kernel, dy):
    y, pull_back = jax.vjp(lambda x, kernel: conv(x, kernel, padding=padding), x, kernel)
    return (y, *pull_back(dy))


def reference_conv(x, kernel, padding):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


reference = jax.jit(value_and_gradients, static_argnums=(0, 1))


def inputs(height, width, padding, dtype, lanes, images=2):
    """x, kernel and dy of lanes, whose values bfloat16 has."""
    x, kernel = normal(0, *lanes, images, 5, 6, 3), normal(1, *lanes, height, width, 3, 4)
    size = (5, 6) if padding == "SAME" else (6 - height, 7 - width)
    dy = normal(2, *lanes, images, *size, 4)
    return [a.astype(jnp.bfloat16).astype(dtype) for a in (x, kernel, dy)]


def assert_close_in_its_dtype(ours, expected, dtype):
    """Float32 sums agree but for their order; rounded to bfloat16, they are one step apart at most."""
    assert all(leaf.dtype == dtype for leaf in ours)
    as_float32 = [leaf.astype(jnp.float32) for leaf in ours]
    toys.assert_close(as_float32, list(expected), 1e-4 if dtype == jnp.float32 else 2**-8, 1e-4)


@pytest.mark.parametrize(("height", "width", "padding", "dtype"), SETTINGS)
def test_each_variant_equals_one_lane_at_a_time(variant, height, width, padding, dtype):
    values = inputs(height, width, padding, dtype, (LANES,))
    ours = jax.jit(jax.vmap(lambda *lane: value_and_gradients(conv2d, padding, *lane)))(*values)
    for i in range(LANES):
        lane = [a[i].astype(jnp.float32) for a in values]
        expected = reference(reference_conv, padding, *lane)
        assert_close_in_its_dtype([leaf[i] for leaf in ours], expected, dtype)


@pytest.mark.parametrize("lanes", [(), (LANES,)], ids=["no lanes", "lanes that share a kernel"])
def test_bfloat16_without_kernels_per_lane(lanes):
    # More images than the kernel's gradient takes at once, so that its parts are added.
    x, kernel, dy = inputs(3, 2, "SAME", jnp.bfloat16, (), images=12)
    expected = reference(reference_conv, "SAME", *(a.astype(jnp.float32) for a in (x, kernel, dy)))
    x, dy = (jnp.broadcast_to(a, (*lanes, *a.shape)) for a in (x, dy))

    def products(x, dy):
        return value_and_gradients(conv2d, "SAME", x, kernel, dy)

    ours = jax.jit(jax.vmap(products) if lanes else products)(x, dy)
    for i in range(LANES) if lanes else [...]:
        assert_close_in_its_dtype([leaf[i] for leaf in ours], expected, jnp.bfloat16)


def products_of(jaxpr):
    """The equations of matrix products and convolutions, also those of inner jaxprs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products_of(inner)


def traced(fn, *shapes, dtype=jnp.float32):
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return list(products_of(jax.make_jaxpr(fn)(*structs).jaxpr))


def seen(equations):
    """Which variant these equations are."""
    names = {equation.primitive.name for equation in equations}
    if names == {"conv_general_dilated"}:
        (only,) = equations
        assert only.params["feature_group_count"] > 1
        return "grouped"
    assert names == {"dot_general"}
    return "patches" if len(equations) == 1 else "shifted"


UNPADDED = ((0, 0), (0, 0))


def programs(role, shape, dtype=jnp.float32):
    """The products that play the role for this shape, each traced by itself, without padding."""
    lanes, images, height, width, ci, co, kh, kw = shape
    x = (lanes, images, height + kh - 1, width + kw - 1, ci)
    convolve = functools.partial(lane_conv.convolve, role, UNPADDED)
    yield traced(convolve, x, (lanes, kh, kw, ci, co), dtype=dtype)
    if role == "pair":
        gradient = functools.partial(lane_conv.kernel_gradient, UNPADDED)
        yield traced(gradient, x, (lanes, images, height, width, co), dtype=dtype)


@pytest.mark.parametrize("row", lane_conv.ROWS, ids=lambda row: f"{row.role} {row.shape}")
def test_a_measured_shape_is_computed_by_its_fastest_variant(row, monkeypatch):
    times = {name: getattr(row, name) for name in VARIANTS}
    assert min(times.values()) > 0
    assert times[row.choice] == min(times.values())
    assert lane_conv.choose(row.role, row.shape, row.backend) == row.choice

    monkeypatch.setattr(jax, "default_backend", lambda: row.backend)
    assert {seen(equations) for equations in programs(row.role, row.shape)} == {row.choice}


def test_the_model_s_convolution_and_both_gradients_follow_the_choice(variant):
    def products(x, kernel, dy):
        return value_and_gradients(conv2d, "SAME", x, kernel, dy)

    shapes = [(LANES, *shape) for shape in [(2, 6, 6, 3), (3, 3, 3, 4), (2, 6, 6, 4)]]
    equations = traced(jax.vmap(products), *shapes)
    assert len(equations) == 3 * (9 if variant == "shifted" else 1)
    third = len(equations) // 3
    assert {seen(equations[i : i + third]) for i in range(0, len(equations), third)} == {variant}


def test_the_input_s_gradient_is_chosen_apart_even_where_the_pair_has_its_shape(monkeypatch):
    asked = []
    monkeypatch.setattr(lane_conv, "choose", lambda *about: asked.append(about[:2]) or "patches")
    image, kernel = (LANES, 2, 6, 6, 3), (LANES, 3, 3, 3, 3)
    traced(jax.vmap(lambda *lane: value_and_gradients(conv2d, "SAME", *lane)), image, kernel, image)
    shape = (LANES, 2, 6, 6, 3, 3, 3, 3)
    assert asked == [("pair", shape), ("input gradient", shape), ("pair", shape)]


def test_products_of_bfloat16_are_summed_in_float32(variant):
    for role in lane_conv.ROLES:
        for equations in programs(role, (LANES, 2, 6, 6, 3, 4, 3, 3), jnp.bfloat16):
            assert {equation.outvars[0].aval.dtype for equation in equations} == {jnp.dtype("float32")}


def test_no_shape_is_measured_twice():
    keys = [(row.backend, row.role, row.shape) for row in lane_conv.ROWS]
    assert len(set(keys)) == len(keys)
    assert {row.role for row in lane_conv.ROWS} == set(lane_conv.ROLES)


@pytest.mark.parametrize("role", lane_conv.ROLES)
def test_the_nearest_measured_shape_decides_for_others(role, monkeypatch):
    def row(images, choice):
        return lane_conv.Row("cpu", role, (4, images, 8, 8, 3, 4, 3, 3), 1.0, 1.0, 1.0, choice)

    monkeypatch.setattr(lane_conv, "ROWS", (row(10, "grouped"), row(50, "shifted")))
    chosen = [lane_conv.choose(role, (4, n, 8, 8, 3, 4, 3, 3), "cpu") for n in (1, 22, 23, 99)]
    assert chosen == ["grouped", "grouped", "shifted", "shifted"]


@pytest.mark.parametrize("role", lane_conv.ROLES)
@pytest.mark.parametrize("shape", [(1,) * 8, (64, 1, 7, 9, 2, 5, 1, 8), (1000,) * 8])
def test_unknown_shapes_and_backends_get_a_choice(role, shape):
    assert lane_conv.choose(role, shape, "cpu") in VARIANTS
    assert lane_conv.choose(role, shape, "a backend nobody has measured") == "patches"


@pytest.mark.parametrize(("backend", "name"), [("cpu", ""), ("gpu", "_h200")])
def test_the_table_is_what_the_benchmark_wrote(backend, name):
    path = ROOT / "benchmarks" / "results" / f"lane_convolutions{name}.json"
    measured = json.loads(path.read_text())["rows"]
    rows = []
    for row in measured:
        times = [float(f"{1e3 * row['best'].get(name, math.inf):.3g}") for name in VARIANTS]
        key = row["backend"], row["role"], tuple(row["shape"])
        rows.append(lane_conv.Row(*key, *times, row["fastest"]))
    assert [row for row in lane_conv.ROWS if row.backend == backend] == rows


@pytest.mark.parametrize(("height", "width", "padding", "dtype"), SETTINGS)
def test_gathered_patches_are_concatenated_ones(height, width, padding, dtype, monkeypatch):
    """A GPU gathers patches."""
    monkeypatch.setattr(lane_conv, "choose", lambda *_: "patches")

    def results():
        arrays = inputs(height, width, padding, dtype, (LANES,))
        return jax.vmap(functools.partial(value_and_gradients, conv2d, padding))(*arrays)

    concatenated = results()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "gather" in str(jax.make_jaxpr(results)())
    toys.assert_same(results(), concatenated)


@pytest.mark.slow
def test_a_small_benchmark_reports_what_it_promises(tmp_path):
    out = tmp_path / "out.json"
    script = ROOT / "benchmarks" / "lane_convolutions.py"
    flags = ["--smoke", "--layers=pfl-conv2", "--lanes=2", "--batch_sizes=1"]
    flags += ["--repeats=1", "--seconds=0.001"]
    command = [sys.executable, script, *flags, f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| pfl-conv2 | input gradient | 2 | 1 |" in done.stdout

    report = json.loads(out.read_text())
    assert {"command", "date", "machine", "versions", "flags", "method"} <= report.keys()
    assert [row["role"] for row in report["rows"]] == list(lane_conv.ROLES)
    for row in report["rows"]:
        for times in ("seconds", "processor_seconds", "gflops"):
            assert set(row[times]) == set(VARIANTS)
        assert f"{row['shape']}"[1:-1] in done.stdout
        assert row["fastest"] == min(row["best"], key=row["best"].get)
