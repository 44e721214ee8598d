"""Published weights by their tensors alone; what the networks then compute is in `tests/parity`."""

import dataclasses

import numpy as np
import pytest

from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.experiment import config
from vitdiff_jax.interop import families, rules
from vitdiff_jax.interop.families import dit, jit, sit
from vitdiff_jax.models import dit as dit_model
from vitdiff_jax.models import vit as vit_model

SMALL = dict(width=8, depth=2, heads=2)
DIT = dict(heads=2, null_row=True)
"""What the shapes of `dit_tensors` do not tell."""


def filled(shapes, seed=0):
    """Random float32 tensors of these shapes."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(s).astype("f4") for name, s in shapes.items()}


def dit_shapes(classes=3, channels=4, outputs=8, width=8, depth=2, hidden=32, patches=16):
    """Of DiT/2's state dict, as its authors' code writes it."""
    shapes = {
        "pos_embed": (1, patches, width),
        "x_embedder.proj.weight": (width, channels, 2, 2), "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256), "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width), "t_embedder.mlp.2.bias": (width,),
    }  # fmt: skip
    if classes:
        shapes["y_embedder.embedding_table.weight"] = (classes + 1, width)
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    layers |= {"adaLN_modulation.1": (6 * width, width)}
    layers = {f"blocks.{i}.{name}": s for i in range(depth) for name, s in layers.items()}
    layers["final_layer.linear"] = (4 * outputs, width)
    layers["final_layer.adaLN_modulation.1"] = (2 * width, width)
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def positions(rows, cols, width):
    """MAE's fixed positions one by one: the column's sines and cosines, then the row's."""
    wanted = np.zeros((1, rows * cols, width), "f4")
    for n in range(rows * cols):
        for half, place in enumerate((n % cols, n // cols)):
            waves = place / 10000.0 ** (np.arange(width // 4) / (width // 4))
            start = half * width // 2
            wanted[0, n, start : start + width // 2] = [*np.sin(waves), *np.cos(waves)]
    return wanted


def dit_tensors(rows=4, cols=4, **options):
    """A DiT that could be published."""
    width = options.get("width", 8)
    tensors = filled(dit_shapes(patches=rows * cols, **options))
    return tensors | {"pos_embed": positions(rows, cols, width)}


def same(found, wanted):
    """The same names, and the same bits of the same type."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name, strict=True)


@pytest.mark.parametrize("family", ["dit", "sit"])
@pytest.mark.parametrize(
    ("options", "known"),
    [
        (dict(), dict()),
        (dict(classes=0, outputs=4, hidden=20), dict()),
        (dict(rows=2, cols=6), dict(size=(4, 12))),
        (dict(channels=3, outputs=3, depth=3), dict()),
    ],
)
def test_there_and_back_is_exact(family, options, known):
    tensors = dit_tensors(**options)
    found, params = families.from_torch(family, tensors, **DIT, **known)
    same(families.to_torch(family, found, params), tensors)
    assert all(leaf.dtype == np.float32 for leaf in families.flatten(params).values())


def test_sizes_are_read_off_the_shapes():
    found, _ = families.from_torch("dit", dit_tensors(), **DIT)
    assert found.shape == (8, 8, 4)
    assert found.conditions == {"label": ("0", "1", "2")}
    assert found.config["model"] == dict(name="dit", patch=2, learned_sigma=True, **SMALL)
    assert found.config["diffusion"]["learned_variance"] == 1000
    options = dict(classes=0, outputs=4, hidden=20, rows=2, cols=6)
    found, _ = families.from_torch("dit", dit_tensors(**options), size=(4, 12), **DIT)
    assert (found.shape, found.conditions) == ((4, 12, 4), {})
    assert found.config["model"] == dict(name="dit", patch=2, mlp_ratio=2.5, **SMALL)
    assert "learned_variance" not in found.config["diffusion"]


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_published_sizes_go_by_their_names(size):
    """From shapes alone; the table here is that of the models."""
    dims = dict(zip(("width", "depth", "heads"), dit.SIZES[size], strict=True))
    assert dims == dit_model.SIZES[size]
    width, depth, _ = dit.SIZES[size]
    shapes = dit_shapes(1000, width=width, depth=depth, hidden=4 * width, patches=256)
    found = dit.read(shapes)
    assert found.config["model"] == dict(name="dit", patch=2, size=size, learned_sigma=True)
    assert found.shape == (32, 32, 4)
    assert len(found.conditions["label"]) == 1000
    assert {rule.theirs for rule in dit.rules(found)} == shapes.keys()


@pytest.mark.parametrize(
    ("size", "patch", "side", "guidance"),
    [("B", 16, 256, 3.0), ("L", 16, 256, 2.4), ("L", 32, 512, 2.5), ("H", 32, 512, 2.3)],
)
def test_published_jits_go_by_their_names(size, patch, side, guidance):
    """And come with the authors' noise and guidance."""
    model, shape = dict(name="vit", size=size, patch=patch), (side, side, 3)
    wanted = rules.NetworkSpec(dict(model=model), shape, rules.classes(1000))
    found = jit.read({rule.theirs: rule.shape for rule in jit.rules(wanted)})
    assert (found.config["model"], found.shape) == (model, shape)
    assert len(found.conditions["label"]) == 1000
    full = config.complete(found.config)
    assert full.diffusion.schedule.noise_scale == (2 if side == 512 else 1)
    assert (full.sample.guidance, full.sample.guidance_high) == (guidance, 0.9)


@pytest.mark.parametrize(("family", "known"), [("dit", {}), ("sit", {}), ("sit", dict(path="gvp"))])
@pytest.mark.parametrize("outputs", [4, 8])
def test_configs_can_be_completed(family, known, outputs):
    """Every key and component that a family names is there, and they fit together."""
    found, _ = families.from_torch(family, dit_tensors(outputs=outputs), **known, **DIT)
    full = config.complete(found.config)
    assert full.model.width == 8
    assert (full.latent.factor, full.sample.guidance, full.sample.guidance_channels) == (8, 1.5, 3)
    make, options = config.component(full, "diffusion.schedule")
    process = {name: full.diffusion[name] for name in config.options(Process)}
    process = Process(make(**options), **process)
    x = np.zeros((1, *found.shape), "f4")
    out = np.zeros((1, 8, 8, 8 if full.model.learned_sigma else 4), "f4")
    assert process.to_x(out, x, np.array([0.5], "f4")).shape == x.shape


def test_jits_sizes_are_the_models():
    for size, dims in jit.SIZES.items():
        assert dict(zip(jit.DIMS, dims, strict=True)) == vit_model.SIZES[size]


def test_sits_velocity_runs_the_other_way():
    """The last layer, and nothing else, has the other sign."""
    tensors = dit_tensors()
    ours, theirs = (families.from_torch(f, tensors, **DIT)[1] for f in ("sit", "dit"))
    ours["head"] = {name: -leaf for name, leaf in ours["head"].items()}
    same(families.flatten(ours), families.flatten(theirs))


def test_path_of_sit():
    for path, schedule in (("linear", "RectifiedFlow"), ("gvp", "GVP")):
        found = sit.read(dit_shapes(), **DIT, path=path)
        assert found.config["diffusion"]["schedule"]["name"] == schedule
    with pytest.raises(ValueError, match=r"^sit: path: 'vp' is not one of linear, gvp"):
        families.from_torch("sit", dit_tensors(), path="vp", **DIT)


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "1.mlp.fc2.bias"), "dit: missing: blocks.1.mlp.fc2.bias$"),
        (
            lambda t: dict(list(t.items())[:-8]),  # a file that was cut off
            "dit: missing: final_layer.linear.weight; is this another",
        ),
        (
            lambda t: without(t, "blocks.0.attn"),
            "dit: missing: blocks.0.attn.qkv.weight, .*, .* and 1 more$",
        ),
        (lambda t: without(t, "blocks"), "dit: missing: blocks.0.*; is this another"),
        (lambda t: without(t, "x_embedder"), "dit: missing: x_embedder.proj.weight; is this an"),
        (lambda t: t | {"extra.weight": t["pos_embed"]}, "dit: unknown: extra.weight$"),
        (
            lambda t: t | {"blocks.1.attn.qkv.bias": np.zeros(7)},
            r"dit: wrong shape: blocks.1.attn.qkv.bias: \(7,\), not \(24,\)$",
        ),
        (
            lambda t: t | {"x_embedder.proj.weight": np.zeros((8, 16))},
            r"dit: wrong shape: x_embedder.proj.weight: \(8, 16\), not 4 axes$",
        ),
        (
            lambda t: without(t, "proj.bias") | {"more": t["pos_embed"]},
            "dit: missing: .*proj.bias.*; unknown: more$",
        ),
        (lambda t: t | {"pos_embed": t["pos_embed"][:, ::-1]}, "dit: pos_embed differs from"),
        (lambda t: t | {"pos_embed": np.zeros((1, 15, 8))}, "dit: size: no square has 15 patches"),
    ],
)
def test_a_wrong_file_is_one_clear_line(change, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        families.from_torch("dit", change(dit_tensors()), **DIT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (dict(), "dit: heads: not determined by the shapes for the unpublished width 8"),
        (dict(heads=3), "dit: heads: 3 does not divide the width 8"),
        (dict(size=(8, 10), **DIT), "dit: size: 8x10 does not have 16 patches of 2"),
        (dict(heads=2, path="gvp"), "path: dit has no such option, only heads, size, null_row"),
    ],
)
def test_what_shapes_do_not_tell_must_be_right(known, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        families.from_torch("dit", dit_tensors(), **known)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"^family: 'vit' is not one of .*dit, jit"):
        families.from_torch("vit", {})


def test_prefixes_of_wrappers_come_and_go():
    tensors = {f"module._orig_mod.{name}": t for name, t in dit_tensors().items()}
    found, params = families.from_torch("dit", tensors, **DIT)
    assert found.prefix == "module._orig_mod."
    same(families.to_torch("dit", found, params), tensors)


def test_checkpoints_hold_several_sets():
    """The average is what samples are drawn with; the optimiser is left alone."""
    ema, model = dit_tensors(), filled(dit_shapes(), seed=1)
    checkpoint = {"model": model, "ema": ema, "opt": {"state": {}}, "args": "ours"}
    assert [s.entry for s in families.state_dicts("dit", checkpoint)] == ["ema", "model"]
    assert families.ema_decays("dit") == {"ema": 0.9999}
    _, params = families.from_torch("dit", checkpoint, **DIT)
    same(families.flatten(params), families.flatten(families.from_torch("dit", ema, **DIT)[1]))
    with pytest.raises(ValueError, match=r"^dit: tensors expected, but the file has epoch$"):
        families.from_torch("dit", {"epoch": 3})


def test_jits_two_averages():
    """`Denoiser.net` in three copies; the first average is the one that its authors sample with."""
    one = {f"net.{jit.ANCHOR}": np.zeros(1)}
    sets = {name: one | {} for name in ("model", "model_ema1", "model_ema2")}
    found = families.state_dicts("jit", sets | {"epoch": 1})
    assert [s.entry for s in found] == ["model_ema1", "model_ema2", "model"]
    assert {s.prefix for s in found} == {"net."}
    assert families.ema_decays("jit") == {"model_ema1": 0.9999, "model_ema2": 0.9996}


def test_averages_may_drift():
    """An average in float32 of a tensor that never changes is off in its last digits."""
    tensors = dit_tensors()
    wanted = families.from_torch("dit", tensors, **DIT)[1]
    tensors["pos_embed"] = tensors["pos_embed"] + np.float32(3e-4)
    same(families.flatten(families.from_torch("dit", tensors, **DIT)[1]), families.flatten(wanted))


def test_rolled_blocks_are_written_too():
    """What was trained with `scan` is the same network."""
    tensors = dit_tensors(depth=3)
    found, params = families.from_torch("dit", tensors, **DIT)
    stacks = families.stack_blocks(params, ["blocks_0_to_1", "blocks_2_to_2", "head"])
    assert {name for name in stacks if "block" in name} == {"blocks_0_to_1", "blocks_2_to_2"}
    assert stacks["blocks_0_to_1"]["mod"]["kernel"].shape == (2, 8, 48)
    same(families.to_torch("dit", found, stacks), tensors)
    same(families.flatten(families.unstack_blocks(stacks)), families.flatten(params))


def test_what_does_not_fit_is_not_written():
    """Parameters of ours that the family has no place for, or not the room."""
    found, params = families.from_torch("dit", dit_tensors(), **DIT)
    with pytest.raises(ValueError, match=r"^dit as it is published: unknown: conditions/text/a$"):
        families.to_torch(
            "dit", found, params | {"conditions": {**params["conditions"], "text": {"a": 0}}}
        )
    with pytest.raises(ValueError, match=r"^dit as it is published: missing: head/"):
        families.to_torch("dit", found, {k: v for k, v in params.items() if k != "head"})
    with pytest.raises(ValueError, match=r"^dit: wrong shape: final_layer.linear.weight: \(3, 8\)"):
        families.to_torch(
            "dit", found, params | {"head": {"kernel": np.zeros((8, 3)), "bias": np.zeros(32)}}
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=dict(name="vit", size="H")), "config.model.name: vit is not this family's dit"),
        (dict(diffusion=dict(prediction="x")), "config.diffusion.prediction: x is not"),
        (dict(diffusion=dict(prediction="eps")), "config.diffusion.schedule.name: RectifiedFlow "),
    ],
)
def test_what_means_something_else_is_not_written(change, message):
    """A network of the same shapes whose output their code would take for another quantity."""
    found, params = families.from_torch("dit", dit_tensors(), **DIT)
    found = dataclasses.replace(found, config={**found.config, **change})
    with pytest.raises(ValueError, match=f"^{message}"):
        families.to_torch("dit", found, params)


@pytest.mark.parametrize("name", families.available())
def test_every_family_says_whose_it_is(name):
    module = families.find(name)
    assert module.SOURCE.startswith("https://")
    assert module.LICENCE
    assert callable(module.read)
    assert callable(module.rules)
