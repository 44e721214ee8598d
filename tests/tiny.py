"""A run of seconds: its config, and the command started in this process or in one of its own."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import grain  # noqa: F401 - what takes long to import, no test's time counts
import jax
import jax.numpy as jnp
import jinja2  # noqa: F401
import matplotlib.figure  # noqa: F401
import numpy as np
import sklearn.datasets  # noqa: F401
import tensorboardX  # noqa: F401

from vitdiff_jax import main, models
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.runtime import parallel
from vitdiff_jax.runtime.checkpoint import Checkpoints
from vitdiff_jax.training import loop, step

REPOSITORY = pathlib.Path(__file__).parents[1]
POISON = pathlib.Path(__file__).parent / "poison"
DIGITS = tuple("0123456789")
CONFIG = dict(
    data=dict(name="digits"),
    model=dict(
        name="vit", patch=4, width=16, depth=2, heads=2, bottleneck=4,
        class_tokens=2, class_tokens_from=1,
    ),
    optimizer=dict(learning_rate=1e-3, warmup=2, clip=1.0),
    train=dict(steps=30, batch=8, ema=(0.99,)),
    checkpoint=dict(every=10, keep=3),
    log=dict(every=10, sample_every=0, heldout_every=0, images=4),
    sample=dict(sampler=dict(name="euler"), steps=2, batch=8),
)  # fmt: skip


PLAIN = dict(name="plain")
"""A model for `config` that compiles in a fifth of a ViT's time; see `plain_network`."""
WIDE = dict(name="tests.networks.plain", width=64)
"""The same as external code, for files of configs only; FSDP and ZeRO-1 shard its matrices."""
UNIFORM = dict(times=dict(name="uniform"))
"""A diffusion section whose distribution of times compiles nothing."""


def config(**changes):
    """CONFIG with other values: config(model=dict(width=32)); another name, other options."""
    merged = {name: dict(section) for name, section in CONFIG.items()}
    for name, section in changes.items():
        known = merged.get(name, {})
        other = known.get("name") != section.get("name", known.get("name"))
        merged[name] = dict(section) if other else known | section
    return merged


def write(path, **changes):
    """The same as a config file; returns its --config flag."""
    path.write_text(f"def get_config():\n    return {config(**changes)!r}\n")
    return f"--config={path}"


@contextlib.contextmanager
def plain_network():
    """Inside, `networks/plain.py` is one of the package's models, so config.json may name it."""
    folder = str(pathlib.Path(__file__).parent / "networks")
    models.__path__.append(folder)
    yield
    models.__path__.remove(folder)


def random_params(experiment, seed=0, scale=0.3):
    """Not the initial ones, whose output is 0 whatever the input."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype),
        experiment.param_shapes(),
    )


def save(workdir, settings, seed=0, shape=(8, 8, 1), classes=DIGITS, scale=0.3):
    """A workdir at step 0 that was not trained: each EMA has random parameters of its own."""
    settings = config_lib.complete(settings)
    known = experiment_lib.build(settings, shape, {"label": classes})
    names = experiment_lib.tracked_emas(settings)
    emas = {name: random_params(known, [seed, i], scale) for i, name in enumerate(names)}
    state = step.TrainState(jnp.int32(0), jnp.int32(0), {}, {}, emas)
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(0, state, {"shape": shape, "conditions": {"label": classes}})
    checkpoints.close()
    config_lib.save(settings, workdir / "config.json")
    return workdir


def call(*flags):
    """The command in this process, where jax is already imported; returns its exit code."""
    return main.main([str(flag) for flag in flags])


def environment(devices=1):
    """For a process of its own: so many CPU devices, and no TensorFlow (see poison/)."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    paths = [str(POISON), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XLA_FLAGS": flags,
    }


@contextlib.contextmanager
def started(*arguments, devices=1):
    """A Python process with these arguments; it does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=REPOSITORY, env=environment(devices),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def command(*flags, devices=1, seconds=240):
    """The command in a process of its own, to its end: (exit code, stdout, stderr)."""
    with started("-m", "vitdiff_jax.main", *flags, devices=devices) as process:
        out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def until(condition, *processes, seconds=240):
    """Wait for something that these processes do."""
    end = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes), "it ended too early"
        assert time.monotonic() < end
        time.sleep(0.005)


def logged(workdir):
    """The steps of metrics.jsonl's lines, so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def run(settings, workdir):
    """The `train.Run` of a workdir, on all devices of this process."""
    settings = config_lib.complete(settings)
    dataset = experiment_lib.dataset(settings)
    experiment = experiment_lib.build(settings, dataset.shape, dataset.conditions)
    mesh = parallel.make_mesh(settings.parallel.fsdp)
    checkpoints = Checkpoints(workdir / "checkpoints")
    return loop.Run(settings, workdir, dataset, experiment, mesh, checkpoints)


def saved(settings, workdir):
    """What training would go on with: {path: array} of the newest state in a workdir."""
    found = run(settings, workdir)
    assert found.checkpoints.newest() is not None
    return arrays(found.state())


def arrays(tree):
    """{path: NumPy array} of a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(found, wanted):
    """Bit for bit, and nothing more or less."""
    assert found.keys() == wanted.keys()
    assert not [name for name in wanted if found[name].tobytes() != wanted[name].tobytes()]


def files(directory):
    """{relative path: contents} of everything below a directory, to see that nothing changed."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }
