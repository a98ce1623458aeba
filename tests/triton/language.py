"""The interpreter's replacement of Triton's language, made once for all launches.

Triton makes it for every launch, and again for every call of one kernel's function by another: a third of the time of
these tests went into looking for what is to be replaced.
"""

from __future__ import annotations

from types import SimpleNamespace

import triton.language as tl
from triton.runtime import interpreter


def replace() -> None:
    """From here on the language is the interpreter's in this process, between launches as well."""
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda _function: interpreter._LangPatchScope()
