"""The package is a house of rooms on floors, and imports go down only: read off every file.

So a part can be understood, tested and replaced with what lies below it and nothing else.
`python -m tests.test_rooms` prints the drawing that README and docs/architecture.md hold.
"""

import ast
import functools
import os
import pathlib
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
    "pickle": {"interop/numpy_pickle.py"},
    "torch": {"interop", "data"},
    "tensorflow": set(),
}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


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
    wanted = "\n".join(f"    {line}".rstrip() for line in drawing().splitlines())
    for page in ("README.md", "docs/architecture.md"):
        assert wanted in (ROOT / page).read_text(), f"{page}: python -m tests.test_rooms"


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
    print(drawing())
