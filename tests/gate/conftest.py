"""Kernels are compiled here, which a process under TRITON_INTERPRET=1 cannot do: there nothing is collected.

What one worker has compiled the others find: Triton's cache, by hashes of what goes in, is one folder of the session.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.gate.compiling import cache_in

    @pytest.fixture(scope="session", autouse=True)
    def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.getbasetemp()
        with cache_in((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "triton"):
            yield
