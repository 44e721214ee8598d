"""The report in headless Chromium: what a reader sees, with keys alone, on any screen."""

import shutil

import pytest

from tests.reporting import reports
from vitdiff_jax.modes import report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")


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
    page = opened()
    slider = page.get_by_role("slider", name="Samples over training")
    shown = page.locator(".slider img:visible")
    assert slider.get_attribute("aria-valuetext") == "step 20"
    assert shown.get_attribute("alt") == "Grid of samples at step 20"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert shown.get_attribute("alt") == "Grid of samples at step 10"
    assert slider.get_attribute("aria-valuetext") == "step 10"
    assert page.locator(".slider .now").inner_text() == "step 10"
    page.keyboard.press("End")
    assert shown.get_attribute("alt") == "Grid of samples at step 20"


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


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_is_wider_than_the_screen(opened, width):
    page = opened(viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for figure in page.locator("figure:visible").all():
        box = figure.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


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
    for name in ("Samples", "Samples over training", "cat.png", "All 4 values"):
        assert name in names


def test_without_scripts_every_picture_is_there(browser, address):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address)
    assert page.locator(".slider img:visible").count() == 2
    assert page.locator("input:visible").count() == 0
    page.close()
