"""A page to look at: figures, pictures under sliders and tables, in one HTML file.

The file needs nothing else: pictures are data URIs, plots inline SVG, and its own policy forbids a
browser to fetch anything or to run any script but the page's. All text is escaped.
"""

import base64
import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

HOME = pathlib.Path(__file__).parent
MOST_SIDE = 1200
"""Pixels: larger pictures are made smaller."""
MOST_BYTES = 250_000
"""Of a picture: PNG where that is enough, else WebP, made smaller until it fits."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as a page holds it. width, height: CSS pixels at zoom 1.

    pixelated: enlarged by integers, its pixels as squares.
    """

    uri: str
    width: int
    height: int
    alt: str
    pixelated: bool = False


@dataclasses.dataclass(frozen=True)
class Zoom:
    """How far the pictures of a figure are enlarged, on narrow and on wide screens.

    side: CSS pixels beside them, for names of rows.
    """

    narrow: float
    wide: float
    side: int = 0


@dataclasses.dataclass(frozen=True)
class Band:
    """A picture with names of the columns and rows of images in it, "" for none."""

    picture: Picture
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Frame:
    """Bands, beside each other where there is room. name: what differs from other frames."""

    bands: Sequence[Band]
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Frames, of which one is shown, the last at first; a slider changes it, if there are more.

    label: of what they are a series. full: over the whole width of the page.
    """

    frames: Sequence[Frame]
    zoom: Zoom
    caption: str
    label: str = ""
    full: bool = False
    kind: str = "gallery"


@dataclasses.dataclass(frozen=True)
class Compare:
    """Two pictures of one size over each other, with a border that moves."""

    label: str
    before: Picture
    after: Picture
    names: tuple[str, str]
    zoom: Zoom
    caption: str = ""
    kind: str = "compare"


@dataclasses.dataclass(frozen=True)
class Plot:
    """A panel of `plots`. alt: what is seen on it, in words."""

    svg: str
    alt: str
    caption: str = ""
    kind: str = "plot"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, the head apart; mark: the row that stands out. folded: opened on request."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    mark: int | None = None
    folded: bool = False
    kind: str = "table"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What could not be shown, and why."""

    text: str
    kind: str = "problem"


Part = Gallery | Compare | Plot | Table | Facts | Problem


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: list[Part]

    @property
    def anchor(self) -> str:
        """For links within the page."""
        return "-".join(self.title.lower().split())


def careful(what: str, parts: Iterator[Part]) -> Iterator[Part]:
    """These parts; in place of those that cannot be made, for whatever is in the files, why."""
    try:
        yield from parts
    except Exception as error:
        yield problem(what, error)


def problem(what: str, error: Exception) -> Problem:
    """What went wrong with something."""
    if isinstance(error, UnidentifiedImageError):  # whose text holds an address in memory
        return Problem(f"{what}: not an image")
    return Problem(f"{what}: {type(error).__name__}: {error}")


def picture(
    source: epath.Path | np.ndarray, alt: str, most: int = MOST_BYTES, pixelated: bool | None = None
) -> Picture:
    """A file, or uint8 [H, W, C] as of `images.save_png`, within `MOST_SIDE` and `most` bytes.

    pixelated: None: where it is small. Raises OSError or ValueError for what is no picture.
    """
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source[..., 0] if source.shape[2] == 1 else source)
    else:
        with Image.open(io.BytesIO(source.read_bytes())) as file:
            image = file.convert("L" if file.mode in ("1", "L") else "RGB")
    image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    size = image.size
    if pixelated is None:
        pixelated = max(size) < 400
    kind, data = "png", _encoded(image, "PNG", optimize=True)
    while len(data) > most:
        kind, data = "webp", _encoded(image, "WEBP", quality=85)
        if len(data) > most:
            image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, *size, alt, pixelated)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def render(title: str, lead: str, facts: Facts, sections: Sequence[Section]) -> str:
    """The whole page. lead: a sentence below the title."""
    import jinja2

    folder = jinja2.FileSystemLoader(HOME)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script, style = ((HOME / name).read_text() for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        title=title, lead=lead, facts=facts, sections=sections,
        script=script, style=style, digest=digest,
    )  # fmt: skip
