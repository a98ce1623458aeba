"""Names of files and classes: as prompts say them, and as any file, terminal or font takes them."""

from __future__ import annotations

import re

_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def spoken(name: str) -> str:
    """A name from a file or folder with its underscores as spaces, as CoOp, CoCoOp and MaPLe put it into prompts."""
    words = name.replace("_", " ")
    return written(words if words.strip() else name)


def written(name: str) -> str:
    """A name with what no text holds as an escape: a byte that is not UTF-8 as "\\xe9", a line break as "\\x0a".

    Every id, class name and dataset name goes through here, so that whatever is made of them can be written.
    """
    return _UNWRITABLE.sub(_escape, name)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # how Python holds bytes that it cannot decode
    return f"\\x{byte:02x}" if byte < 256 else f"\\u{byte:04x}"
