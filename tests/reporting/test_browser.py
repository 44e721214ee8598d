"""The report in headless Chromium: what a reader sees, with keys alone, on any screen."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.reporting import reports
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.interop import sheets
from vitdiff_jax.modes import report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = report.write(reports.workdir(tmp_path_factory.mktemp("browser") / "run"))
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """open(**how) -> the page; at the end no complaint of it, and no request but for itself."""
    said, asked, pages = [], [], []

    def opened(**how):
        page = browser.new_page(**how)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address] * len(pages)


def test_a_slider_by_keyboard(opened):
    """The picture that is shown and the text that is announced follow the keys."""
    page, what = opened(), "4 samples of 3 classes, step {}; columns: cat, dog, eel"
    slider = page.get_by_role("slider", name="Samples over training")
    shown = page.locator(".gallery img:visible").first
    assert slider.get_attribute("aria-valuetext") == "step 20"
    assert shown.get_attribute("alt") == what.format(20)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert shown.get_attribute("alt") == what.format(10)
    assert slider.get_attribute("aria-valuetext") == "step 10"
    assert page.locator(".gallery .now").inner_text() == "step 10"
    page.keyboard.press("End")
    assert shown.get_attribute("alt") == what.format(20)


def border(page):
    """Where the border between before and after is, in per cent, by what is painted."""
    clip = page.locator(".pair img").nth(1).evaluate("image => getComputedStyle(image).clipPath")
    return float(clip.removesuffix("%)").rpartition(" ")[2])


def test_before_and_after_by_keyboard_and_pointer(opened):
    page = opened(reduced_motion="reduce")  # what comes into view is there at once
    slider = page.get_by_role("slider", name="cat.png")
    assert border(page) == 50
    slider.focus()
    page.keyboard.press("Home")
    assert border(page) == 0
    assert slider.get_attribute("aria-valuetext") == "100 % restored"
    page.keyboard.press("ArrowRight")
    assert border(page) == 2
    assert slider.get_attribute("aria-valuetext") == "98 % restored"
    page.locator(".pair").scroll_into_view_if_needed()
    box = page.locator(".pair").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 5)
    assert border(page) == 2  # nothing is pressed
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 5)
    assert border(page) == pytest.approx(75, abs=2)


@pytest.mark.parametrize("width", [320, 390, 760, 1000, 1200])
def test_nothing_is_wider_than_the_screen(opened, width):
    page = opened(viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for element in page.locator("figure:visible, img:visible").all():
        box = element.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.fixture(scope="module")
def galleries(tmp_path_factory):
    """Pages of sheets of many kinds and sizes."""
    found, random = [], np.random.default_rng(0)
    for classes, size, n in ((1, 8, 64), (10, 8, 100), (10, 28, 100), (1000, 64, 64), (3, 256, 16)):
        home = tmp_path_factory.mktemp("galleries")
        (home / "samples").mkdir()
        names = [f"great white shark {i % classes}" for i in range(n)]
        for step in (10, 20):
            images = random.integers(0, 256, (n, size, size, 1), np.uint8)
            reports.samples(home, f"{step:08d}", images, names, step=step, seed=0)
        for kind, count in (("nearest", 2), ("restored", 3), ("trajectories", 8)):
            images = random.integers(0, 256, (8, count, size, size, 1), np.uint8)
            sheets.write(home / "samples" / f"{kind}.png", sheets.Sheet(kind, images, 4, names[:8]))
        image_lib.save_png(home / "samples" / "other.png", images[0, 0])
        found.append(report.write(home))
    return found


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_no_figure_is_taller_than_a_screen(browser, galleries, width, height):
    """Its pictures with their names take 80 % at most; small ones are enlarged by integers."""
    page = browser.new_page(viewport={"width": width, "height": height})
    for path in galleries:
        page.goto(path.as_uri())
        assert page.locator("figure:visible").count() >= 5
        for figure in page.locator("figure:visible").all():
            assert figure.bounding_box()["height"] < height
            frame = figure.locator(".frame:visible")
            assert frame.bounding_box()["height"] <= 0.8 * height
        for picture in page.locator("img.pixelated:visible").all():
            box, natural = picture.bounding_box(), picture.evaluate("image => image.naturalWidth")
            zoom = box["width"] / natural
            assert zoom == pytest.approx(round(zoom), abs=1e-3)
            assert zoom >= 1
            assert (
                picture.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
            )
    page.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (760, 1024), (390, 844)])
def test_names_stand_over_their_columns(browser, galleries, width, height):
    """And beside their rows: the middle of a name is in its column, and none is cut off."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(galleries[2].as_uri())
    for band in page.locator(".band:visible").all():
        image = band.locator("img").bounding_box()
        for kind, place, size in (("columns", "x", "width"), ("rows", "y", "height")):
            names = band.locator(f".{kind} span").all()
            for i, name in enumerate(names):
                box, share = name.bounding_box(), image[size] / len(names)
                middle = box[place] + box[size] / 2
                assert i * share < middle - image[place] < (i + 1) * share
                assert box["width"] > 0 < box["height"]
    page.close()


def test_bands_wrap_to_the_screen(browser, galleries):
    """Side by side on a laptop, below each other on a phone."""
    lines = {}
    for width, height in ((1280, 800), (390, 844)):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(galleries[1].as_uri())
        bands = page.locator("figure").first.locator(".frame:visible .band").all()
        lines[width] = [band.bounding_box()["y"] for band in bands]
        page.close()
    assert len(set(lines[1280])) == 1 < len(lines[1280])
    assert sorted(set(lines[390])) == lines[390]


def pixels(page, locator):
    """uint8 [H, W, 3] as it is painted."""
    with Image.open(io.BytesIO(locator.screenshot())) as file:
        return np.asarray(file.convert("RGB"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_goes_on_says_so(opened, scheme):
    """A shadow lies on the edge beyond which it goes on, and on that only."""
    page = opened(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    table = page.locator(".wide").filter(has=page.get_by_text("this report"))
    table.evaluate("found => found.querySelector('table').style.width = '800px'")

    def edges():
        painted = pixels(page, table).astype(int)
        paper = painted[2, painted.shape[1] // 2]  # above all letters
        return [bool(abs(painted[2, x] - paper).max() > 10) for x in (1, -2)]

    assert table.evaluate("found => found.scrollWidth > found.clientWidth")
    assert edges() == [False, True]
    table.evaluate("found => found.scrollLeft = 200")
    assert edges() == [True, True]
    table.evaluate("found => found.scrollLeft = 9999")
    assert edges() == [True, False]
    table.evaluate("found => { found.firstElementChild.hidden = true; found.style.height = '9px' }")
    assert edges() == [False, False]


def test_cells_of_numbers_do_not_break(opened):
    page = opened(viewport={"width": 390, "height": 844})
    for cell in page.locator(".wide:visible td").all():
        assert cell.bounding_box()["height"] < 50


def test_nothing_is_white_in_the_dark(browser, tmp_path):
    """Gutters and empty places of sheets, and plots: all images here are of middle grey."""
    home = tmp_path / "samples"
    home.mkdir()
    names = ["cat", "dog", "eel", "cat"]
    grey = np.full((4, 3, 8, 8, 1), 100, np.uint8)
    for kind, parts in (("samples", 1), ("nearest", 2), ("restored", 3), ("trajectories", 3)):
        sheets.write(home / f"{kind}.png", sheets.Sheet(kind, grey[:, :parts], 3, names))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}')
    page = browser.new_page(color_scheme="dark")
    page.goto(report.write(tmp_path).as_uri())
    found = page.locator("img:visible, .plot svg").all()
    assert len(found) == 5
    for element in found:
        painted = pixels(page, element)
        assert (painted.min(-1) > 200).mean() < 0.05  # letters and lines of plots
        assert (painted.max(-1) < 40).mean() > 0.05  # the paper
    page.close()


def test_light_and_dark(opened):
    """Also the letters and lines of plots: they are drawn in the theme's own colours."""
    found = {}
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        found[scheme] = [
            page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in (
                ("body", "backgroundColor"), ("svg text", "fill"), ("svg path[clip-path]", "stroke")
            )
        ]  # fmt: skip
    (paper, ink, line), (night, chalk, faint) = found["light"], found["dark"]

    def brightness(colour):
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    assert brightness(paper) > 700 > 200 > brightness(ink)
    assert brightness(night) < 100 < 600 < brightness(chalk)
    assert line != faint


def test_every_key_stop_has_a_name(opened):
    """One walks with Tab through links, sliders, tables and folded lists, each with a name."""
    page, names = opened(), []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "document.activeElement.ariaLabel || document.activeElement.innerText.trim()"
        )
        if page.evaluate("document.activeElement === document.body"):
            break
        names.append(name)
    assert all(names)
    for name in ("Samples", "Samples over training", "cat.png", "All 5 values"):
        assert name in names


def test_without_scripts_every_picture_is_there(browser, address):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address)
    assert page.locator(".gallery").first.locator("img:visible").count() == 2
    assert page.locator(".step:visible").all_inner_texts() == ["step 10", "step 20"]
    assert page.locator("input:visible").count() == 0
    page.close()
