"""Our ViT against an independent JiT in PyTorch (`jit_torch.py`): one set of weights, one output.

The weights are random, all of them: the published initialisation has zero gates and a zero head,
with which any two networks agree. Conversion is written out here and not taken from `interop`, so
that it checks that too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax.models import vit

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')

from tests.parity.jit_torch import JiT  # noqa: E402 - needs torch

SMALL = dict(patch=4, width=40, depth=3, heads=2, bottleneck=12, class_tokens=5)
CASES = {  # head size 20, hidden size 106 (of 106.7); what is not SMALL's
    "tokens in the middle": dict(shape=(16, 16, 3), classes=7, class_tokens_from=1),
    "tokens from the first block": dict(shape=(12, 12, 1), classes=7, class_tokens_from=0),
    "tokens never": dict(shape=(8, 8, 4), classes=7, class_tokens_from=3),
    "no tokens": dict(shape=(16, 16, 3), classes=7, class_tokens_from=1, class_tokens=0),
    "unconditional": dict(shape=(16, 16, 3), classes=None, class_tokens_from=1),
    "wide": dict(shape=(8, 24, 1), classes=7, class_tokens_from=2),
    "tall, unconditional": dict(shape=(40, 10, 4), classes=None, class_tokens_from=0, patch=5),
}
TOLERANCE = 1e-4
"""Allowed max|difference| / max|output| in float32; measured 8e-7 and less."""


def torch_model(shape, seed=0, **options):
    """JiT with random weights: variance-preserving matrices, everything else of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    model = JiT(shape, **options)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.data = 1 + 0.3 * noise
        elif name.endswith(".weight") and "embedding_table" not in name:
            weight.data = noise / weight[0].numel() ** 0.5
        else:
            weight.data = 0.5 * noise
    return model


def flax_params(state, heads):
    """Our parameters, as nested dictionaries of arrays, from JiT's state dict."""
    state = {name: value.numpy() for name, value in state.items()}
    patches = state["x_embedder.proj1.weight"].transpose(2, 3, 1, 0)  # [p, p, C, bottleneck]
    params = {
        "bottleneck_in": {"kernel": patches.reshape(-1, patches.shape[-1])},
        "bottleneck_out": {
            "kernel": state["x_embedder.proj2.weight"][:, :, 0, 0].T,
            "bias": state["x_embedder.proj2.bias"],
        },
        "time": {"in": dense(state, "t_embedder.mlp.0"), "out": dense(state, "t_embedder.mlp.2")},
        "head_mod": dense(state, "final_layer.adaLN_modulation.1"),
        "head_norm": state["final_layer.norm_final.weight"],
        "head": dense(state, "final_layer.linear"),
    }
    if "y_embedder.embedding_table.weight" in state:
        table = {"embedding": state["y_embedder.embedding_table.weight"]}
        params["conditions"] = {"label": {"table": table}}
    if "in_context_posemb" in state:
        params["class_positions"] = state["in_context_posemb"][0]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        params[f"block_{i}"] = {
            "norm1": state[f"blocks.{i}.norm1.weight"],
            "attention": attention(state, f"blocks.{i}.attn", heads),
            "norm2": state[f"blocks.{i}.norm2.weight"],
            "feed_forward": {
                "in": dense(state, f"blocks.{i}.mlp.w12"),
                "out": dense(state, f"blocks.{i}.mlp.w3"),
            },
            "mod": dense(state, f"blocks.{i}.adaLN_modulation.1"),
        }
    return params


def dense(state, name):
    """A linear layer: PyTorch keeps [out, in], flax [in, out]."""
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def attention(state, name, heads):
    """q, k, v apart and head-major; rotary pairs (2i, 2i+1) become (i, i + K/2).

    Queries and keys only meet in scalar products, in which a common order of the head's
    dimensions does not matter; values keep theirs, the output projection expects it.
    """
    width = state[f"{name}.proj.weight"].shape[0]
    size = width // heads
    halves = np.arange(size).reshape(-1, 2).T.ravel()  # 0, 2, 4, ..., 1, 3, 5, ...
    weight = state[f"{name}.qkv.weight"].reshape(3, heads, size, width)
    bias = state[f"{name}.qkv.bias"].reshape(3, heads, size)
    params = {}
    for i, letter in enumerate("qkv"):
        order = halves if letter in "qk" else np.arange(size)
        params[f"{letter}_kernel"] = weight[i][:, order].transpose(2, 0, 1)  # [D, H, K]
        params[f"{letter}_bias"] = bias[i][:, order, None]  # [H, K, 1]
        if letter in "qk":
            params[f"{letter}_norm"] = state[f"{name}.{letter}_norm.weight"][order]
    params["out_kernel"] = state[f"{name}.proj.weight"].T.reshape(heads, size, width)
    params["out_bias"] = state[f"{name}.proj.bias"]
    return params


def scanned(params, depth, start):
    """The same parameters with each run of equal blocks stacked, as `scan=True` wants them."""
    params, blocks = dict(params), []
    for i in range(depth):
        blocks.append(params.pop(f"block_{i}"))
    for first, last in ((0, start - 1), (start, depth - 1)):
        if first <= last:
            run = jax.tree.map(lambda *a: np.stack(a), *blocks[first : last + 1])
            params[f"blocks_{first}_to_{last}"] = run
    return params


def inputs(shape, classes, batch=3, seed=1):
    """Images NHWC, times, and labels of which the last is -1, "no class" (None: no labels)."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((batch, *shape), np.float32)
    time = random.uniform(0, 1, batch).astype(np.float32)
    if classes is None:
        return x, time, None
    return x, time, np.append(random.integers(0, classes, batch - 1), -1)


def torch_apply(model, x, time, label, classes):
    """JiT on our inputs: channels first, "no class" as the class number `classes`."""
    if label is not None:
        label = torch.from_numpy(np.where(label < 0, classes, label))
    return model(x.permute(0, 3, 1, 2), torch.from_numpy(time), label).permute(0, 2, 3, 1)


def flax_apply(model, params):
    """Our model as a compiled function of (x, time, label), matrix products in full float32."""

    def apply(x, time, label):
        cond = {} if label is None else {"label": label}
        with jax.default_matmul_precision("highest"):
            return model.apply({"params": params}, x, time, cond)

    return jax.jit(apply)


def pair(shape, classes, scan=False, **options):
    """The two networks as functions of (x, time, label), ours with exactly its own parameters."""
    theirs = torch_model(shape, classes=classes, **options)
    sizes = {} if classes is None else {"label": (classes,)}
    ours = vit.Model(conditions=sizes, scan=scan, **options)
    params = flax_params(theirs.state_dict(), options["heads"])
    if scan:
        has_tokens = classes is not None and options["class_tokens"]
        start = options["class_tokens_from"] if has_tokens else options["depth"]
        params = scanned(params, options["depth"], start)
    cond = {} if classes is None else {"label": jnp.zeros(1, int)}
    wanted = jax.eval_shape(
        ours.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), cond
    )["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)
    return flax_apply(ours, params), lambda *args: torch_apply(theirs, *args, classes)


def difference(ours, theirs):
    """max|ours - theirs| / max|theirs|, of an output that is not nothing."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("case", CASES)
def test_output_is_jits(case):
    """Unrolled, for every shape and place of the class tokens."""
    options = SMALL | CASES[case]
    x, time, label = inputs(options["shape"], options["classes"])
    ours, theirs = pair(**options)
    assert difference(ours(x, time, label), theirs(torch.from_numpy(x), time, label)) < TOLERANCE


@pytest.mark.parametrize("case", ["tokens in the middle", "tokens never", "unconditional"])
def test_scanned_output_is_jits(case):
    """With the blocks in one rolled body, or in two where tokens come in between."""
    options = SMALL | CASES[case]
    x, time, label = inputs(options["shape"], options["classes"])
    ours, theirs = pair(scan=True, **options)
    assert difference(ours(x, time, label), theirs(torch.from_numpy(x), time, label)) < TOLERANCE


def test_gradient_is_jits():
    """Of a random projection of the output, with respect to the images."""
    options = SMALL | CASES["tokens in the middle"]
    x, time, label = inputs(options["shape"], options["classes"])
    direction = np.random.default_rng(2).standard_normal(x.shape, np.float32)
    ours, theirs = pair(**options)
    ours_grad = jax.grad(lambda x: jnp.sum(direction * ours(x, time, label)))(x)
    leaf = torch.from_numpy(x).requires_grad_()
    (torch.from_numpy(direction) * theirs(leaf, time, label)).sum().backward()
    assert difference(ours_grad, leaf.grad) < TOLERANCE


def test_jit_b16_dimensions():
    """The published size by its name, two blocks deep, the second with the class tokens."""
    options = dict(depth=2, class_tokens_from=1, class_tokens=32, patch=16)
    options |= {name: vit.SIZES["B"][name] for name in ("width", "heads", "bottleneck")}
    assert (options["width"], options["heads"], options["bottleneck"]) == (768, 12, 128)
    x, time, label = inputs((256, 256, 3), 1000, batch=2)
    ours, theirs = pair((256, 256, 3), 1000, **options)
    assert difference(ours(x, time, label), theirs(torch.from_numpy(x), time, label)) < TOLERANCE
