"""Attention by XLA and by the kernel, which is interpreted here: formulas in float64 decide."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny_models import compiled, denoiser, inputs, shape_of, tiny_params
from tests.parts import only, quick
from vitdiff_jax.models import attention, attention_kernel, layers


def plain_attention(q, k, v, turn=None, mask=None):
    """Softmax attention as in arXiv:1706.03762, eq. 1, on [B, H, K, N]; complex rotations."""
    if turn is not None:
        q, k = plain_turn(q, turn[0], turn[2]), plain_turn(k, turn[1], turn[2])
    scores = jnp.einsum("bhkn,bhkm->bhnm", q, k) / np.sqrt(q.shape[2])
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    return jnp.einsum("bhnm,bhkm->bhkn", jax.nn.softmax(scores, -1), v)


def plain_turn(x, scale, angles):
    """RMSNorm (arXiv:1910.07467) and rotary positions (arXiv:2104.09864) by complex numbers."""
    x = x / jnp.sqrt((x**2).mean(2, keepdims=True) + layers.EPSILON) * scale[:, None]
    half = x.shape[2] // 2
    turned = (x[:, :, :half] + 1j * x[:, :, half:]) * jnp.exp(1j * angles)
    return jnp.concatenate([turned.real, turned.imag], 2)


def with_slopes(attend, q, k, v, scales, weight):
    """attend(q, k, v, scales) and the gradients of its product with `weight`, as a flat list."""
    out, back = jax.vjp(attend, q, k, v, scales)
    return [out, *jax.tree.leaves(back(weight.astype(out.dtype)))]


def example(batch, heads, head_dim, tokens, *, turned=False, scale=1.0, seed=0):
    """Random q, k, v, scales of norms (or None), angles and the weights of a sum, in float64."""
    random = np.random.default_rng(seed)
    q, k, v, weight = random.standard_normal((4, batch, heads, head_dim, tokens))
    scales = 1 + 0.3 * random.standard_normal((2, head_dim))
    angles = random.uniform(-3, 3, (head_dim // 2, tokens))
    if turned:
        return q, k, v, (scale * scales[0], scales[1]), angles, weight
    return scale * q, k, v, None, angles, weight


def errors(found, wanted):
    """|found - wanted| / |wanted| of each array, in float64."""
    pairs = [[np.asarray(a, np.float64) for a in pair] for pair in zip(found, wanted, strict=True)]
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])


def compared(dtype, given, mask=None, ways=("xla", "pallas")):
    """The errors of each way's result and gradients, against float64.

    A way is an implementation's name, or a function of queries, keys, values and mask.
    """
    q, k, v, scales, angles, weight = given
    operands = [jnp.asarray(a, dtype) for a in (q, k, v)]
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (scales, angles, weight))

    def by(way):
        def attend(q, k, v, scales):
            if callable(way):
                return way(q, k, v, mask)
            turn = None if scales is None else (*scales, single[1])
            return attention.attend(q, k, v, turn, mask, way)

        run = jax.jit(functools.partial(with_slopes, attend))
        return run(*operands, single[0], single[2])

    found = [by(way) for way in ways]
    with jax.enable_x64(True):
        exact = [np.asarray(a, np.float64) for a in operands]  # as rounded to the operands' type

        def attend(q, k, v, scales):
            return plain_attention(q, k, v, None if scales is None else (*scales, angles), mask)

        wanted = jax.jit(functools.partial(with_slopes, attend))(*exact, scales, weight)
    return [errors(one, wanted) for one in found]


SIZES = [  # batch, heads, head size, tokens
    (2, 3, 8, 7),
    (1, 2, 72, 64),
    (1, 1, 80, 257),
    (1, 1, 16, 1025),  # its queries are taken in two parts
]
either = pytest.mark.parametrize("turned", [False, True], ids=["plain", "turned"])
one = pytest.mark.parametrize("turned", quick([True], [False, True]), ids=["plain", "turned"])


SCALES = (100.0, 1e-4), (1e4, 1e-2)  # of scores, and the error that is allowed
SMALL, LARGE = SIZES[0], SIZES[-1]
QUICK = [(LARGE, False, "float32")]
CASES = [  # rounding is the same in all sizes
    (size, turned, dtype)
    for dtype, sizes in (("float32", SIZES), ("bfloat16", SIZES[:2]))
    for size, turned in itertools.product(sizes, [False, True])
]


@pytest.mark.parametrize(("size", "turned", "dtype"), only(QUICK, CASES), ids=str)
def test_attention_is_a_softmax(size, turned, dtype):
    """The result and all gradients: 1e-5 in float32, 1 % in bfloat16, by XLA and by the kernel."""
    for found in compared(jnp.dtype(dtype), example(*size, turned=turned)):
        assert found.max() < {"float32": 1e-5, "bfloat16": 1e-2}[dtype]


@one
def test_cudnn_is_given_what_it_takes(turned, monkeypatch):
    """Tokens before heads; here XLA computes what cuDNN would."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(attention, "device_kind", lambda: "NVIDIA H100")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *qkv, implementation: plain(*qkv))
    given = example(2, 3, 8, 10, turned=turned)
    (found,) = compared(jnp.bfloat16, given, ways=["cudnn"])
    assert found.max() < 1e-2


@either
@pytest.mark.parametrize("size", [(8, 16, 72, 256), (4, 12, 64, 288), (2, 2, 64, 6)], ids=str)
def test_cudnns_attention_is_a_softmax(size, turned):
    """The sizes of DiT-XL and JiT-B, and a few tokens."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU: JAX_PLATFORMS=cuda pytest")
    given = example(*size, turned=turned)
    assert attention.select_implementation("auto", size, jnp.dtype("bfloat16"), False) == "cudnn"
    xla, cudnn = compared(jnp.bfloat16, given, ways=["xla", "cudnn"])
    assert cudnn.max() < 1e-2
    assert (cudnn != xla).any()  # it is another program


@pytest.mark.parametrize(
    ("turned", "scale", "least"),
    only([(False, 100.0, 1e-4)], [(t, *s) for t in (False, True) for s in SCALES]),
)
def test_large_scores_do_not_overflow(turned, scale, least):
    """Scores of hundreds, and of ten thousands: their own rounding is then that of the result."""
    found = compared(jnp.float32, example(1, 2, 16, 40, turned=turned, scale=scale))
    assert max(errors.max() for errors in found) < least


@pytest.mark.slow
@either
def test_large_scores_are_as_exact_as_xlas(turned):
    xla, kernel = compared(jnp.bfloat16, example(1, 2, 16, 40, turned=turned, scale=100.0))
    assert (kernel < 1.5 * xla + 0.01).all()


@one
def test_attention_looks_where_the_mask_says(turned):
    mask = np.arange(40) % np.array([[1], [2], [5]]) == 0
    for found in compared(jnp.float32, example(3, 2, 8, 40, turned=turned), mask):
        assert found.max() < 1e-5


@pytest.mark.parametrize("by", quick({"pallas"}, ["xla", "pallas"]))
def test_attention_to_nothing_is_finite(by):
    q, k, v, *_ = (jnp.asarray(a, jnp.float32) for a in example(1, 2, 8, 7)[:3])
    nothing = jnp.zeros((1, 7), bool)

    def total(*qkv):
        return attention.attend(*qkv, None, nothing, by).sum()

    value, slopes = jax.value_and_grad(total, (0, 1, 2))(q, k, v)
    assert all(np.isfinite(a).all() for a in (value, *slopes))


def test_the_kernel_sees_one_head_at_a_time():
    """Heads share a grid step, images a gradient of the scales: neither mixes them up."""
    taken, _ = attention_kernel.block_sizes(4, 8, 512, 4)
    assert taken == 2
    (found,) = compared(jnp.float32, example(2, 4, 8, 512, turned=True), ways=["pallas"])
    assert found.max() < 1e-5


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_grid_step_fits_into_memory(itemsize):
    """What the published networks need is taken; what is too large is XLA's."""
    for heads, head_dim in ((6, 64), (12, 64), (16, 64), (16, 72), (16, 80)):
        for tokens in (64, 256, 257, 288, 333, 1024, 1101):
            taken, queries = attention_kernel.block_sizes(heads, head_dim, tokens, itemsize)
            assert heads % taken == 0
            assert queries % 128 == 0
            operands = 2 * 7 * taken * head_dim * tokens * itemsize
            scores = 2 * tokens * min(queries, tokens) * (4 + itemsize)
            assert operands + scores < attention_kernel.VMEM
    assert attention_kernel.block_sizes(16, 64, 4096, itemsize) is None
    assert attention_kernel.block_sizes(1, 512, 2048, itemsize) is None


def test_what_the_kernel_cannot_take_is_xlas():
    q = jax.ShapeDtypeStruct((1, 1, 8, 4096), jnp.float32)
    assert attention.select_implementation("pallas", q.shape, q.dtype, False) == "xla"
    with pytest.raises(ValueError, match=r"does not support heads of \[8, 4096\]"):
        jax.eval_shape(attention_kernel.attention, q, q, q)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "dit", "uvit"])
def test_denoisers_do_not_depend_on_what_computes_attention(name):
    """The same parameters, the same images; with all conditions there are masks."""
    given = (tiny_params(name, "all"), *inputs("all", shape_of(denoiser(name))))
    by_xla = np.asarray(compiled(name, "all")(*given))
    by_kernel = compiled(name, "all", attention="pallas")(*given)
    np.testing.assert_allclose(by_kernel, by_xla, atol=1e-5 * abs(by_xla).max())


def in_use(kind):
    """The mesh of 2x2 devices of this kind, in use."""
    device = jax.sharding.AbstractDevice(kind, 1, "tpu" if kind.startswith("TPU") else "cpu")
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh(
        (2, 2), ("data", "fsdp"), axis_types=auto, abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize(
    ("by", "kind", "shape", "masked", "wanted"),
    [
        ("auto", "TPU v5 lite", (8, 16, 72, 256), False, "pallas"),
        ("auto", "TPU v6 lite", (8, 12, 64, 333), True, "pallas"),
        ("auto", "TPU v5 lite", (1, 16, 72, 256), False, "xla"),  # four devices share one image
        ("auto", "TPU v5 lite", (8, 16, 72, 4096), False, "xla"),
        ("auto", "NVIDIA H100", (8, 16, 72, 256), False, "xla"),
        ("auto", "cpu", (8, 16, 72, 256), False, "xla"),
        ("xla", "TPU v5 lite", (8, 16, 72, 256), False, "xla"),
        ("pallas", "cpu", (8, 16, 72, 256), False, "pallas"),
        ("cudnn", "NVIDIA H100", (8, 16, 72, 256), False, "cudnn"),
        ("cudnn", "NVIDIA H100", (8, 16, 72, 256), True, "xla"),
        ("cudnn", "NVIDIA H100", (8, 16, 160, 256), False, "xla"),
        ("cudnn", "NVIDIA H100", (8, 16, 72, 49), False, "xla"),  # cuDNN's gradient wants pairs
        ("cudnn", "TPU v5 lite", (8, 16, 72, 256), False, "xla"),
    ],
)
def test_what_computes_attention_follows_from_the_devices(by, kind, shape, masked, wanted):
    with in_use(kind):
        assert attention.select_implementation(by, shape, jnp.dtype("bfloat16"), masked) == wanted


@pytest.mark.parametrize(
    ("capability", "dtype", "wanted"),
    [("9.0", "bfloat16", "cudnn"), ("8.0", "bfloat16", "cudnn"), ("7.5", "bfloat16", "xla"),
     ("9.0", "float32", "xla")],
)  # fmt: skip
def test_gpus_from_ampere_on_have_cudnns(monkeypatch, capability, dtype, wanted):
    gpu = types.SimpleNamespace(
        platform="gpu", device_kind="NVIDIA A GPU", compute_capability=capability
    )
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    shape = (8, 16, 72, 256)
    assert attention.select_implementation("auto", shape, jnp.dtype(dtype), False) == wanted


def test_without_a_mesh_this_machine_decides():
    """A CPU is XLA's; in float32 cuDNN is nobody's."""
    shape = (8, 16, 72, 256)
    assert attention.select_implementation("auto", shape, jnp.dtype("bfloat16"), False) == "xla"
    with in_use("NVIDIA H100"):
        assert attention.select_implementation("cudnn", shape, jnp.dtype("float32"), False) == "xla"


def test_a_mesh_cuts_the_batch():
    """Inside `set_mesh` the kernel runs on each device's own images; here on one device."""
    q, k, v, scales, angles, weight = jax.tree.map(jnp.float32, example(2, 1, 8, 9, turned=True))

    @jax.jit
    def run(*qkv):
        def attend(q, k, v, scales):
            return attention.attend(q, k, v, (*scales, angles), None, "pallas")

        return with_slopes(attend, *qkv, scales, weight)

    alone, program = run(q, k, v), str(run.trace(q, k, v).jaxpr)
    auto = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=auto)):
        cut, cut_program = run(q, k, v), str(run.trace(q, k, v).jaxpr)
    assert "shard_map[" not in program
    assert cut_program.count("shard_map[") == 2
    assert errors(cut, alone).max() < 1e-6


def test_the_kernel_is_made_for_a_tpu():
    """Forward and backward become programs of a TPU, here without one."""
    x = jax.ShapeDtypeStruct((2, 4, 64, 288), jnp.bfloat16)
    scale = jax.ShapeDtypeStruct((64,), jnp.float32)
    angles = jax.ShapeDtypeStruct((32, 288), jnp.float32)
    mask = jax.ShapeDtypeStruct((2, 288), jnp.bool_)

    def loss(q, k, v, turn, mask):
        return attention_kernel.attention(q, k, v, turn, mask).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x, (scale, scale, angles), mask)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    for name in ("attention_forward", "attention_backward"):
        assert f'kernel_name = "{name}_2x4x64x288_bfloat16_turned_masked"' in text


def test_rotary_angles_are_axial():
    """Half the frequencies times the row, half times the column; class tokens are not turned."""
    rows, cols = 3, 4
    found = attention.rotary_angles(rows, cols, 8, prefix=2)
    frequencies = 10000.0 ** (-np.arange(2) / 2)
    for n in range(rows * cols):
        row, col = divmod(n, cols)
        wanted = np.concatenate([frequencies * row, frequencies * col])
        np.testing.assert_allclose(found[:, 2 + n], wanted, rtol=1e-6)
    assert not found[:, :2].any()


def random_params(module, *given):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *given)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(random.standard_normal(a.shape), a.dtype), shapes)


def test_attention_sees_relative_positions_alone():
    """Moving the whole image by (2, 1) turns queries and keys alike: their products stay.

    Moving tokens apart does not: with rows and columns exchanged another image comes out.
    """
    module = attention.Attention(2, jnp.dtype("float32"))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 12, 16)), jnp.float32)
    angles = attention.rotary_angles(3, 4, 8)
    params, apply = random_params(module, x, angles), jax.jit(module.apply)
    plain = np.asarray(apply(params, x, angles))
    moved = apply(params, x, angles + angles[:, [9]])
    np.testing.assert_allclose(moved, plain, atol=1e-4 * abs(plain).max())
    exchanged = apply(params, x, jnp.roll(angles, 2, axis=0))
    assert abs(exchanged - plain).max() > 0.01 * abs(plain).max()


def test_attention_can_be_plain():
    """Without angles it has no norms and no positions: tokens may come in any order."""
    module = attention.Attention(2, jnp.dtype("float32"), bias=False)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 7, 16)), jnp.float32)
    params, apply = module.init(jax.random.key(0), x), jax.jit(module.apply)
    names = {"q_kernel", "k_kernel", "v_kernel", "out_kernel", "out_bias"}
    assert set(params["params"]) == names
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    plain = np.asarray(apply(params, x))
    np.testing.assert_allclose(apply(params, x[:, order]), plain[:, order], atol=1e-6)
    with_bias = random_params(attention.Attention(2, jnp.dtype("float32")), x)
    assert set(with_bias["params"]) == names | {"q_bias", "k_bias", "v_bias"}
