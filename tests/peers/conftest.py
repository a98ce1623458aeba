"""Files of others against their own libraries, which only `make test-peers` has: elsewhere nothing is collected."""

from __future__ import annotations

import os
from importlib.util import find_spec

LIBRARIES = ("sae_lens", "sparsify", "dictionary_learning", "overcomplete", "visaebench", "saev", "llamascopium")

if not all(find_spec(library) for library in LIBRARIES):
    collect_ignore_glob = ["test_*.py"]
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its decoder for GPUs
os.environ["HF_HUB_OFFLINE"] = "1"  # what is written and read here lies on this disk
