"""Operators, and methods of restoration, as a person writes them, in a command or a config.

    mask:kind=random,share=0.7        the name of an operator, its options
    downsample:factor=2+colourise     one after the other
    dps/box                           a preset's operator, see `presets`
    dps/box:side=0.3                  with another option
    my_package.stripes:width=2        of a module outside of this package

The signs + , : = separate; a file's name may have the last two of them only.
"""

from typing import Any

from vitdiff_jax.operators.presets import PRESETS


def parse(text: str) -> dict[str, Any]:
    """A dict with the "name" and the options of an operator, as `operators.make` takes them.

    Values become int or float where they are numbers. Several parts become {"name": "compose",
    "parts": [...]}. Names and options are not looked up, but those of presets, known by their "/".
    Raises ValueError for what is not written like this.
    """
    parts = [_part(part.strip()) for part in text.split("+")]
    return parts[0] if len(parts) == 1 else {"name": "compose", "parts": parts}


def outside(text: str) -> bool:
    """Whether something of a text is of a module outside of this package."""
    return any("." in part.partition(":")[0] for part in text.split("+"))


def _part(part: str) -> dict[str, Any]:
    """One operator of a text."""
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
