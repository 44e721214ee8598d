"""Starting from given parameters: what is kept, resized and new, and that all of it is said."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import loading
from vitdiff_jax.interop import families
from vitdiff_jax.runtime import parallel
from vitdiff_jax.runtime.checkpoint import Checkpoints
from vitdiff_jax.training import finetune
from vitdiff_jax.training.step import TrainState

DIGITS = {"label": tuple("0123456789")}
pytestmark = pytest.mark.usefixtures("plain")
slow = pytest.mark.slow
OTHERS = dict(width=16, depth=2, heads=2)
UVIT = dict(name="uvit", patch=2, **OTHERS)
TABLE = "conditions/label/table/embedding"


def built(model=None, shape=(8, 8, 1), conditions=DIGITS, **changes):
    """An experiment; model: another whole section of the config, or changes of tiny's."""
    model = model or {}
    settings = tiny.config(model=model if "name" in model else dict(depth=1) | model, **changes)
    return experiment_lib.build(config_lib.complete(settings), shape, conditions)


def randoms(experiment, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: random.normal(size=a.shape).astype("f4"), experiment.param_shapes()
    )


def saved(workdir, experiment):
    """A workdir as training leaves one, with two averages; returns these."""
    names = experiment_lib.tracked_emas(experiment.config)
    emas = {name: randoms(experiment, seed) for seed, name in enumerate(names, 1)}
    checkpoints = Checkpoints(workdir / "checkpoints")
    replicated = parallel.replicated(parallel.make_mesh())
    state = TrainState(jnp.int32(7), jnp.int32(0), {}, {}, jax.device_put(emas, replicated))
    meta = {"shape": experiment.shape, "conditions": dict(experiment.conditions)}
    checkpoints.save(7, state, meta)
    checkpoints.close()
    config_lib.save(experiment.config, workdir / "config.json")
    return emas


@pytest.fixture
def started(tmp_path, capsys):
    """(source, new) -> {path: array} each of the source, the first and the started parameters,
    {list: (parameters, arrays, text)} of what was said.
    """

    def start(source, new):
        given = families.flatten(next(iter(saved(tmp_path / "source", source).values())))
        new.config.train.init_from = str(tmp_path / "source")
        replicated = parallel.replicated(parallel.make_mesh())
        first = jax.device_put(randoms(new, 9), replicated)
        emas = {name: jax.tree.map(jnp.copy, first) for name in ("0.9", "width0.05")}
        before = jax.tree.map(np.asarray, first)
        state = TrainState(jnp.int32(0), jnp.int32(0), first, {"count": 0}, emas)
        capsys.readouterr()
        state = finetune.init_from(state, new)
        found = tiny.arrays(state.params)
        for average in state.ema.values():
            tiny.assert_same(tiny.arrays(average), found)
        assert (int(state.step), state.opt_state) == (0, {"count": 0})
        found = families.flatten(jax.tree.map(np.asarray, state.params))
        before = families.flatten(before)
        said = lists(capsys.readouterr().out)
        if not any(name.startswith("blocks_") for name in [*found, *given]):
            complete(said, given, found)
        return given, before, found, said

    return start


def lists(out):
    """{name of a list: (parameters, arrays, its paths)} of what `start` prints."""
    pattern = r"^(.+): ([\d,]+) parameters in (\d+) arrays: (.+)$"
    found = re.findall(pattern, out, re.M)
    return {
        name: (int(size.replace(",", "")), int(arrays), text.split(", "))
        for name, size, arrays, text in found
    }


def below(texts, names):
    """The names that the paths in a list stand for."""
    paths = []
    for text in texts:
        if several := re.fullmatch(r"block_(\d+)\.\.(\d+)(.*)", text):
            numbers = range(int(several[1]), int(several[2]) + 1)
            paths += [f"block_{i}{several[3]}" for i in numbers]
        else:
            paths.append(text)
    return [n for n in names for path in paths if n == path or n.startswith(f"{path}/")]


def complete(said, given, found):
    """Each array is in one list, with its parameters; so is what was left out."""
    seen = []
    for name, (size, arrays, texts) in said.items():
        every = given if name == "not used" else found
        here = below(texts, every)
        assert len(here) == arrays
        assert sum(every[n].size for n in here) == size
        seen += here
    assert sorted(seen) == sorted(found.keys() | given.keys())


def assert_kept(found, given, names):
    tiny.assert_same({n: found[n] for n in names}, {n: given[n] for n in names})


def test_the_same_network_starts_as_the_average_of_the_source(tmp_path, capsys):
    """That which its config samples with; all averages start there, the optimiser anew. The
    licence comes along; to go on, what was saved is enough.
    """
    settings = dict(train=dict(ema=(0.99, 0.5)), sample=dict(ema=0.5))
    emas = saved(tmp_path / "source", built(tiny.PLAIN, **settings))
    path = str(tmp_path / "source")
    (tmp_path / "source" / "LICENCE.txt").write_text("Not for sale\n")
    changes = dict(model=tiny.PLAIN, train=dict(ema=(0.9, 0.8), ema_widths=(0.05,), init_from=path))
    run = tiny.run(tiny.config(**changes), tmp_path / "run")
    state = run.state()
    wanted = tiny.arrays(emas["0.5"])
    tiny.assert_same(tiny.arrays(state.params), wanted)
    assert set(state.ema) == {"0.9", "0.8", "width0.05"}
    for average in state.ema.values():
        tiny.assert_same(tiny.arrays(average), wanted)
    assert not any(a.any() for a in tiny.arrays(state.opt_state).values())  # counts, moments
    assert (int(state.step), int(state.bad_steps)) == (0, 0)
    out = capsys.readouterr().out
    assert f"initialising from {path}, step 7\n" in out
    said = lists(out)
    assert list(said) == ["copied"]
    complete(said, families.flatten(emas["0.5"]), families.flatten(emas["0.5"]))
    finetune.copy_licence(run.config, run.workdir)
    assert (tmp_path / "run" / "LICENCE.txt").read_text() == "Not for sale\n"
    run.checkpoints.save(0, state, loading.meta_of(run.dataset))
    run.checkpoints.close()
    shutil.rmtree(path)
    finetune.check(run.config, run.workdir)
    tiny.assert_same(tiny.saved(tiny.config(**changes), run.workdir), tiny.arrays(state))
    assert "copied" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        pytest.param(tuple("abcde"), {5: 10}, marks=slow),
        (tuple("ab3d0ef"), {2: 3, 4: 0, 7: 10}),
        pytest.param(tuple("abcdefghij"), {10: 10}, marks=slow),  # as many, and yet others
        (tuple("9876543210"), {**{i: 9 - i for i in range(10)}, 10: 10}),
    ],
    ids=["others", "some", "as many", "another order"],
)
def test_classes_are_kept_by_their_names(started, names, kept):
    """ "No class" is one of them; the table of all others is new, and nothing else."""
    given, first, found, said = started(built(), built(conditions={"label": names}))
    assert_kept(found, given, found.keys() - {TABLE})
    for i, row in enumerate(found[TABLE]):
        wanted = given[TABLE][kept[i]] if i in kept else first[TABLE][i]
        np.testing.assert_array_equal(row, wanted)
    assert said["partly copied, by name"][2] == ["conditions"]
    assert set(said) == {"copied", "partly copied, by name"}


def test_attributes_are_kept_by_their_names(started):
    """A row for having each, then a row for not having it."""
    name = "conditions/attributes/table"
    given, first, found, said = started(
        built(conditions={"attributes": ("hat", "beard")}),
        built(conditions={"attributes": ("young", "hat", "tie")}),
    )
    wanted = first[name].copy()
    wanted[[1, 4]] = given[name][[0, 2]]
    np.testing.assert_array_equal(found[name], wanted)
    assert_kept(found, given, found.keys() - {name})
    assert set(said) == {"copied", "partly copied, by name"}


def test_other_conditions_are_new_and_old_ones_left_out(started):
    given, first, found, said = started(built(), built(conditions={"attributes": ("hat",)}))
    name = "conditions/attributes/table"
    np.testing.assert_array_equal(found[name], first[name])
    assert_kept(found, given, found.keys() - {name})
    assert said["newly initialised"][2] == ["conditions"]
    assert said["not used"][2] == ["conditions"]


@pytest.mark.parametrize(
    "model", [dict(patch=4), pytest.param(dict(name="dit", patch=2, **OTHERS), marks=slow)]
)
def test_fixed_positions_need_nothing(started, model):
    """Other sizes, not square ones too: all is kept."""
    given, _, found, said = started(built(model), built(model, (8, 16, 1)))
    assert_kept(found, given, found)
    assert list(said) == ["copied"]


def bicubic(grid, rows, cols):
    """Pillow's, which is of the same convolution: Keys' cubic of -1/2, widened to make less."""
    parts = [
        Image.fromarray(grid[..., i]).resize((cols, rows), Image.Resampling.BICUBIC)
        for i in range(grid.shape[-1])
    ]
    return np.stack([np.asarray(part) for part in parts], -1)


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        ((12, 16, 1), UVIT),
        pytest.param((4, 6, 1), UVIT, marks=slow),
        pytest.param((16, 16, 1), UVIT | dict(patch=4), marks=slow),
    ],
    ids=["more", "less", "as many"],
)
def test_learned_positions_are_resized_to_another_grid(started, shape, model):
    """Those of the tokens before the patches stay; an equal grid stays bit by bit."""
    given, first, found, said = started(built(UVIT), built(model, shape))
    rows, cols = shape[0] // model["patch"], shape[1] // model["patch"]
    wanted = bicubic(given["positions"], rows, cols)
    np.testing.assert_allclose(found["positions"], wanted, atol=2e-5)
    if model is not UVIT:
        np.testing.assert_array_equal(found["positions"], given["positions"])
        assert {"patches/kernel", "head"} == set(said["newly initialised"][2])
        return
    assert np.ptp(found["positions"] - first["positions"]) > 1
    assert said["resized"][2] == ["positions"]
    assert set(said) == {"copied", "resized"}
    assert_kept(found, given, found.keys() - {"positions"})


@pytest.mark.slow
def test_the_places_of_a_text_are_no_grid(started):
    """Those of a longer text are new: place 3 of 4 is not place 3 of 8."""
    source, new = (built(dict(text_width=8), conditions={"text": n}) for n in (16, 32))
    given, first, found, said = started(source, new)
    name = "conditions/text/positions"
    np.testing.assert_array_equal(found[name], first[name])
    assert said["newly initialised"][2] == [name]
    assert_kept(found, given, found.keys() - {name})


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (dict(patch=4), ["bottleneck_in", "head"]),
        pytest.param(dict(name="dit", patch=2, **OTHERS), ["patches/kernel", "head"], marks=slow),
        pytest.param(UVIT, ["patches/kernel", "head", "final_conv"], marks=slow),
    ],
    ids=["vit", "dit", "uvit"],
)
def test_other_channels_have_a_new_way_in_and_out(started, model, names):
    given, first, found, said = started(built(model), built(model, (8, 8, 3)))
    assert set(said) == {"copied", "newly initialised"}
    assert set(said["newly initialised"][2]) == set(names)
    new = below(names, found)
    tiny.assert_same({n: found[n] for n in new}, {n: first[n] for n in new})
    assert_kept(found, given, found.keys() - set(new))


@pytest.mark.parametrize(
    "scans",
    [
        (True, False),
        pytest.param((False, True), marks=slow),
        *(pytest.param(2 * (s,), marks=slow) for s in (False, True)),
    ],
)
def test_a_deeper_network_has_new_blocks(started, scans):
    """Rolled up or not, both sides; in a shallower one blocks are left out."""
    shallow, deep = (dict(depth=n, class_tokens_from=1) for n in (2, 4))
    pair = [built(m | dict(scan=scan)) for m, scan in zip((shallow, deep), scans)]
    given, first, found, said = started(*pair)
    assert any(name.startswith("blocks_") for name in found) == scans[1]
    given, first, found = (
        families.flatten(families.unstack_blocks(families.unflatten(a)))
        for a in (given, first, found)
    )
    assert set(said) == {"copied", "newly initialised"}
    assert said["newly initialised"][2] == ["block_2..3"]
    complete(said, given, found)
    new = [n for n in found if re.match(r"block_[23]/", n)]
    tiny.assert_same({n: found[n] for n in new}, {n: first[n] for n in new})
    assert_kept(found, given, found.keys() - set(new))


def test_a_wider_network_keeps_next_to_nothing(started):
    """And says so: what does not depend on the width."""
    given, first, found, said = started(built(), built(dict(width=32)))
    names = {"bottleneck_in/kernel", "head/bias"}
    assert_kept(found, given, names)
    assert_kept(found, first, found.keys() - names)
    assert set(said["copied"][2]) == {"bottleneck_in", "head/bias"}


def test_another_process_is_named(tmp_path, capsys):
    saved(tmp_path / "source", built(tiny.PLAIN))
    new = built(
        tiny.PLAIN,
        train=dict(init_from=str(tmp_path / "source")),
        diffusion=dict(prediction="v", schedule=dict(name="Cosine")),
    )
    first = jax.device_put(randoms(new, 9), parallel.replicated(parallel.make_mesh()))
    finetune.init_from(TrainState(0, 0, first, {}, {}), new)
    assert (
        "warning: the source was trained with other settings: diffusion.prediction: 'x' -> 'v';"
        " diffusion.schedule.name: 'RectifiedFlow' -> 'Cosine'"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("what", ["nothing", "a file", "no checkpoint", "code"])
def test_a_source_that_is_none_is_one_line_and_leaves_nothing(tmp_path, capsys, what):
    source, run = tmp_path / "source", tmp_path / "run"
    message = f"{source / 'config.json'}: not found"
    if what == "a file":
        source.write_text("weights")
        message = f"{source} is a file; convert it to a workdir with --mode=import"
    elif what != "nothing":
        source.mkdir()
        settings = built().config
        message = f"{source}: contains no checkpoints"
        if what == "code":
            settings.data.name = "antigravity.fly"
            message = f"{source / 'config.json'}: data names code outside the package"
        config_lib.save(settings, source / "config.json")
    config = tiny.write(tmp_path / "tiny.py")
    capsys.readouterr()
    code = tiny.call(config, f"--workdir={run}", f"--config.train.init_from={source}")
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith(f"error: config.train.init_from: {message}")
    assert captured.err.count("\n") == 1
    assert not run.exists()


def test_paths_are_shortened():
    every = ["a/b/c", "a/b/d", "a/e", "f", "head", "head_mod/k"]
    every += [f"block_{i}/{name}" for i in range(12) for name in ("in/k", "in/b", "out")]
    short = finetune.shortened
    assert short([], every) == []
    assert short(every, every) == ["a", "f", "head", "head_mod", "block_0..11"]
    assert short(["a/b/c", "a/b/d", "head"], every) == ["a/b", "head"]
    blocks = [n for n in every if re.match(r"block_(0|2|3|10|11)/in", n)] + ["block_3/out"]
    assert short(blocks, every) == ["block_0/in", "block_2/in", "block_10..11/in", "block_3"]
