"""The root of failures that the user, not the programmer, has to deal with."""

from __future__ import annotations


class PatchsaeError(RuntimeError):
    """An expected failure whose message is for the user: the command line prints it without a traceback."""
