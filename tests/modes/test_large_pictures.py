"""Pictures in many tiles: the plan, progress, Ctrl-C and too little memory."""

import dataclasses
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.schedules import EDM, RectifiedFlow
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.inference import loading, progress, restoring, tile_plan
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.inference.progress import Meter
from vitdiff_jax.runtime import logs, memory

PICTURE = np.random.default_rng(0).integers(0, 256, (21, 30), np.uint8)
TILES = 4 * 5
"""Of 8 x 8 pixels, for every offset."""
slow = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture
def observed(monkeypatch):
    """As if it were much work."""
    monkeypatch.setattr(tile_plan, "OBSERVED", 0)


def load(workdir, *flags):
    return loading.load(workdir, config_lib.read(workdir / "config.json", flags))


@pytest.fixture
def model(untrained):
    return load(untrained, "--config.restore.tiles=7")


@pytest.mark.parametrize(("method", "schedule", "calls"), [
    ("ddrm", RectifiedFlow(), 3), pytest.param("ddrm", EDM(), 3, marks=slow),
    pytest.param("dps", RectifiedFlow(), 3 * 2, marks=slow),
    pytest.param("pigdm:covariance=tweedie,iterations=1", EDM(), 3 * 3, marks=slow),
])  # fmt: skip
def test_progress_goes_from_nothing_to_all(model, observed, capsys, method, schedule, calls):
    """In calls of the network: three steps of four chunks.

    20 tiles are four times 5, with none to pad. A gradient repeats each; "tweedie" has two.
    """
    known = dataclasses.replace(model.experiment, process=Process(schedule, "x"))
    model = TrainedModel(known, model.params, 0, model.mesh)
    told = []
    how = dict(noise_std=0.1, method=method)
    found = model.restore(PICTURE, "denoise", **how, progress=lambda *a: told.append(a))
    assert found.about["network_calls"] == 3
    (program,) = model._restorer._programs.values()
    done, totals = zip(*told)
    jax.effects_barrier()
    assert program.meter.calls == totals[0]
    assert set(totals) == {4 * calls}
    assert done == tuple(sorted(done))
    assert done[-1] == totals[0]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"30 x 21 pixels: {TILES} tiles of 8 x 8, 5 at a time; 3 steps, ")
    assert "about 0:00:0" in line


@pytest.mark.slow
def test_without_progress_nothing_is_said(model, observed, capsys):
    model.restore(PICTURE, "denoise", noise_std=0.1)
    assert capsys.readouterr().out == ""


@slow
def test_observation_changes_nothing(untrained, observed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tile_plan, "OBSERVED", np.inf)
        wanted = load(untrained).restore(PICTURE, "denoise", noise_std=0.1)
    found = load(untrained).restore(PICTURE, "denoise", noise_std=0.1)
    np.testing.assert_allclose(found.samples, wanted.samples, atol=1e-6)


@slow
def test_chunks_change_nothing(untrained):
    """The offsets are of the image's key, whatever lies in a network call."""
    one, other = (
        load(untrained, f"--config.restore.tiles={n}").restore(PICTURE, noise_std=0.1, n=2)
        for n in (3, 1000)
    )
    np.testing.assert_allclose(one.samples, other.samples, atol=1e-5)


@pytest.mark.parametrize("what", [KeyboardInterrupt, pytest.param(ZeroDivisionError, marks=slow)])
def test_what_progress_raises_ends_the_work(model, observed, caplog, what):
    """At once, without a word, and the next picture can be restored."""

    def progress(done, total):
        if done:
            raise what

    with pytest.raises(what):
        model.restore(PICTURE, "denoise", noise_std=0.1, progress=progress)
    assert "program" not in {thread.name for thread in threading.enumerate()}
    assert not caplog.records
    model.restore(PICTURE, "denoise", noise_std=0.1)


def test_an_interrupted_command_leaves_nothing(workdir, tmp_path, observed, monkeypatch, capsys):
    Image.fromarray(PICTURE).save(tmp_path / "photo.png")
    before = tiny.files(tmp_path)

    def interrupt(self, done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.Bar, "__call__", interrupt)
    flags = [f"--input={tmp_path / 'photo.png'}", "--task=denoise", "--noise=0.1"]
    assert tiny.call(f"--workdir={workdir}", "--mode=restore", *flags) == 1
    assert capsys.readouterr().err == "error: interrupted; run the same command to continue\n"
    assert tiny.files(tmp_path) == before


def test_a_program_stops_within_a_network_call():
    """One that would run for minutes; `Meter` raises in it, and nothing is left of it."""
    meter = Meter()

    @jax.jit
    def forever(x):
        def body(i, x):
            jax.debug.callback(meter.tick, x[0, 0])
            return jnp.tanh(x @ x)

        return jax.lax.fori_loop(0, 10**7, body, x)

    def report(done):
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meter.watch(lambda: jax.block_until_ready(forever(jnp.eye(8))), report)
    assert "program" not in {thread.name for thread in threading.enumerate()}


def test_a_program_that_is_about_to_end_is_waited_for_at_exit(monkeypatch):
    monkeypatch.setattr(progress.os, "_exit", pytest.fail)
    thread = threading.Thread(target=time.sleep, args=[0.1])
    thread.start()
    progress._leave(thread)


# --- Memory ---


def test_too_little_memory_is_one_line_before_the_work(untrained, monkeypatch):
    """The line says how much is needed, what there is, and what would fit."""
    monkeypatch.setattr(memory, "free", lambda device: 10_000)
    with pytest.raises(restoring.RestorationError) as caught:
        load(untrained).restore(PICTURE, "denoise", noise_std=0.1)
    found = str(caught.value)
    assert found.startswith("30 x 21 pixels take ")
    assert "0 MiB are free: enough for 0.0 megapixels" in found
    assert "\n" not in found


def test_what_fits_is_proportional_to_the_pixels(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 3 * 2**30)
    device = jax.devices()[0]
    assert tile_plan.excess(3 * 2**30, device, (3000, 4000, 3)) == ""
    found = tile_plan.excess(6 * 2**30, device, (3000, 4000, 3))
    assert "take 6.0 GiB of memory, and 3.0 GiB are free: enough for 6.0 megapixels" in found
    monkeypatch.setattr(memory, "free", lambda device: None)
    assert tile_plan.excess(6 * 2**50, device, (3000, 4000, 3)) == ""


def test_tiles_at_a_time_fit_into_what_is_free(untrained, monkeypatch):
    """Less of a gigabyte and a quarter of what is free; on a CPU, of the caches."""
    plans = {}
    for free in (None, 2**20, 2**30, 2**40):
        monkeypatch.setattr(memory, "free", lambda device, free=free: free)
        known = load(untrained)
        tiling = tile_plan.tiling_of(known.experiment, (4000, 3000, 1))
        cond = known.cond(1)
        made = tile_plan.plan(
            known.experiment, known.mesh, tiling, 1, 10, 10, 0, known.weights, cond
        )
        plans[free] = made.tiles
    assert plans[2**20] < plans[2**30] <= plans[2**40] == plans[None]
    assert plans[2**20] >= 1


def test_arrays_that_are_alive_at_once():
    """Three of 4 kB: the argument does not count, the first is kept until the end."""

    def function(x):
        one = jnp.sin(x)
        two = jnp.cos(one)
        three = jnp.tanh(two)
        return one + three

    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    assert memory.of_arrays(function, x) == 3 * 4096

    def looped(x):
        return jax.lax.fori_loop(0, 9, lambda i, x: function(x), x)

    assert 3 * 4096 <= memory.of_arrays(jax.jit(looped), x) < 5 * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_of_the_machine_or_its_container(tmp_path, monkeypatch):
    (device,) = jax.devices()[:1]
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    monkeypatch.setattr(memory, "INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.free(device) == 3000 * 1024
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(device) == 3000 * 1024
    (tmp_path / "memory.max").write_text("2500000\n")
    assert memory.free(device) == 1_500_000
    monkeypatch.setattr(memory, "INFO", tmp_path / "none")
    assert memory.free(device) is None


# --- The bar ---


def test_a_line_for_each_tenth_of_what_takes_long(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    with logs.Bar("photo.png") as bar:
        for done in range(101):
            now = done * 2.0
            bar(done, 100)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["photo.png: 10%, 0:03:00 left", "photo.png: 20%, 0:02:40 left"]
    assert len(lines) == 9
    with logs.Bar("photo.png") as bar:
        for done in range(101):
            now += 0.01
            bar(done, 100)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("overlap", [0.0, pytest.param(0.5, marks=slow)])
def test_overlap_chooses_the_tiles(untrained, overlap):
    found = load(untrained, f"--config.restore.overlap={overlap}").restore(PICTURE, noise_std=0.1)
    assert found.about["tiles"] == (5 * 7 if overlap else TILES)
