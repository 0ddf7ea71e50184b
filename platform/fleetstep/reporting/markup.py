"""HTML and SVG built as trees of calls, escaped by construction.

A child or an attribute is text unless `element` made it, so a name or a parameter can never become
markup: there is no way to forget the escaping.
"""

from __future__ import annotations

from html import escape

VOID = frozenset({"br", "img", "meta"})


class Markup(str):
    """Text that is already markup; made by `element` and `raw` alone."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """One element.

    Args:
        tag: its name, from this package, never from a record.
        children: `Markup` as it is, other strings escaped.
        attributes: values escaped; None and False leave the attribute out, True writes it without
            a value. A trailing underscore is dropped (`class_`), others become hyphens
            (`data_x`).
    """
    opening = "".join([tag, *(_attribute(name, value) for name, value in attributes.items())])
    if tag in VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(*children)}</{tag}>")


def join(*children: str) -> Markup:
    """Children one after the other, escaped unless they are `Markup`."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in children))


def raw(text: str) -> Markup:
    """Markup, style or script of this package itself. Never for values of a record."""
    return Markup(text)


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(text, quote=True)}"'
