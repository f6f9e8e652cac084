"""Table 1 of DRIVE, and the errors of EDEN: ten clients send the same lognormal vector.

    python scripts/papers/drive.py --out=results/drive.json

S. Vargaftik et al., "DRIVE: one-bit distributed mean estimation", NeurIPS 2021,
https://arxiv.org/abs/2105.08339; "EDEN: communication-efficient and robust distributed mean estimation
for federated learning", ICML 2022, https://arxiv.org/abs/2108.08842. The error is that of the clients'
mean, ||mean - x||^2 / ||x||^2, averaged over trials; each client draws its own rotation. The published
values are from notes, not read in the papers.
"""

import pathlib

import jax
import jax.numpy as jnp
from absl import app, flags
from tqdm import tqdm

import fedjax_sim as fs
from fedjax_sim.compression import drive, eden, quantize, rotate

CODECS = {
    "Hadamard + 1 bit": rotate() >> quantize(1),
    "DRIVE": drive(),
    "EDEN, 1 bit": eden(1),
    "EDEN, 2 bits": eden(2),
    "EDEN, 3 bits": eden(3),
    "EDEN, 4 bits": eden(4),
}
# From table 1 of DRIVE by d; EDEN's by the theory of long vectors, 1 / (1 - D) - 1 over 10 clients.
PUBLISHED = {
    "Hadamard + 1 bit": {128: 0.5308, 8192: 1.3338, 524288: 2.1456},
    "DRIVE": {128: 0.0567, 8192: 0.0571, 524288: 0.0571},
    "EDEN, 1 bit": dict.fromkeys((128, 8192, 524288), 0.0571),
    "EDEN, 2 bits": dict.fromkeys((128, 8192, 524288), 0.0133),
    "EDEN, 3 bits": dict.fromkeys((128, 8192, 524288), 0.0036),
    "EDEN, 4 bits": dict.fromkeys((128, 8192, 524288), 0.00096),
}

_SIZES = flags.DEFINE_multi_integer("size", [128, 8192, 524288], "Entries of the vector; repeatable.")
_CLIENTS = flags.DEFINE_integer("clients", 10, "Clients whose messages are averaged.", lower_bound=1)
_TRIALS = flags.DEFINE_integer("trials", 100, "Trials, each with another vector.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File for the table, as JSON.")


def error_of_mean(codec, size):
    """Returns the mean over trials of the error of the clients' mean."""

    def trial(key):
        vector_key, *keys = jax.random.split(key, 1 + _CLIENTS.value)
        x = jnp.exp(jax.random.normal(vector_key, (size,)))
        total = sum(codec.decode(codec.encode(client_key, x)) for client_key in keys)
        return jnp.square(total / _CLIENTS.value - x).sum() / jnp.square(x).sum()

    keys = jax.random.split(jax.random.key(0), _TRIALS.value)
    return float(jax.jit(lambda keys: jax.lax.map(trial, keys))(keys).mean())


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows = []
    for size in tqdm(_SIZES.value, unit="size"):
        for name, codec in CODECS.items():
            error = fs.reporting.five_digits(error_of_mean(codec, size))
            sent = fs.compression.num_bytes(
                jax.eval_shape(
                    codec.encode, jax.random.key(0), jax.ShapeDtypeStruct((size,), jnp.float32)
                )
            )
            published = PUBLISHED[name].get(size) if _CLIENTS.value == 10 else None
            rows.append(
                {"d": size, "codec": name, "error": error, "published": published, "bytes": sent}
            )
    print(fs.reporting.markdown([{k: "" if v is None else str(v) for k, v in r.items()} for r in rows]))
    if _OUT.value:
        record = fs.reporting.provenance() | {"method": __doc__, "rows": rows}
        fs.reporting.write_json(pathlib.Path(_OUT.value), record)


if __name__ == "__main__":
    app.run(main)
