"""What a mode needs is read before it writes: a refused command leaves the workdir as it was."""

from tests import tiny
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.modes import sample


def tree(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_nearest_images_of_data_that_are_gone(workdir, monkeypatch, capsys):
    def gone(config):
        raise DataError("/nowhere: no such folder")

    monkeypatch.setattr(sample, "pixel_dataset", gone)
    before = tree(workdir)
    assert tiny.call(f"--workdir={workdir}", "--mode=sample", "--n=2", "--nearest") == 1
    assert capsys.readouterr().err == "error: /nowhere: no such folder\n"
    assert tree(workdir) == before
