"""Text as it may stand in HTML: the one place that escapes it."""

from __future__ import annotations

import html
import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Half of a surrogate pair (a byte of a file name that is no UTF-8) is no text, and cannot be written."""
    return _SURROGATES.sub("\ufffd", text)


def escape(text: str) -> str:
    """For the content of an element and for an attribute."""
    return html.escape(without_surrogates(str(text)), quote=True)
