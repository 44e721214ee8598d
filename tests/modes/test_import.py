"""`--mode=import` and `--mode=export`: published weights become a workdir, and ours go out alone.

The published files here are written from random parameters of ours by `families.to_torch`, which
the parity tests hold against the authors' own networks.
"""

import argparse
import functools
import json
import os
import pickle
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vitdiff_jax
from tests import tiny
from tests.parts import quick
from tests.test_main import fails
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.interop import families
from vitdiff_jax.interop.rules import NetworkSpec

DIMS = dict(width=16, depth=2, heads=2)
DIFFUSION = {  # what the families' networks were trained for
    "dit": dict(schedule=dict(name="DiscreteVP"), prediction="eps"),
    "sit": dict(schedule=dict(name="GVP"), prediction="u"),
    "uvit": dict(schedule=dict(name="LinearVP", time_scale=999.0), prediction="eps"),
    "jit": {},
}
MODELS = {  # file -> (--family, what the config says of the network, its images)
    "dit": ("dit:heads=2,null_row=True", dict(name="dit", patch=2, learned_sigma=True, **DIMS),
            (4, 4, 4)),
    "sit": ("sit:heads=2,null_row=True,path=gvp,size=4x8", dict(name="dit", patch=2, **DIMS),
            (4, 8, 4)),
    "uvit": ("uvit:heads=2,null_row=True", dict(name="uvit", patch=2, **DIMS), (8, 8, 3)),
    "uvit-latent": ("uvit:heads=2,null_row=True", dict(name="uvit", patch=2, **DIMS), (4, 4, 4)),
    "jit": (
        "jit:class_tokens_from=1",
        dict(name="vit", patch=4, bottleneck=4, class_tokens=2, class_tokens_from=1, **DIMS),
        (8, 8, 3),
    ),
}  # fmt: skip
LATENTS = ("dit", "sit", "uvit-latent")
LABELS = {"label": ("0", "1", "2")}


def built(name, shape, conditions):
    """The experiment that a family's config describes, for other images and classes too."""
    config = dict(model=MODELS[name][1], diffusion=DIFFUSION[name.partition("-")[0]])
    return experiment_lib.build(config_lib.complete(config), shape, conditions)


@functools.cache
def network(name):
    """(experiment, random parameters) as the file has them; none is zero, unlike at the start."""
    known = built(name, MODELS[name][2], LABELS)
    return known, randoms(known.param_shapes())


def randoms(shapes, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: random.normal(0, 0.3, a.shape).astype("f4"), shapes)


def tensors_of(name, params=None):
    """The state dict of a published network."""
    known, own = network(name)
    found = NetworkSpec(known.config.to_dict(), known.shape, LABELS)
    return families.to_torch(name.partition("-")[0], found, own if params is None else params)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """{name: workdir} of published files, each imported once."""
    return {}, tmp_path_factory.mktemp("imported")


@pytest.fixture
def copy_of(originals, tmp_path):
    """name -> a copy of the workdir of a published file, to be changed by one test."""
    known, folder = originals

    def copied(name):
        if name not in known:
            code, known[name] = imported(folder, name)
            assert code == 0
        return shutil.copytree(known[name], tmp_path / name)

    return copied


def imported(tmp_path, name, **changes):
    """The workdir of a published file; changes: of its tensors, None removes one."""
    source, workdir = tmp_path / f"{name}.safetensors", tmp_path / name
    tensors = tensors_of(name) | changes
    save_file({key: a for key, a in tensors.items() if a is not None}, source)
    return tiny.call("--mode=import", *flags(source, MODELS[name][0], workdir)), workdir


def flags(source, family, workdir):
    return f"--source={source}", f"--family={family}", f"--workdir={workdir}"


@pytest.mark.parametrize("name", quick(["dit"], ["dit", "jit", "uvit", *LATENTS[1:]]))
def test_an_imported_network_is_the_published_one(copy_of, name):
    """Its parameters bit by bit, the network that they are of, and its process."""
    workdir = copy_of(name)
    known, params = network(name)
    model = vitdiff_jax.load(workdir)
    tiny.assert_same(tiny.arrays(model.params), tiny.arrays(params))
    assert model.experiment.shape == known.shape
    assert dict(model.experiment.conditions) == {"label": ["0", "1", "2"]}
    assert model.experiment.model == known.model
    wanted, process = known.process, model.experiment.process
    assert (process.schedule, process.prediction) == (wanted.schedule, wanted.prediction)
    assert model.experiment.config.latent.factor == (8 if name in LATENTS else 1)


@pytest.mark.slow
def test_imported_weights_are_measured_on_data_that_fit(tmp_path):
    """Which data, the weights do not say."""
    known = built("jit", (8, 8, 1), {"label": tuple("0123456789")})
    found = NetworkSpec(known.config.to_dict(), known.shape, known.conditions)
    tensors = families.to_torch("jit", found, randoms(known.param_shapes()))
    source, workdir = tmp_path / "digits.safetensors", tmp_path / "digits"
    save_file(tensors, source)
    assert tiny.call("--mode=import", *flags(source, MODELS["jit"][0], workdir)) == 0
    evaluate = [f"--workdir={workdir}", "--mode=evaluate", "--config.evaluate.images=20"]
    evaluate += ["--config.evaluate.metrics=('pixel_frechet',)", "--config.sample.steps=1"]
    assert tiny.call(*evaluate, "--config.data.name=tests.few_digits") == 0
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["images"] == 20


@pytest.mark.parametrize("name", quick(["dit"], ["dit", "jit"]))
def test_the_licence_comes_along(tmp_path, capsys, name):
    """As a file and with the model; and what was imported is written down."""
    _, workdir = imported(tmp_path, name)
    said = capsys.readouterr().out.splitlines()
    assert f"licence of the weights: {families.find(name).LICENCE}" in said
    text = (workdir / "LICENCE.txt").read_text()
    module = families.find(name)
    assert text == f"{module.LICENCE}\n\nFrom {module.SOURCE}\n"
    assert vitdiff_jax.load(workdir).licence == text
    about = json.loads((workdir / "imported.json").read_text())
    assert about["family"] == MODELS[name][0]
    assert len(about["sha256"]) == 64
    names = {path.name for path in workdir.iterdir()}
    assert names == {"checkpoints", "config.json", "imported.json", "LICENCE.txt"}


@pytest.mark.extra
def test_jits_two_averages(tmp_path):
    """A training checkpoint as its authors write it: parameters that ask for gradients, options."""
    torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[torch]"')
    names = "model_ema1", "model_ema2", "model"
    params = {name: randoms(network("jit")[1], seed) for seed, name in enumerate(names)}
    sets = {
        name: {
            f"net.{key}": torch.nn.Parameter(torch.from_numpy(a))
            for key, a in tensors_of("jit", of_set).items()
        }
        for name, of_set in params.items()
    }
    source, workdir = tmp_path / "checkpoint-last.pth", tmp_path / "run"
    torch.save(sets | {"epoch": 600, "args": argparse.Namespace(lr=5e-5)}, source)
    assert tiny.call("--mode=import", *flags(source, MODELS["jit"][0], workdir)) == 0
    model = vitdiff_jax.load(workdir)
    assert tuple(model.experiment.config.train.ema) == (0.9999, 0.9996)
    tiny.assert_same(tiny.arrays(model.params), tiny.arrays(params["model_ema1"]))
    other = vitdiff_jax.load(workdir, ema=0.9996)
    tiny.assert_same(tiny.arrays(other.params), tiny.arrays(params["model_ema2"]))
    sample = ["--mode=sample", "--config.sample.steps=1", "--n=2", f"--workdir={workdir}"]
    assert tiny.call(*sample, "--config.sample.ema=0.9996") == 0


class Call:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_code_in_a_file_does_not_run(tmp_path, monkeypatch, capsys):
    """With PyTorch and without."""
    monkeypatch.chdir(tmp_path)
    source, workdir = tmp_path / "model.pt", tmp_path / "run"
    source.write_bytes(pickle.dumps({"pos_embed": Call()}, 2))
    code, message = fails(capsys, "--mode=import", *flags(source, "dit", workdir))
    assert (code, message.partition(": ")[0]) == (1, str(source))
    assert not (tmp_path / "made").exists()
    assert not workdir.exists()
    pickle.loads(source.read_bytes())
    assert (tmp_path / "made").exists()  # so it was code


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--family=dit"], "--source: required: the file of published weights"),
        (["--source={source}"], "--family: required for {source}, one of "),
        (["--source={source}", "--family=resnet"], "--family: 'resnet' is not one of auto"),
        (["--source={source}", "--family=jit+jit"], "--family: 'compose' is not one of"),
        (["--source={source}", "--family=jit:"], "--family: options are missing after 'jit:'"),
        (["--source={source}", "--family=jit:size=8"], "--family: size=8 is not HEIGHTxWIDTH"),
        (["--source={source}", "--family=uvit:null_row=no"], "--family: null_row=no is not True"),
        (["--source={source}", "--family=dit:heads=two"], "--family: heads=two is not an integer"),
        (["--source=none.pt", "--family=dit"], "--source: there is no file none.pt"),
        (["--source={source}", "--family=jit", "--config=a.py"], "--mode=import: takes --source,"),
        (["--source={source}", "--family=jit", "--config.seed=1"], "--mode=import: takes --source"),
        (["--source={source}", "--family=autoencoder"], "--family: autoencoder is not a denois"),
        (["--source={source}", "--family=jit"], "{source}: jit: class_tokens_from: not determ"),
        (["--source={source}", "--family=dit"], "{source}: dit: missing: x_embedder.proj.weight"),
        (["--source={source}", "--family=jit:heads=2"], "{source}: heads: jit has no such option"),
    ],
    ids=str,
)
def test_a_wrong_command_is_one_line(tmp_path, capsys, given, message):
    source, workdir = tmp_path / "jit.safetensors", tmp_path / "run"
    save_file(tensors_of("jit"), source)
    given = [flag.format(source=source) for flag in given]
    code, found = fails(capsys, "--mode=import", f"--workdir={workdir}", *given)
    message = message.format(source=source)
    assert found.startswith(message)
    assert code == (1 if message.startswith(str(source)) else 2)
    assert not workdir.exists()


def test_a_workdir_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, message = fails(capsys, "--mode=import", "--source=a.pt", "--family=dit")
    assert (code, message.partition(":")[0]) == (2, "--mode=import")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": None}, "uvit: missing: norm.weight"),
        ({"extra.bias": np.ones(3, "f4")}, "uvit: unknown: extra.bias"),
        ({"norm.bias": np.ones(3, "f4")}, r"uvit: wrong shape: norm.bias: (3,), not (16,)"),
        (
            {"norm.bias": np.ones(3, "f4"), "norm.weight": None, "in_blocks.0.norm1.bias": None},
            "uvit: missing: in_blocks.0.norm1.bias, norm.weight; wrong shape: norm.bias",
        ),
    ],
    ids=["missing", "extra", "misshapen", "all"],
)
def test_a_wrong_tensor_is_named(tmp_path, capsys, changes, message):
    assert imported(tmp_path, "uvit", **changes)[0] == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'uvit.safetensors'}: {message}")
    assert said.count("\n") == 1
    assert not (tmp_path / "uvit").exists()


def test_other_files_are_one_line(tmp_path, capsys):
    """Cut off, of no tensors, empty, a folder."""
    source, workdir = tmp_path / "jit.safetensors", tmp_path / "run"
    save_file(tensors_of("jit"), source)
    whole = source.read_bytes()
    for data in (whole[:-100], whole[:100], b"", b"text\n"):
        source.write_bytes(data)
        for family in ([], [f"--family={MODELS['jit'][0]}"]):
            given = [f"--source={source}", f"--workdir={workdir}", *family]
            code, message = fails(capsys, "--mode=import", *given)
            assert (code, message.partition(": ")[0]) == (1, str(source))
    given = [f"--source={tmp_path}", f"--workdir={workdir}", "--family=jit"]
    assert fails(capsys, "--mode=import", *given)[0] == 2
    assert not workdir.exists()


def test_a_workdir_that_is_there_stays(tmp_path, capsys):
    """One that was imported, and one that has lost its config."""
    assert imported(tmp_path, "jit")[0] == 0
    before = tiny.files(tmp_path)
    code, message = fails(capsys, "--mode=import", *flags(
        tmp_path / "jit.safetensors", MODELS["jit"][0], tmp_path / "jit"
    ))  # fmt: skip
    assert (code, message) == (
        2, f"{tmp_path / 'jit'}: already has config.json; import into another --workdir"
    )  # fmt: skip
    assert tiny.files(tmp_path) == before
    (tmp_path / "jit" / "config.json").unlink()
    before = tiny.files(tmp_path)
    assert imported(tmp_path, "jit")[0] == 2
    assert "already has checkpoints" in capsys.readouterr().err
    assert tiny.files(tmp_path) == before


def stop_before_the_end(checkpoints):
    checkpoints.manager.wait_until_finished()  # a process that is gone writes no more
    raise KeyboardInterrupt


def stop_in_copying(source, target):
    """As a bucket moves a folder: file by file."""
    target.mkdir()
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("modes.import_.Checkpoints.close", stop_before_the_end),
        ("runtime.paths.move", stop_in_copying),
    ],
)
def test_what_was_cut_off_is_written_again(tmp_path, monkeypatch, capsys, name, stop):
    """Before the last file the folder is no workdir; the same command makes it one."""
    with monkeypatch.context() as patched:
        patched.setattr(f"vitdiff_jax.{name}", stop)
        assert imported(tmp_path, "jit")[0] == 1
    capsys.readouterr()
    assert not (tmp_path / "jit" / "config.json").exists()
    code, _ = fails(capsys, "--mode=sample", f"--workdir={tmp_path / 'jit'}")
    assert code == 2
    code, workdir = imported(tmp_path, "jit")
    assert code == 0
    tiny.assert_same(tiny.arrays(vitdiff_jax.load(workdir).params), tiny.arrays(network("jit")[1]))
    assert not (workdir / "checkpoints.partial").exists()


def test_imported_weights_are_trained_in_another_workdir(tmp_path, copy_of, capsys):
    """Whatever is missing to train besides, that is said first; and nothing changes."""
    workdir = copy_of("dit")
    before = tiny.files(tmp_path)
    code, message = fails(capsys, f"--workdir={workdir}")
    assert code == 1
    assert message == (
        f"{workdir}: holds imported weights; to fine-tune them, set config.train.init_from"
        " to it and use another --workdir"
    )
    assert tiny.files(tmp_path) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two averages, of which the second is sampled, and with a licence to keep."""
    sample = dict(sampler=dict(name="euler"), steps=2, ema=0.5)
    config = tiny.config(train=dict(ema=(0.99, 0.5)), sample=sample)
    workdir = tiny.save(tmp_path_factory.mktemp("trained") / "run", config)
    (workdir / "LICENCE.txt").write_text("Not for sale\n\nFrom me\n")
    return workdir


def exports(workdir, *given):
    """The file that --mode=export wrote."""
    assert tiny.call(f"--workdir={workdir}", "--mode=export", *given) == 0
    return max((workdir / "export").iterdir(), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
def test_an_exported_average_is_that_average_and_comes_back(trained, tmp_path):
    """Its parameters bit by bit, its network, its config, its licence."""
    path = exports(trained)
    assert path.name == "ema-0.5-step0.safetensors"
    model = vitdiff_jax.load(trained)
    wanted = families.flatten(model.params)
    tiny.assert_same(load_file(path), {name: np.asarray(a) for name, a in wanted.items()})
    again = tmp_path / "again"
    assert tiny.call("--mode=import", f"--source={path}", f"--workdir={again}") == 0
    found = vitdiff_jax.load(again)
    tiny.assert_same(tiny.arrays(found.params), tiny.arrays(model.params))
    assert found.experiment.model == model.experiment.model
    assert (found.licence, model.licence) == ("Not for sale\n\nFrom me\n",) * 2
    assert dict(found.experiment.conditions) == dict(model.experiment.conditions)
    for section in ("data", "model", "diffusion"):
        assert found.experiment.config[section] == model.experiment.config[section]
    assert tuple(found.experiment.config.train.ema) == (0.5,)
    others = exports(trained, "--config.sample.ema=0.99")
    assert others.name == "ema-0.99-step0.safetensors"
    other = families.flatten(vitdiff_jax.load(trained, ema=0.99).params)
    tiny.assert_same(load_file(others), {name: np.asarray(a) for name, a in other.items()})


@pytest.mark.slow
def test_without_a_licence_there_is_none(trained, tmp_path):
    ignored = shutil.ignore_patterns("LICENCE.txt", "export")
    path = exports(shutil.copytree(trained, tmp_path / "copy", ignore=ignored))
    assert tiny.call("--mode=import", f"--source={path}", f"--workdir={tmp_path / 'run'}") == 0
    assert not (tmp_path / "run" / "LICENCE.txt").exists()


@pytest.mark.slow
def test_exported_with_its_authors_names(trained, tmp_path, capsys):
    """What `families.to_torch` makes; it comes back as that family's, still under our licence."""
    path = exports(trained, "--family=jit")
    assert path.name == "jit-0.5-step0.safetensors"
    model = vitdiff_jax.load(trained)
    known = model.experiment
    wanted = families.to_torch(
        "jit",
        NetworkSpec(known.config.to_dict(), known.shape, known.conditions, "net."),
        model.params,
    )
    tiny.assert_same(load_file(path), wanted)
    again = tmp_path / "again"
    code, message = fails(capsys, "--mode=import", f"--source={path}", f"--workdir={again}")
    assert (code, message) == (2, f"--family: required for {path}, one of jit")
    assert tiny.call("--mode=import", *flags(path, "jit:class_tokens_from=1", again)) == 0
    found = vitdiff_jax.load(again)
    tiny.assert_same(tiny.arrays(found.params), tiny.arrays(model.params))
    assert found.experiment.model == known.model
    assert found.licence == "Not for sale\n\nFrom me\n"


@pytest.mark.parametrize("name", quick(["dit"], ["sit", "uvit", "dit"]))
def test_what_was_imported_goes_out_as_it_came(copy_of, name):
    """Through our parameters and back, every tensor bit by bit."""
    workdir = copy_of(name)
    path = exports(workdir, f"--family={name}")
    tiny.assert_same(load_file(path), tensors_of(name))
    module = families.find(name)
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["vitdiff_jax"])
    assert about["licence"] == f"{module.LICENCE}\n\nFrom {module.SOURCE}\n"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("dit", "--family: config.model.name: vit is not this family's dit"),
        pytest.param(
            "autoencoder",
            "--family: autoencoder does not apply to the model vit",
            marks=pytest.mark.slow,
        ),
        ("resnet", "--family: family: 'resnet' is not one of autoencoder, dit, "),
    ],
)
def test_what_a_family_cannot_express_is_one_line(trained, capsys, family, message):
    before = tiny.files(trained)
    code, found = fails(capsys, f"--workdir={trained}", "--mode=export", f"--family={family}")
    assert (code, found[: len(message)]) == (2, message)
    assert tiny.files(trained) == before


def test_an_exported_file_runs_no_code_elsewhere(trained, tmp_path, capsys):
    """Its config came from elsewhere: components by dotted names are refused."""
    path, source = exports(trained), tmp_path / "a.safetensors"
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["vitdiff_jax"])
    cases = [
        (about | {"config": about["config"] | {"data": {"name": "antigravity.fly"}}}, "data names"),
        ({k: v for k, v in about.items() if k != "shape"}, "damaged: its metadata is incomp"),
        (about | {"config": about["config"] | {"model": {"name": "dit", "patch": 4}}}, "its param"),
    ]
    for changed, message in cases:
        save_file(load_file(path), source, {"vitdiff_jax": json.dumps(changed)})
        given = [f"--source={source}", f"--workdir={tmp_path / 'run'}"]
        code, found = fails(capsys, "--mode=import", *given)
        assert code == 1
        assert found.startswith(f"{source}: ")
        assert message in found
    assert not (tmp_path / "run").exists()
