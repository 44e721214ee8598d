"""The API reference: pdoc makes it of the docstrings, and nothing in them is lost on the way."""

import html
import importlib
import pkgutil
import re
import warnings

import pytest

import vitdiff_jax

pdoc = pytest.importorskip("pdoc", reason='needs the API\'s generator: pip install -e ".[docs]"')

pytestmark = pytest.mark.extra
MODULES = [module.name for module in pkgutil.walk_packages(vitdiff_jax.__path__, "vitdiff_jax.")]


def documented(doc):
    """A module or class of pdoc's and all that it has itself."""
    yield doc
    for member in getattr(doc, "members", {}).values():
        if member.kind != "module" and not member.name.startswith("_"):
            yield from documented(member)


def seen(text):
    """What a reader sees of HTML or of a docstring, without spaces and code marks."""
    text = re.sub(r"</?(p|pre|code|div|span)\b[^>]*>", "", text)
    return re.sub(r"[`\s]", "", html.unescape(text))


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_come_out_as_they_are_written(name):
    """Stars, underscores and angle brackets mean themselves; write them as `code` if need be."""
    module = pdoc.doc.Module(importlib.import_module(name))
    own = (doc for doc in documented(module) if doc.taken_from[0] == name)
    texts = [doc.docstring for doc in own if "|" not in doc.docstring]  # of tables bars are lost
    assert texts
    for text in filter(None, texts):
        assert seen(str(pdoc.render_helpers.to_html(text))) == seen(text)


def test_it_is_made_without_a_warning_and_the_first_page_leads_to_the_others(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("vitdiff_jax", output_directory=tmp_path)
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")}
    assert len(pages) == len(MODULES) + 2  # the package itself, and the index, which leads there
    links = re.findall(r'href="([^"#]+\.html)', (tmp_path / "vitdiff_jax.html").read_text())
    assert set(links) <= pages
    text = re.search(r'docstring">(.*?)</div>', (tmp_path / "vitdiff_jax.html").read_text(), re.S)
    assert text is not None
    named = re.findall(r"<code>(vitdiff_jax\.[\w.]+)</code>", text[1])
    assert named == []  # what is written like a name of ours is a link
