"""The syntax of operators and restoration methods in commands and configs.

    mask:kind=random,share=0.7        the name of an operator, and options
    downsample:factor=2+colourise     a composition, applied in order
    dps/box                           a preset, see `presets`
    dps/box:side=0.3                  a preset with a changed option
    my_package.stripes:width=2        a module outside of this package

The characters + , : = are separators; a file name may contain only the last two.
"""

import math
from typing import Any

from vitdiff_jax.operators.presets import PRESETS


def parse(text: str) -> dict[str, Any]:
    """A dict with the "name" and options of an operator, the arguments of `operators.make`.

    Numbers are converted to int or float. A composition becomes {"name": "compose", "parts":
    [...]}. Names and options are not checked, except for presets, recognised by their "/".
    Raises ValueError for invalid syntax.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not text")
    parts = [_part(part.strip()) for part in text.split("+")]
    return parts[0] if len(parts) == 1 else {"name": "compose", "parts": parts}


def is_external(text: str) -> bool:
    """Whether any operator in the text is a module outside of this package."""
    return any("." in part.partition(":")[0] for part in text.split("+"))


def _part(part: str) -> dict[str, Any]:
    """One operator."""
    name, colon, options = part.partition(":")
    if not name.strip():
        raise ValueError("the name of an operator is missing")
    if colon and not options.strip():
        raise ValueError(f"options are missing after {part!r}")
    found = _named(name.strip())
    given = {"name"}
    for option in options.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in option.partition("="))
        if not (equals and value and key.isidentifier()):
            raise ValueError(f"{option!r} is not written as key=value")
        if key in given:
            raise ValueError(f"{key} is given twice")
        given.add(key)
        found[key] = _value(value)
        if isinstance(found[key], float) and not math.isfinite(found[key]):
            raise ValueError(f"{key}: {value} is not a finite number")
    return found


def _named(name: str) -> dict[str, Any]:
    if "/" not in name:
        return {"name": name}
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}, only {', '.join(PRESETS)}")
    return dict(PRESETS[name].operator)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
