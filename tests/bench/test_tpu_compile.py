"""A small step, compiled by TPU's own compiler for slices that are not here."""

import importlib.util
import json

import pytest

from hvp_jax.bench.tpu.parts import OTHER

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu has no wheel for this machine", allow_module_level=True)

TOPOLOGIES = ("v5e:2x2", "v4:2x2x1")
TWO_SLICES = "2xv5e:2x2"
BATCH, CHIPS, WORDS, WIDTH, TAPS, TERMS = 32, 4, 8, 128, 1, 3
SMALL = (
    *("bench", "--config=configs/msrvtt.py", "--config.bench=tpu", "--config.precision=bfloat16"),
    *("--config.model.variant=tiny", "--config.model.taps=(4,)", "--config.distillation.stages=1"),
    *("--config.data.max_frames=2", f"--config.data.max_words={WORDS}"),
)
# The compiler's least effort; no test depends on how fast the step would be.
QUICK = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
EMBEDDING = 49408 * WIDTH * 4  # bytes in float32 of the largest weight, the words'


def compiled(run_cli, names: tuple[str, ...], *flags: str) -> dict:
    """The topologies of the JSON."""
    flags += (f"--config.topology={','.join(names)}", f"--config.train.batch_size={BATCH}")
    done = run_cli(*SMALL, *flags, "--json", timeout=900, **QUICK)
    assert done.status == 0, done.stderr
    # Nothing but our own progress: the compiler is silent.
    assert [line.partition(" ")[2] for line in done.stderr.splitlines()] == [
        f"compiling the step of {BATCH} examples for {name}" for name in names
    ]
    rows = json.loads(done.stdout)["topologies"]
    assert tuple(rows) == names
    return rows


@pytest.fixture(scope="module")
def of_pmap(run_cli):
    return compiled(run_cli, TOPOLOGIES)


@pytest.fixture(scope="module")
def of_fsdp(run_cli):
    flags = ("--config.parallel=shard_map", "--config.fsdp=true")
    return compiled(run_cli, (*TOPOLOGIES, TWO_SLICES), *flags)


@pytest.fixture(scope="module", params=["pmap", "fsdp"])
def result(request):
    """How the step is distributed, and the topologies of one slice."""
    rows = request.getfixturevalue(f"of_{request.param}")
    return request.param, {name: rows[name] for name in TOPOLOGIES}


def test_the_step_fits_and_its_time_is_estimated(result):
    for row in result[1].values():
        assert row["fits"] and row["largest_batch"] is None and row["message"] is None
        assert row["chips"] == CHIPS
        assert 0 < row["gib_per_chip"] < 1
        assert row["compile_cpu_s"] > 0
        assert row["share_of_peak"] == pytest.approx(row["ideal_ms"] / row["estimated_ms"])
        assert sum(row["parts"].values()) == pytest.approx(row["estimated_ms"])
        assert row["loops_without_count"] == []
        assert row["measured_ms"] is None


def test_every_part_of_the_model_has_its_time(result):
    for row in result[1].values():
        assert row["parts"][OTHER] < 0.1 * row["estimated_ms"]
        for part in ("vision_products", "vision_attention", "text_products", "optimizer"):
            assert row["parts"][part] > 0
        for step in ("clustering", "merging", "convolution", "score", "attention"):
            assert row["parts"][f"distillation_{step}"] > 0


def test_the_collectives_are_those_of_the_step(result):
    """Text features and the loss of rows are exchanged; no scores, and weights only by FSDP."""
    kind, topologies = result
    features = BATCH * WORDS * WIDTH * 4
    rows = BATCH * TAPS * TERMS * 4
    assert rows < BATCH * rows  # a table of scores, which nothing may gather
    for row in topologies.values():
        use = row["collectives"]
        assert set(use) <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
        if kind == "pmap":
            # Gradients are all-reduced whole; what is gathered is of the texts.
            assert use["all-reduce"]["largest_bytes"] == EMBEDDING
            assert use["all-gather"]["largest_bytes"] <= features
            assert use["reduce-scatter"]["largest_bytes"] <= features
        else:
            # Weights are gathered, in their own type, and gradients reduce-scattered; the
            # compiler pads the embedding of the words by half a percent.
            assert EMBEDDING <= use["reduce-scatter"]["largest_bytes"] < 1.01 * EMBEDDING
            assert use["all-gather"]["largest_bytes"] in (EMBEDDING // 2, EMBEDDING)
            assert use["all-reduce"]["largest_bytes"] < 4 * 2**14  # smaller weights are whole


def test_between_two_slices_go_gradients_and_no_weights(of_fsdp):
    row = of_fsdp[TWO_SLICES]
    assert row["fits"] and row["chips"] == 2 * CHIPS
    use = row["collectives"]
    # A slice gathers its weights and scatters their gradients by itself.
    assert use["all-gather"]["largest_bytes"] in (EMBEDDING // 2, EMBEDDING)
    assert EMBEDDING <= use["reduce-scatter"]["largest_bytes"] < 1.01 * EMBEDDING
    # A chip sends the gradients of its shards to the other slice, and features of its texts.
    assert use["all-reduce between slices"]["largest_bytes"] == EMBEDDING // CHIPS
    features = BATCH * WORDS * WIDTH * 4
    assert use["all-gather between slices"]["largest_bytes"] <= features
    assert use["reduce-scatter between slices"]["largest_bytes"] <= features


def test_what_does_not_fit_is_reported_in_the_compilers_words(monkeypatch):
    import jax
    import jax.numpy as jnp

    from configs.base import get_config
    from hvp_jax.bench.tpu import compilation, compiled_step, slices

    def lower(config, model, batch, devices):
        """A program that needs 2 GiB for its argument and 2 GiB for its result, each example."""
        sharding = jax.sharding.SingleDeviceSharding(devices[0])
        shape = (batch // CHIPS, 2**20, 512)
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return jax.jit(jnp.sin).lower(x)

    monkeypatch.setattr(compilation, "lower_step", lower)
    monkeypatch.setattr(compiled_step, "with_estimates", lambda result, *_: result)
    config = get_config()
    config.train.batch_size = 64
    row = compiled_step.compile_for(slices.describe("v5e:2x2"), config, None)
    assert not row.fits and row.batch_size == row.largest_batch == 3 * CHIPS  # 3 of 4 GiB each
    assert row.message.startswith("RESOURCE_EXHAUSTED: ") and len(row.message) <= 404
    assert row.gib_per_chip == pytest.approx(64, rel=0.01)


def test_a_kernel_in_a_scan_costs_its_iterations():
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.sharding import SingleDeviceSharding

    from hvp_jax.bench.tpu import estimate, program, slices

    target = slices.describe("v5e:2x2")

    def double(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    def f(x):
        kernel = pl.pallas_call(
            double,
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            name="double",
            cost_estimate=pl.CostEstimate(flops=10**6, transcendentals=0, bytes_accessed=0),
        )
        once = kernel(x)
        return jax.lax.scan(lambda y, _: (kernel(jnp.sin(y)), None), once, None, length=7)[0]

    sharding = SingleDeviceSharding(target.devices[0])
    x = jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=sharding)
    text = jax.jit(f).lower(x).compile().as_text()
    total = estimate.Estimator(program.parse(text), target.peak, target.chip, 1).total()
    kernel = total.by("name", estimate.KERNEL)["double"]
    assert kernel.times == 8
    moved = 2 * 256 * 128 * 4
    each = 10**6 / target.peak.flops + moved / target.peak.bandwidth
    assert kernel.seconds == pytest.approx(8 * each)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e:3x3", "the compiler does not take v5e:3x3: Topology layout"),
        ("v5e", "config.topology is 'v5e'; it must be v4, v5e, v5p or v6e"),
    ],
)
def test_a_topology_that_does_not_exist_is_one_line(run_cli, topology, message):
    done = run_cli(*SMALL, f"--config.topology={topology}")
    assert done.status == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_a_missing_compiler_is_one_line(monkeypatch):
    from data.errors import UsageError
    from hvp_jax.bench.tpu import slices

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="requirements-tpu.txt"):
        slices.describe("v5e:2x2")
