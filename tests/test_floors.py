"""The house has floors, and imports go down only: read off the import statements of every file.

So a part can be understood, tested and replaced with what lies below it and nothing else.
"""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vitdiff_jax"
FLOORS = [  # from the top; folders stand for all of their files
    ["main", "__init__"],
    ["train", "sample", "restore", "evaluate", "statistics", "prepare", "plan"],
    ["importing", "exporting"],
    ["watch", "finetune", "profiling", "stopping", "ahead", "report"],
    ["trained", "yardstick"],
    ["repair"],
    ["draw"],
    ["prompts", "tasks", "program"],
    ["experiment"],
    ["config"],
    ["defaults"],
    ["evaluation"],
    ["albums"],
    ["train_step", "parallel", "together", "checkpoint", "logs", "plots", "results", "page"],
    ["restoration", "damage", "averages", "codec", "costs", "kernels", "peers", "mirror"],
    ["samplers"],
    ["diffusion", "operators", "models", "data", "interop", "hlo", "flops"],
    ["chips", "paths"],
]
ONLY_IN = {  # a library -> the parts that may import it
    "flax.linen": {"models"},
    "orbax": {"checkpoint"},
    "fsspec": {"paths"},
    "clu": {"logs"},
    "tensorboardX": {"logs"},
    "tqdm": {"logs"},
    "matplotlib": {"plots"},
    "jinja2": {"page"},
    "safetensors": {"interop"},
    "pickle": {"interop"},
    "torch": {"interop", "data"},
    "tensorflow": set(),
}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("file", FILES, ids=str)


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
    return found


def part(file):
    """The part of the house that a file belongs to: its folder, or itself at the top."""
    return file.parts[0].removesuffix(".py")


def floor(name):
    """How far down a part lies."""
    return next(i for i, names in enumerate(FLOORS) if name in names)


def own_imports(file):
    """The parts of this package that a file imports."""
    parts = {name for names in FLOORS for name in names}
    names = [name.split(".") for name in imports(file) if name.startswith("vitdiff_jax.")]
    return {name[1] for name in names if name[1] in parts}


@each_file
def test_every_file_has_a_floor(file):
    assert part(file) in {name for names in FLOORS for name in names}, (
        f"{file} is new: say in FLOORS where it belongs"
    )


@each_file
def test_imports_go_down(file):
    """Or stay in the folder; the lowest folders know nothing of each other."""
    here = part(file)
    for there in own_imports(file) - {here}:
        assert floor(there) > floor(here), f"{here} imports {there}"


@each_file
def test_libraries_are_imported_where_they_live(file):
    """One door for each: what changes in Orbax or flax.linen changes one file or folder here."""
    for library, allowed in ONLY_IN.items():
        used = any(name == library or name.startswith(f"{library}.") for name in imports(file))
        assert not used or part(file) in allowed, f"{file} imports {library}"


@each_file
def test_no_file_is_a_drawer_for_everything(file):
    """A function lives with the concept that it belongs to."""
    assert file.stem not in ("utils", "util", "common", "helpers", "misc")


def test_the_reader_of_imports_finds_what_is_there():
    """The tests above would pass on an empty list of imports, or of files."""
    assert len(FILES) > 20
    assert "flax.linen" in imports(pathlib.Path("models/layers.py"))
    assert "orbax.checkpoint" in imports(pathlib.Path("checkpoint.py"))
    assert {"diffusion", "config", "data"} <= own_imports(pathlib.Path("experiment.py"))
    assert "train" in own_imports(pathlib.Path("main.py"))  # inside a function


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
