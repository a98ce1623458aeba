"""The interpreter's replacement of Triton's language, made once for all launches.

Triton makes it for every launch, and again for every call of one kernel's function by another: a third of the time of
these tests went into looking for what is to be replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def replaced() -> Iterator[None]:
    """Within: the language is the interpreter's, between launches as well."""
    replace = interpreter._patch_lang
    scope = replace(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda _function: interpreter._LangPatchScope()
    try:
        yield
    finally:
        interpreter._patch_lang = replace
        scope.restore()
