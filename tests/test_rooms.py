"""The package is a house of rooms on floors, and imports go down only: read off every file.

So a part can be understood, tested and replaced with what lies below it and nothing else.
`python -m tests.test_rooms --write` updates the drawings: the text in README.md and
docs/architecture.md, and docs/architecture.svg.
"""

import ast
import functools
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vitdiff_jax"
FLOORS = [  # from the top; the rooms of one floor never import each other
    ["main"],
    ["modes"],
    ["planning"],
    ["training"],
    ["inference"],
    ["evaluation", "experiment", "reporting", "restoration"],
    ["data", "interop", "operators", "samplers"],
    ["diffusion", "models", "runtime"],
]
ONLY_IN = {  # a library -> the rooms, or files of rooms, that may import it
    "flax.linen": {"models"},
    "orbax": {"runtime/checkpoint.py"},
    "fsspec": {"runtime/paths.py"},
    "clu": {"runtime/logs.py"},
    "tensorboardX": {"runtime/logs.py"},
    "tqdm": {"runtime/logs.py"},
    "matplotlib": {"reporting/plots.py"},
    "jinja2": {"reporting/page/__init__.py"},
    "safetensors": {"interop"},
    "pickle": {"interop/numpy_pickle.py", "interop/torch_pickle.py"},
    "torch": {"data"},
    "tensorflow": set(),
}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
PAGES = (ROOT / "README.md", ROOT / "docs" / "architecture.md")
IN_PAGES = re.compile(rf"^    {FLOORS[0][0]} (.*\n)+?    {FLOORS[-1][-1]} .*$", re.M)
PICTURE = ROOT / "docs" / "architecture.svg"
X = {  # of each room's middle in the picture, in pixels
    **dict.fromkeys(["main", "modes", "planning", "training", "inference"], 390),
    **{"reporting": 80, "evaluation": 290, "experiment": 490, "restoration": 680},
    **{"interop": 100, "data": 250, "operators": 480, "samplers": 680},
    **{"runtime": 180, "models": 390, "diffusion": 590},
}
VIA = {  # arrows over several floors: the gap that they pass through on each, {floor: x}
    ("modes", "reporting"): {2: 80, 3: 80, 4: 80},
    ("evaluation", "models"): {6: 345},
    ("experiment", "models"): {6: 385},
    ("experiment", "diffusion"): {6: 578},
}
WIDE, HIGH, ROW = 112, 40, 84
"""A box, and from floor to floor."""
TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="6" markerHeight="6"'
    ' orient="auto"><path style="fill:#8a94a3;stroke:none;marker:none" d="M0 0L8 4L0 8z"/></marker>'
)
STYLE = """
  text { font: 13px system-ui, sans-serif; text-anchor: middle; fill: #1f2933 }
  .size { font-size: 11px; fill: #52606d }
  rect { fill: #e6eefb; stroke: #4a6fa5; rx: 6 }
  path { fill: none; stroke: #8a94a3; stroke-width: 1.3; marker-end: url(#tip) }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb } .size { fill: #b8c2cc } rect { fill: #243447; stroke: #7fa3d8 }
  }
"""


@functools.cache
def imports(file):
    """The dotted names that a file imports, wherever in it; a name from a module is one too."""
    folder = ("vitdiff_jax", *file.parent.parts)
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            home = ".".join((*base, *filter(None, [node.module])))
            found |= {home} | {f"{home}.{alias.name}" for alias in node.names}
    return frozenset(found)


def room(file):
    """The room of a file: its folder, or itself at the top."""
    return file.parts[0].removesuffix(".py")


def arrows():
    """{room: the rooms that it imports}."""
    found = {room(file): set() for file in FILES if file.stem != "__init__" or len(file.parts) > 1}
    for file in FILES:
        for name in imports(file):
            there = name.split(".")[1] if name.startswith("vitdiff_jax.") else room(file)
            if there in found and there != room(file):
                found[room(file)].add(there)
    return found


def drawing():
    """The floors as text: each room with its purpose, the first line of its docstring."""
    purpose = {
        file.parts[0]: ast.get_docstring(ast.parse((PACKAGE / file).read_text())).split("\n")[0]
        for file in FILES
        if file.name == "__init__.py" and len(file.parts) == 2
    } | {"main": "The command: flags, the table of modes, exit codes."}
    floors = ["\n".join(f"{name:12}{purpose[name]}" for name in floor) for floor in FLOORS]
    return "\n\n".join(floors)


def indented():
    """The drawing as the pages hold it."""
    return "\n".join(f"    {line}".rstrip() for line in drawing().splitlines())


def shortest():
    """Arrows (from, to) without those that others imply: the transitive reduction."""
    below = arrows()

    def reached(name):
        return set().union(*({b} | reached(b) for b in below[name]))

    return [
        (a, b)
        for floor in FLOORS
        for a in floor
        for b in sorted(below[a])
        if not any(b in reached(c) for c in below[a])
    ]


def ends(lines, at, nearest):
    """{line: x of its end}, side by side at the boxes of one kind of end in the order of x."""
    found = {}
    for name in {line[at] for line in lines}:
        here = sorted((line for line in lines if line[at] == name), key=lambda line: nearest(*line))
        for i, line in enumerate(here):
            found[line] = X[name] + 16 * (i - (len(here) - 1) / 2)
    return found


def svg():
    """The floors as a picture: rooms with their number of modules, arrows for imports."""
    top = {name: 10 + ROW * i for i, floor in enumerate(FLOORS) for name in floor}
    lines = shortest()
    first = ends(lines, 0, lambda a, b: next(iter(VIA.get((a, b), {}).values()), X[b]))
    last = ends(lines, 1, lambda a, b: [X[a], *VIA.get((a, b), {}).values()][-1])
    parts = []
    for a, b in lines:
        x, y = first[a, b], top[a] + HIGH
        path = f"M{x:g} {y}"
        gaps = [(gap, 10 + ROW * i + HIGH / 2) for i, gap in VIA.get((a, b), {}).items()]
        for to_x, to_y in [*gaps, (last[a, b], top[b] - 6)]:
            half = (y + to_y) / 2
            path += f" C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y:g}"
            x, y = to_x, to_y
        parts.append(f'<path d="{path}"/>')
    for name, x in X.items():
        count = sum(room(file) == name and file.parts[1:] != ("__init__.py",) for file in FILES)
        size = f"{count} module{'s'[: count - 1]}"
        parts += [
            f'<rect x="{x - WIDE // 2}" y="{top[name]}" width="{WIDE}" height="{HIGH}"/>',
            f'<text x="{x}" y="{top[name] + 17}">{name}</text>',
            f'<text class="size" x="{x}" y="{top[name] + 32}">{size}</text>',
        ]
    wide, high = max(X.values()) + WIDE // 2 + 10, ROW * len(FLOORS) - ROW + HIGH + 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}">'
    return "\n".join([head, f"<style>{STYLE}</style>", TIP, *parts, "</svg>", ""])


def test_imports_go_down():
    """Every room has a floor, and imports from lower ones only."""
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    found = arrows()
    assert set(found) == set(floor), "a new room: say in FLOORS where it belongs"
    up = [(a, b) for a, below in found.items() for b in below if floor[b] <= floor[a]]
    assert up == [], "imports that do not go down"


def test_libraries_are_imported_where_they_live():
    """One door for each: what changes in Orbax or flax.linen changes one file or room here."""
    wrong = [
        (str(file), library)
        for file in FILES
        for library, allowed in ONLY_IN.items()
        if any(name == library or name.startswith(f"{library}.") for name in imports(file))
        and not allowed & {room(file), file.as_posix()}
    ]
    assert wrong == []


def test_few_files_lie_loose_and_none_is_a_drawer_for_everything():
    """A function lives with the concept that it belongs to."""
    assert [file.name for file in FILES if len(file.parts) == 1] == ["__init__.py", "main.py"]
    assert not {file.stem for file in FILES} & {"utils", "util", "common", "helpers", "misc"}


def test_the_drawings_are_up_to_date():
    for page in PAGES:
        assert indented() in page.read_text(), f"{page}: python -m tests.test_rooms --write"
    assert PICTURE.read_text() == svg(), "python -m tests.test_rooms --write"


def test_the_picture_has_every_room_and_no_arrow_that_others_imply():
    """Followed arrow after arrow, the picture says the same as all imports do."""
    seen, whole = {name: set() for name in arrows()}, arrows()
    for name in [name for floor in reversed(FLOORS) for name in floor]:
        for a, b in shortest():
            seen[name] |= {b} | seen[b] if a == name else set()
    assert all(whole[name] <= seen[name] for name in whole)
    assert len(shortest()) < sum(map(len, whole.values())) / 2
    assert set(X) == set(whole)
    assert svg().count("<rect") == len(whole)


def test_the_reader_of_imports_finds_what_is_there():
    """The tests above would pass on an empty list of imports, or of files."""
    assert len(FILES) > 100
    assert "flax.linen" in imports(pathlib.Path("models/layers.py"))
    assert "orbax.checkpoint" in imports(pathlib.Path("runtime/checkpoint.py"))
    assert {"data", "diffusion", "models"} <= arrows()["experiment"]
    assert "training" in arrows()["main"]  # inside a function


def test_importing_the_package_is_quick_and_brings_no_jax():
    """`import vitdiff_jax`, and a wrong mode of the command, must not cost seconds."""
    code = (
        "import sys, time; start = time.perf_counter(); import vitdiff_jax;"
        "heavy = {'jax', 'flax', 'tensorflow', 'numpy'} & set(sys.modules);"
        "print(time.perf_counter() - start, *heavy)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    seconds, *heavy = run.stdout.split()
    assert float(seconds) < 1
    assert heavy == []


def test_names_promised_by_the_package_exist():
    """They are imported on first use: a wrong home would show only then."""
    import vitdiff_jax

    for name in vitdiff_jax._HOMES:
        assert callable(getattr(vitdiff_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        vitdiff_jax.lode  # noqa: B018


if __name__ == "__main__":
    if "--write" in sys.argv:
        for page in PAGES:
            page.write_text(IN_PAGES.sub(lambda _: indented(), page.read_text()))
        PICTURE.write_text(svg())
    print(drawing())
