"""Programs that runs share: what computes the same compiles nothing, what does not is never used."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")


def cell(data, *, client_lr, local_epochs=1, scale=1.0, shown=lambda loss: loss):
    """A run of everything made anew, as by a notebook's cell; also what it compiled."""

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    def squares(params, batch):
        x = batch["x"].reshape(len(batch["x"]), -1)[:, :3]
        total = scale * (x @ params["w"] - batch["y"].astype(jnp.float32)) ** 2
        return total, jnp.ones_like(total)

    def metrics(params, batch):
        total, count = squares(params, batch)
        shape = jax.ShapeDtypeStruct(total.shape, total.dtype)
        return {"loss": (jax.pure_callback(shown, shape, total, vmap_method="sequential"), count)}

    task = fs.Task(init, lambda params, batch, key: squares(params, batch), metrics)
    algorithm = fs.fed_avg(task, optax.sgd, client_lr=client_lr, local_epochs=local_epochs, batch_size=4)
    with fs.runtime.CompilationCounter() as counter:
        result = fs.simulate(
            algorithm,
            data,
            key=jax.random.key(0),
            num_rounds=2,
            client_fraction=0.5,
            evaluate=fs.evaluator(task, data),
        )
    return result, counter.count


def loss_as_it_is(loss):
    return loss


def double_the_loss(loss):
    return 2 * loss


def test_a_cell_run_again_compiles_nothing(data):
    first, compiled = cell(data, client_lr=0.01, shown=loss_as_it_is)
    assert compiled > 0
    again, compiled = cell(data, client_lr=0.01, shown=loss_as_it_is)
    assert compiled == again.compilations == 0
    toys.assert_same(again.params, first.params)
    other, compiled = cell(data, client_lr=0.02, shown=loss_as_it_is)
    assert compiled == 0
    assert not np.array_equal(other.params["w"], first.params["w"])


@pytest.mark.parametrize("change", [{"local_epochs": 2}, {"scale": 0.5}])
def test_another_computation_is_compiled(data, change):
    first, _ = cell(data, client_lr=0.01, shown=loss_as_it_is)
    other, compiled = cell(data, client_lr=0.01, shown=loss_as_it_is, **change)
    assert compiled > 0
    assert not np.array_equal(other.params["w"], first.params["w"])


def test_programs_that_call_other_functions_are_others(data):
    first, _ = cell(data, client_lr=0.01, shown=loss_as_it_is)
    other, _ = cell(data, client_lr=0.01, shown=double_the_loss)
    np.testing.assert_allclose(other.rows[-1]["test_loss"], 2 * first.rows[-1]["test_loss"], rtol=1e-6)


def test_the_precision_of_products_is_part_of_a_program(data):
    cell(data, client_lr=0.01, shown=loss_as_it_is)
    with jax.default_matmul_precision("highest"):
        _, compiled = cell(data, client_lr=0.01, shown=loss_as_it_is)
    assert compiled > 0


def test_constants_of_the_same_shapes_share_a_program_and_keep_their_values(data):
    sums, counts = [], []
    for offset in (0.0, 1.0):
        table = jnp.full(3, offset)
        task = fs.Task(
            lambda key: {"w": jnp.zeros(3)},
            lambda params, batch, key, table=table: (
                jnp.broadcast_to(((params["w"] - table) ** 2).sum(), len(batch["y"])),
                jnp.ones(len(batch["y"])),
            ),
            lambda params, batch: {},
        )
        algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
        run = fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=2, client_fraction=0.5)
        sums.append(float(run.params["w"].sum()))
        counts.append(run.compilations)
    assert sums[0] == 0 < sums[1]
    assert counts[1] == 0
