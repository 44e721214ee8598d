"""What `--mode=import` says of files of every making, and what comes of them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vitdiff_jax
from tests import tiny
from tests.interop.torch_writer import Call, Name, tensor, write
from tests.modes.test_import import MODELS, network, tensors_of
from tests.test_main import fails
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.interop import torch_files

TABLE = "y_embedder.embedding_table.weight"
DIT = "dit:heads=2,null_row=True"
ETA = ["--config.sample.sampler.eta=2.0", "--config.sample.steps=2"]


@pytest.fixture
def base():
    return tensors_of("dit")


def imported(tmp_path, source, family=DIT):
    """(exit code, the workdir) of an import."""
    workdir = tmp_path / "run"
    flags = [f"--source={source}", f"--family={family}", f"--workdir={workdir}"]
    return tiny.call("--mode=import", *flags), workdir


def test_a_training_checkpoint_is_read_and_the_rest_named(tmp_path, capsys, base):
    """Of two networks the EMA; an optimiser, options and paths are left unread; nothing runs."""
    path = Call(Name("pathlib.PosixPath"), "runs", "x")
    contents = {
        "model": {name: -t for name, t in base.items()}, "ema": base, "opt": {"state": {}},
        "args": Call(Name("argparse.Namespace"), state={"out": path}),
        "best": Call(Name("numpy._core.multiarray.scalar"), Call(Name("numpy.dtype"), "f8"), b"8"),
    }  # fmt: skip
    code, workdir = imported(tmp_path, write(tmp_path / "a.pt", contents))
    assert code == 0
    said = capsys.readouterr().out.splitlines()
    assert "weights: ema, not model" in said
    left = "model, opt, args (argparse.Namespace), best (numpy._core.multiarray.scalar)"
    assert f"left unread: {left}" in said
    wanted = tiny.arrays(network("dit")[1])
    tiny.assert_same(tiny.arrays(vitdiff_jax.load(workdir).params), wanted)


def test_narrow_types_are_said(tmp_path, capsys, base):
    """0x38 is 1 as float8_e4m3fn."""
    name = "blocks.0.mlp.fc1.weight"
    ones = tensor(np.full(base[name].shape, 0x38, np.uint8), "float8_e4m3fn")
    code, workdir = imported(tmp_path, write(tmp_path / "a.pt", base | {name: ones}))
    assert code == 0
    said = capsys.readouterr().out
    others = len(base) - 1
    assert f"float32 ({others})" in said
    assert "float8_e4m3fn (1)" in said
    kernel = vitdiff_jax.load(workdir).params["block_0"]["feed_forward"]["in"]["kernel"]
    np.testing.assert_array_equal(kernel, 1)


@pytest.mark.slow
def test_a_network_without_a_null_class_is_not_guided(tmp_path, capsys, base):
    """It has all of its classes, and says so where guidance is asked of it."""
    source = write(tmp_path / "a.pt", {**base, TABLE: base[TABLE][:3]})
    code, message = fails(
        capsys, "--mode=import", f"--source={source}", "--family=dit:heads=2",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert (code, message.partition("? ")[0]) == (
        1, f"{source}: dit: null_row: is the last of the 3 rows of the class table the null class",
    )  # fmt: skip
    code, workdir = imported(tmp_path, source, "dit:heads=2,null_row=False")
    assert code == 0
    model = vitdiff_jax.load(workdir)
    assert list(model.experiment.conditions["label"]) == ["0", "1", "2"]
    sample = [f"--workdir={workdir}", "--mode=sample", "--latents", "--n=1"]
    code, message = fails(capsys, *sample, "--config.sample.guidance=2")
    assert code == 2
    assert message.startswith("config.sample.guidance: 2.0 needs a null condition, but this model")
    code, message = fails(capsys, *sample, "--label=-1")
    assert (code, message.partition(":")[0]) == (2, "label")
    with pytest.raises(ConfigError, match=r"^label: required: this model was trained without a nu"):
        model.cond(2)
    assert model.cond(2, label=1)["label"].tolist() == [1, 1]
    code, message = fails(capsys, *sample, "--config.sample.sampler.name=ddim", *ETA)
    assert (code, message.partition(" is")[0]) == (2, "config.sample.sampler.eta: 2.0")


def test_a_nan_is_refused_by_its_tensors_name(tmp_path, capsys, base):
    name = "blocks.0.attn.qkv.weight"
    source = write(tmp_path / "a.pt", base | {name: base[name] * np.nan})
    code, _ = imported(tmp_path, source)
    assert code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {source}: dit: {name}: 768 of 768 numbers are not finite")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_shards(tmp_path, base):
    folder = tmp_path / "model"
    folder.mkdir()
    names = list(base)
    halves = {"1.safetensors": names[::2], "2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: base[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    index = folder / f"model.safetensors{torch_files.INDEX}"
    index.write_text(json.dumps({"weight_map": weight_map}))
    code, workdir = imported(tmp_path, folder)
    assert code == 0
    wanted = tiny.arrays(network("dit")[1])
    tiny.assert_same(tiny.arrays(vitdiff_jax.load(workdir).params), wanted)


def test_of_another_folder_it_says_which_files_there_are(tmp_path, capsys, base):
    folder = tmp_path / "pipeline"
    (folder / "vae").mkdir(parents=True)
    save_file(base, folder / "vae" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text("{}")
    flags = [f"--source={folder}", f"--family={DIT}", f"--workdir={tmp_path / 'run'}"]
    code, message = fails(capsys, "--mode=import", *flags)
    assert (code, message) == (
        2, f"--source: {folder} is a folder; give one file of weights:"
        " vae/diffusion_pytorch_model.safetensors",
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["net.", pytest.param("module.net.", marks=pytest.mark.slow)])
def test_jit_goes_out_under_the_names_it_came_with(tmp_path, prefix):
    """So it loads into the authors' `Denoiser`, of which it is `net`."""
    theirs = {prefix + name: t for name, t in tensors_of("jit").items()}
    source = write(tmp_path / "a.pth", {"model_ema1": theirs, "model": theirs, "epoch": 1})
    code, workdir = imported(tmp_path, source, MODELS["jit"][0])
    assert code == 0
    assert tiny.call(f"--workdir={workdir}", "--mode=export", "--family=jit") == 0
    (path,) = (workdir / "export").iterdir()
    tiny.assert_same(load_file(path), theirs)
