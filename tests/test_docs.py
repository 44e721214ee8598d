"""The pages for users: what they link to and name exists, and their commands parse."""

import ast
import functools
import importlib
import pkgutil
import re
import shlex
import tomllib

import pytest

from tests.test_rooms import FLOORS, PACKAGE, ROOT
from vitdiff_jax import main
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.defaults import defaults

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
ENTRIES = {mode: importlib.import_module(name).main for mode, name in main.MODES.items()}
CASES = pytest.mark.parametrize("page", TEXTS)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCK = re.compile(r"(?:^    .*\n)+", re.M)
SUFFIXES = "py|md|sh|sbatch|ipynb|svg|toml|cuda|tpu"
WRITTEN = ("json", "jsonl", "html", "png", "npz", "safetensors", "txt")
"""Suffixes of files that a run writes, whose names look like dotted names."""


def prose(text):
    """A page without its blocks of code."""
    return BLOCK.sub("\n", FENCED.sub("", text))


def inline(text):
    """What stands in backticks within a page's prose."""
    return re.findall(r"`([^`]+)`", prose(text))


def code(text):
    """Lines of all code of a page, continued ones joined."""
    blocks = [block for _, block in FENCED.findall(text)] + BLOCK.findall(FENCED.sub("", text))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [*map(str.strip, lines), *inline(text)]


def commands(text):
    """The arguments of all calls of vitdiff_jax.main, also of those by a launch script."""
    calls = re.compile(r"python -m vitdiff_jax\.main (.+)|launch/[\w.]+ (?:.* )?-- (.+)")
    found = [call for line in code(text) if (call := calls.search(line))]
    return [shlex.split(call[1] or call[2]) for call in found]


def anchors(text):
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text):
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [link for link in found if not link.startswith(("https://", "http://"))]


@functools.cache
def keys():
    """Every key and section of a config, with the options of all components."""
    tree = config_lib.complete({}).to_dict()
    for key, place in config_lib.COMPONENTS.items():
        node = functools.reduce(dict.__getitem__, key.split("."), tree)
        for name in config_lib.available(place):
            node.update(config_lib.options(config_lib.find(place, key, name)))
    found = {key for key, _ in config_lib._leaves(tree)}
    return found | {key.rpartition(".")[0] for key in found if "." in key} | set(tree)


def is_in_code(name):
    """Whether a dotted name below the package, or an attribute of a loaded model, exists."""
    name = re.sub(r"^model\.", "inference.model.TrainedModel.", name)
    try:
        pkgutil.resolve_name(f"vitdiff_jax.{name}")
    except (ImportError, AttributeError):
        return False
    return True


def own_files(text):
    """The files that a page shows in full: `my/stripes.py`."""
    return re.findall(r"^`(\S+)`\n\n```", text, re.M)


@CASES
def test_links_lead_to_files_and_headings(page):
    for link in links(TEXTS[page]):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@CASES
def test_commands_parse(page):
    """Modes, flags, config files, and the keys that are overridden."""
    for words in commands(TEXTS[page]):
        words = [word for word in words if "..." not in word]
        base, _ = main.parser().parse_known_args(words)
        full = main.parser()
        main.add_mode_flags(full, ENTRIES[base.mode])
        args, overrides = full.parse_known_args(words)
        if args.config is None:
            config_lib.complete({}, overrides)
        elif args.config not in own_files(TEXTS[page]):
            config_lib.load(args.config, overrides)


def test_the_pages_have_commands():
    assert sum(len(commands(text)) for text in TEXTS.values()) > 25


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "launch/README.md"])
def test_flags_exist(page):
    known = {name for name in main.parser().format_help().split() if name.startswith("--")}
    for entry in ENTRIES.values():
        known |= {f"--{name}" for name in main.add_mode_flags(main.parser(), entry)}
    for text in inline(TEXTS[page]):
        for flag in re.findall(r"(--[a-z][\w.-]*)", text) if text.startswith("--") else ():
            key = flag.removeprefix("--config.")
            if key == flag:
                assert flag in known, text
            elif not own_files(TEXTS[page]):  # whose options are keys too
                assert key in keys(), text


@CASES
def test_names_exist(page):
    """Keys of the config, and names of the package's code."""
    starts = {name for floor in FLOORS for name in floor} | set(defaults())
    for name in inline(TEXTS[page]):
        if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and not name.endswith(WRITTEN):
            key = name.removeprefix("config.")
            if key != name or name.split(".")[0] in starts:
                assert key in keys() or is_in_code(name), name
    for name in re.findall(r"vitdiff_jax\.(\w+(?:\.\w+)*)", TEXTS[page]):
        assert is_in_code(name), name


@CASES
def test_files_exist(page):
    """Below the project, the package, configs/ or the page's folder; and the tests within."""
    homes = [ROOT, PACKAGE, ROOT / "configs", (ROOT / page).parent]
    for word in " ".join(inline(TEXTS[page])).split():
        file, _, test = word.partition("::")
        name = file.partition(":")[0]
        if re.fullmatch(rf"[\w./-]+\.({SUFFIXES})", name) and name not in own_files(TEXTS[page]):
            found = [home / name for home in homes if (home / name).is_file()]
            assert found, word
            assert not test or f"def {test}(" in found[0].read_text(), word


@CASES
def test_extras_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for names in re.findall(r'"(?:\.|vitdiff_jax)\[([\w,-]+)\]"', TEXTS[page]):
        assert set(names.split(",")) <= set(extras["optional-dependencies"]), names


@CASES
def test_python_is_python(page):
    for language, block in FENCED.findall(TEXTS[page]):
        if language == "python":
            ast.parse(block)


def test_the_readme_is_short_and_has_the_lines_that_ci_runs():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 180
    greps = re.findall(r"grep -m1 -E '(.*)' README.md", (ROOT / ".ci" / "run").read_text())
    assert len(greps) == 2
    assert all(any(re.search(pattern, line) for line in lines) for pattern in greps)


def test_each_row_of_what_happens_when_names_a_test():
    rows = re.findall(r"^\| (?!\.\.\.|---).*", TEXTS["docs/what_happens_when.md"], re.M)
    assert len(rows) > 20
    for row in rows:
        assert row.count("|") == 5, row
        assert re.fullmatch(r" `tests/[\w/]+\.py::test_\w+` ", row.split("|")[4]), row
