"""The notebook as Colab runs it: from top to bottom, and the parts that only Colab has."""

import contextlib
import io
import shutil
import sys
import types

import nbformat
import numpy as np
import PIL.Image
import pytest
from nbclient import NotebookClient

from tests import tiny

NOTEBOOK = tiny.REPOSITORY / "launch" / "colab.ipynb"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def source(start):
    """The code of the cell that begins with this."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells]
    (found,) = [text for text in cells if text.startswith(start)]
    return found


@pytest.mark.slow
def test_it_runs_and_shows_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGITS_STEPS", "40")  # the kernel inherits it; the shipped run is longer
    monkeypatch.setenv("PYTHONPATH", str(tiny.REPOSITORY))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]  # as it is in git
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 9  # drawn, of training 2, 2 drawn, the way, mine, repaired, another
    texts = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "No picture was uploaded: a digit" in texts
    assert "Nobody can paint here" in texts


class Colab:
    """A stand-in for google.colab: what the notebook asks of it, and what it says."""

    def __init__(self, monkeypatch, upload=None, eval_js=None):
        self.calls, self.page = [], None
        parts = dict(
            files=types.SimpleNamespace(upload=lambda: upload or {}),
            output=types.SimpleNamespace(eval_js=eval_js),
            drive=types.SimpleNamespace(mount=lambda path: self.calls.append(f"mount {path}")),
            auth=types.SimpleNamespace(authenticate_user=lambda: self.calls.append("auth")),
        )
        module = types.ModuleType("google.colab")
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.colab", module)
        self.names = dict(
            PIL=PIL, display=self.display, show=lambda images, columns: None,
            as_picture=lambda image: PIL.Image.fromarray(image.squeeze()),
            model=types.SimpleNamespace(experiment=types.SimpleNamespace(shape=(8, 8, 1))),
        ) | parts  # fmt: skip

    def display(self, shown):
        self.page = shown.data

    def run(self, start, **changes):
        """Execute a cell, with other values in its form."""
        text = source(start)
        for name, value in changes.items():
            lines = [line for line in text.splitlines() if line.startswith(f"{name} = ")]
            assert len(lines) == 1
            text = text.replace(lines[0], f"{name} = {value!r}")
        exec(compile(text, start, "exec"), self.names)
        return self.names


@pytest.fixture
def photo(tmp_path):
    """An RGBA file of 60x40 pixels whose tag turns it upright."""
    picture = PIL.Image.new("RGBA", (60, 40), (200, 10, 10, 255))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "photo.png", exif=exif)
    return {"photo.png": (tmp_path / "photo.png").read_bytes()}


def test_an_uploaded_picture_is_fitted_to_the_model(monkeypatch, photo):
    colab = Colab(monkeypatch, photo)
    grey = colab.run("# @title Choose")["picture"]
    assert (grey.shape, grey.dtype) == ((8, 8, 1), np.uint8)
    inverted = colab.run("# @title Choose", INVERT=True)["picture"]
    np.testing.assert_array_equal(inverted, 255 - grey)
    colab.names["model"].experiment.shape = (32, 32, 3)
    large = colab.run("# @title Choose", SIDE=64)["picture"]
    assert large.shape == (64, 64, 3)
    np.testing.assert_array_equal(large, np.broadcast_to([200, 10, 10], (64, 64, 3)))


def test_cancelled_a_digit_stands_in(monkeypatch, capsys):
    picture = Colab(monkeypatch).run("# @title Choose")["picture"]
    assert picture.shape == (8, 8, 1)
    assert "a digit" in capsys.readouterr().out


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with contextlib.closing(browser):
            yield browser


@pytest.mark.extra
@pytest.mark.parametrize("touch", [False, True])
def test_painting_in_a_browser_makes_the_mask(monkeypatch, browser, touch):
    """Strokes of a mouse or a finger; what was cleared does not count."""
    context = browser.new_context(has_touch=touch)
    page = context.new_page()
    devtools, errors = context.new_cdp_session(page), []
    page.on("pageerror", lambda error: errors.append(error))

    def person(expression):
        """Colab's eval_js: in the page of the output, with a promise waited for."""
        page.set_content(colab.page)
        box = page.locator("canvas").bounding_box()
        assert (box["width"], box["height"]) == (384, 192)

        def drag(*places):
            places = [(box["x"] + x, box["y"] + y) for x, y in places]
            if touch:
                for kind, at in zip(["touchStart", "touchMove"], places):
                    finger = [dict(x=at[0], y=at[1])]
                    devtools.send("Input.dispatchTouchEvent", dict(type=kind, touchPoints=finger))
                devtools.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))
            else:
                page.mouse.move(*places[0])
                page.mouse.down()
                page.mouse.move(*places[-1])
                page.mouse.up()

        drag((200, 20), (200, 180))
        page.click("text=Clear")
        page.fill("#brush", "24")
        drag((12, 36), (180, 36))  # rows of 24 pixels: the second, to the middle
        drag((300, 180))  # a dot, in row 7, column 12
        page.click("text=Done")
        return page.evaluate(expression)

    colab = Colab(monkeypatch, eval_js=person)
    picture = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
    colab.names.update(picture=picture, files=True, np=np, io=io)
    mask = colab.run("# @title Paint")["mask"]
    wanted = np.zeros((8, 16), bool)
    wanted[1, :8] = wanted[7, 12] = True
    assert errors == []
    assert mask.shape == wanted.shape
    np.testing.assert_array_equal(mask, wanted)
    context.close()


def test_models_come_from_drive_and_buckets(monkeypatch):
    """Each with the permission that it needs, asked for first."""
    colab = Colab(monkeypatch)
    sampled = types.SimpleNamespace(sample=lambda n, seed: None)
    load = lambda path: colab.calls.append(f"load {path}") or sampled  # noqa: E731
    colab.names.update(vitdiff_jax=types.SimpleNamespace(load=load))
    colab.run("WORKDIR")
    colab.run("WORKDIR", WORKDIR="/content/drive/MyDrive/runs/photos")
    colab.run("WORKDIR", WORKDIR="gs://bucket/runs/photos")
    assert colab.calls == [
        "load runs/colab-digits",
        "mount /content/drive", "load /content/drive/MyDrive/runs/photos",
        "auth", "load gs://bucket/runs/photos",
    ]  # fmt: skip
