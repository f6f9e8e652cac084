"""Figure 2 of CHOCO-SGD: consensus on a ring, exact and with compressed messages.

    python scripts/papers/choco.py --out=results/choco.json --plot=results/choco.png

A. Koloskova, S. U. Stich, M. Jaggi, "Decentralized stochastic optimization and gossip algorithms with
compressed communication", ICML 2019, https://arxiv.org/abs/1902.00340. 25 learners on a ring hold
vectors of 2000 entries and look for their mean. The paper takes vectors of a data set; here they are
drawn from a Gaussian. Compared with CHOCO-Gossip are the two earlier schemes of its section 3, which
send C(x_i) instead of C(x_i - x^_i): Q1 mixes C(x_j) with a learner's own x_i, Q2 with C(x_i). The step
size is the largest power of two with which the error falls in every tenth of the run, or else the one
that ends lowest.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt
from tqdm import tqdm

import fedjax_sim as fs
from fedjax_sim.compression import qsgd, random_k, subsample, top_k

CODECS = {
    "top 1 %": (top_k(0.01), top_k(0.01)),
    # The earlier schemes need an unbiased codec.
    "random 1 %": (random_k(0.01), subsample(0.01)),
    "QSGD, 8 bits": (qsgd(127), qsgd(127)),
}

_LEARNERS = flags.DEFINE_integer("learners", 25, "Learners on the ring.", lower_bound=3)
_SIZE = flags.DEFINE_integer("size", 2000, "Entries of a vector.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 20000, "Rounds of gossip.", lower_bound=10)
_OUT = flags.DEFINE_string("out", None, "File for all curves, as JSON.")
_PLOT = flags.DEFINE_string("plot", None, "File for a picture of them.")


def start():
    """Draws the learners' vectors, `[m, d]`."""
    return jax.random.normal(jax.random.key(1), (_LEARNERS.value, _SIZE.value))


def choco(codec, gamma):
    """Returns the mean of ||x_i - mean||^2 by round, by `fs.gossip` at rate 0."""
    m = _LEARNERS.value
    task = fs.models.from_loss(lambda key: jnp.zeros(_SIZE.value), lambda params, batch: 0 * batch["x"])
    algorithm = fs.gossip(
        task,
        fs.topologies.ring(),
        num_learners=m,
        batch_size=1,
        client_lr=0.0,
        codec=codec,
        gamma=gamma,
        initial=list(start()),
    )
    data = fs.data.FederatedData({"x": np.zeros(m, np.float32)}, np.arange(m + 1, dtype=np.int32))
    rounds, every = _ROUNDS.value, max(1, _ROUNDS.value // 200)
    result = fs.simulate(
        algorithm, data, key=jax.random.key(0), num_rounds=rounds, eval_every=every, layout=fs.Layout()
    )
    return [row["consensus"] for row in result.rows[1:]]


def spread(x):
    """Returns the mean of ||x_i - mean||^2."""
    return jnp.square(x - x.mean(axis=0)).sum(axis=1).mean()


def earlier(codec, gamma, own):
    """Returns the same of a scheme that sends C(x_i): Q1 if `own`, else Q2."""
    w = jnp.asarray(fs.topologies.ring().matrices(_LEARNERS.value)[0], jnp.float32)
    x, every = start(), max(1, _ROUNDS.value // 200)
    target = x.mean(axis=0)

    def round_fn(x, key):
        keys = jax.random.split(key, len(x))
        sent = jax.vmap(lambda key, x_i: codec.decode(codec.encode(key, x_i)))(keys, x)
        mixed = w @ sent - (x if own else sent)
        if own:
            mixed = mixed + jnp.diag(w)[:, None] * (x - sent)  # a learner knows itself exactly
        x = x + gamma * mixed
        return x, jnp.square(x - target).sum(axis=1).mean()

    keys = jax.random.split(jax.random.key(0), _ROUNDS.value)
    _, errors = jax.jit(lambda x, keys: jax.lax.scan(round_fn, x, keys))(x, keys)
    whole = len(errors) // every * every
    return [float(e) for e in errors[:whole].reshape(-1, every).mean(axis=1)]


def tuned(run):
    """Returns a step size and its curve; see the method above."""
    best = None
    for power in range(13):
        try:
            curve = run(2.0**-power)
        except fs.DivergenceError:
            continue
        tenth = max(1, len(curve) // 10)
        if not np.isfinite(curve[-1]):
            continue
        if best is None or curve[-1] < best[1][-1]:
            best = 2.0**-power, curve
        if all(after < before for before, after in itertools.pairwise(curve[::tenth])):
            return 2.0**-power, curve
    return best


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    runs = {"exact": (None, lambda gamma: choco(None, 1.0))}
    for name, (codec, unbiased) in CODECS.items():
        runs[f"CHOCO, {name}"] = (codec, lambda gamma, codec=codec: choco(codec, gamma))
        runs[f"Q1, {name}"] = (codec, lambda gamma, codec=unbiased: earlier(codec, gamma, True))
        runs[f"Q2, {name}"] = (codec, lambda gamma, codec=unbiased: earlier(codec, gamma, False))
    rows, like = [], jax.ShapeDtypeStruct((_SIZE.value,), jnp.float32)
    for name, (codec, run) in tqdm(runs.items(), unit="scheme"):
        gamma, curve = (1.0, run(1.0)) if codec is None else tuned(run)
        sent = 4 * _SIZE.value
        if codec is not None:
            sent = fs.compression.num_bytes(jax.eval_shape(codec.encode, jax.random.key(0), like))
        curve = [fs.reporting.five_digits(value) for value in curve]
        rows.append({"scheme": name, "gamma": gamma, "bytes of a message": sent, "errors": curve})
    start_error = float(spread(start()))
    shown = [
        {k: str(v) for k, v in row.items() if k != "errors"}
        | {"error at the end / at the start": f"{row['errors'][-1] / start_error:.2g}"}
        for row in rows
    ]
    print(fs.reporting.markdown(shown))
    if _PLOT.value:
        figure, axes = plt.subplots(figsize=(7, 4.5))
        rounds = np.linspace(0, _ROUNDS.value, len(rows[0]["errors"]) + 1)[1:]
        for row in rows:
            axes.semilogy(rounds, row["errors"], label=row["scheme"])
        axes.set(xlabel="round", ylabel="mean squared distance from the mean")
        axes.legend(fontsize=8)
        figure.savefig(_PLOT.value, dpi=120, bbox_inches="tight")
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": __doc__, "start": start_error, "runs": rows}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
