"""The one way from text to HTML: the macros of page.html.j2, which escape what they are given."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from jinja2.environment import TemplateModule
from markupsafe import Markup

from patchsae.report.text import escape


def render(macro: str, *values: Any) -> Markup:
    """What a macro of page.html.j2 makes of `values`, of which Markup alone stands as it is."""
    rendered: Markup = getattr(_macros(), macro)(*values)
    return rendered


@cache
def _macros() -> TemplateModule:
    source = resources.files("patchsae.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, finalize=_escaped, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).module


def _escaped(value: Any) -> Markup:
    # jinja's own escaping lets halves of surrogate pairs through
    return value if isinstance(value, Markup) else Markup(escape(value))
