"""The root of failures that the user, not the programmer, has to deal with, and how a wrong value is named."""

from __future__ import annotations


class PatchsaeError(RuntimeError):
    """An expected failure whose message is for the user: the command line prints it without a traceback."""


def brief(error: BaseException, most: int = 300) -> str:
    """What a library says of a file, cut: some repeat all of a name, or of what they could not read."""
    text = str(error)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """ValueError that names a setting, what came and what was expected."""
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
