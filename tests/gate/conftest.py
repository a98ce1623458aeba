"""Kernels are compiled here, which a process under TRITON_INTERPRET=1 cannot do: there nothing is collected."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.gate.compiling import temporary_cache

    @pytest.fixture(scope="session", autouse=True)
    def fresh_cache() -> Iterator[None]:
        with temporary_cache():
            yield
