"""Figure A.1 of signSGD, and a counterexample to it that error feedback repairs.

    python scripts/papers/sign_sgd.py --out=results/sign_sgd.json

J. Bernstein et al., "signSGD: compressed optimisation for non-convex problems", ICML 2018,
https://arxiv.org/abs/1802.04434, figure A.1: ||x||^2 / 2 in 100 dimensions from a random start, whose
gradient has noise of standard deviation 100 on one coordinate; SGD at rate 0.001, signSGD at 0.01,
10,000 steps, 10 repeats. S. P. Karimireddy et al., "Error feedback fixes SignSGD and other gradient
compression schemes", ICML 2019, https://arxiv.org/abs/1901.09847, section 3: least squares with more
parameters than examples, where SGD and EF-signSGD find the solution nearest to the start and signSGD
does not. Rates fall to a sixteenth.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import fedjax_sim as fs
from fedjax_sim.compression import error_feedback, sign

_STEPS = flags.DEFINE_integer("steps", 10000, "Steps.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Runs of figure A.1, with other noise.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File for the table, as JSON.")

CODECS = {"SGD": None, "signSGD": sign(majority=True)}
RATES = {"SGD": 0.001, "signSGD": 0.01}


def sparse_noise(method, key):
    """Returns the objective after each step of figure A.1."""
    codec, rate = CODECS[method], RATES[method]
    start_key, run_key = jax.random.split(key)

    def step(x, key):
        noise_key, codec_key = jax.random.split(key)
        g = x.at[0].add(100 * jax.random.normal(noise_key))
        if codec is not None:
            g = codec.decode(codec.encode(codec_key, g))
        x = x - rate * g
        return x, jnp.square(x).sum() / 2

    x = jax.random.normal(start_key, (100,))
    return jax.lax.scan(step, x, jax.random.split(run_key, _STEPS.value))[1]


def least_squares(stage, rate):
    """Trains 40 parameters on 20 examples.

    Returns:
      The loss, and the squared distance of the solution from the span of the examples, where the
      solution nearest to the start lies.
    """
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(20, 40)) / np.sqrt(40), jnp.float32)
    b = a @ jnp.asarray(rng.normal(size=40), jnp.float32)

    def step(carry, i):
        x, own = carry
        update = -rate * 0.5 ** (4 * i / _STEPS.value) * (a.T @ (a @ x - b))
        if stage is not None:
            sent, own, _ = stage.encode((), {}, own, update, jax.random.key(0))
            update = stage.decode(sent)
        return (x + update, own), None

    x = jnp.zeros(40)
    own = () if stage is None else stage.memory(x)
    (x, _), _ = jax.lax.scan(step, (x, own), jnp.arange(_STEPS.value))
    inside = jnp.linalg.pinv(a) @ (a @ x)
    return float(jnp.square(a @ x - b).mean()), float(jnp.square(x - inside).sum())


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    keys = jax.random.split(jax.random.key(0), _REPEATS.value)
    rows, curves = [], {}
    for method in CODECS:
        values = jax.jit(jax.vmap(lambda key, method=method: sparse_noise(method, key)))(keys)
        mean = np.asarray(values).mean(axis=0)
        curves[method] = [fs.reporting.five_digits(float(v)) for v in mean[:: max(1, len(mean) // 100)]]
        last = float(mean[-max(1, len(mean) // 10) :].mean())
        rows.append({"problem": "noise on one coordinate", "method": method, "objective": f"{last:.3g}"})
    (sign_stage,) = fs.aggregate(sign()).stages
    for name, stage, rate in (
        ("SGD", None, 0.3),
        ("signSGD, scaled", sign_stage, 0.1),
        ("EF-signSGD", error_feedback(sign()), 0.1),
    ):
        loss, outside = least_squares(stage, rate)
        rows.append(
            {
                "problem": "least squares",
                "method": name,
                "objective": f"{loss:.3g}",
                "squared distance from the span": f"{outside:.3g}",
            }
        )
    columns = list(rows[-1])
    print(fs.reporting.markdown([{c: row.get(c, "") for c in columns} for row in rows]))
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": __doc__, "rows": rows, "curves": curves}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
