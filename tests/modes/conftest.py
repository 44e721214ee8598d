"""Models of digits that nobody trained: most modes need parameters, and it does not matter which.

Made once in a process, only to be read: a test that writes takes a copy.
"""

import shutil

import pytest

from tests import tiny
from vitdiff_jax.reporting import plots

COUNT, SEED = 80, 500
CHANGES = dict(
    train=dict(ema=(0.5, 0.99)),
    sample=dict(batch=16),
    evaluate=dict(metrics=("pixel_frechet",), images=COUNT, seed=SEED),
    restore=dict(steps=3, batch=4, images=6, methods=("ddrm", "repaint:jump=1,resample=2")),
)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The workdir of a plain network with two EMAs."""
    with tiny.plain_network():
        settings = tiny.config(model=tiny.PLAIN, **CHANGES)
        workdir = tmp_path_factory.mktemp("untrained") / "run"
        return tiny.save(workdir, settings, scale=0.15)  # few pixels are clipped


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The --config flag of the first."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    return tiny.write(path, model=tiny.PLAIN, **CHANGES)


@pytest.fixture
def workdir(untrained, plain, tmp_path):
    return shutil.copytree(untrained, tmp_path / "run")


PANELS = {name: getattr(plots, name) for name in ("curves", "sweep_panel")}


@pytest.fixture(scope="session", autouse=True)
def panels():
    """Every command ends with a report: a panel of the same numbers is drawn once."""
    known = {}

    def once(draw):
        def panel(*given):
            key = repr((draw.__name__, given))
            if key not in known:
                known[key] = draw(*given)
            return known[key]

        return panel

    with pytest.MonkeyPatch.context() as patch:
        for name, draw in PANELS.items():
            patch.setattr(plots, name, once(draw))
        yield


@pytest.fixture
def drawn_anew(panels, monkeypatch):
    """For a test of what plots are themselves."""
    for name, draw in PANELS.items():
        monkeypatch.setattr(plots, name, draw)
