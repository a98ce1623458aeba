"""Several processes on one task: what one may ask of the others (`base`), by torch.distributed (`mesh`), and `open`.

Nothing here knows what is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.parallel.base import PATIENCE as PATIENCE
    from patchsae.parallel.base import Alone as Alone
    from patchsae.parallel.base import Parallel as Parallel
    from patchsae.parallel.base import ProcessLost as ProcessLost
    from patchsae.parallel.mesh import Mesh as Mesh
    from patchsae.parallel.open import open_parallel as open_parallel

_HOMES = {
    "PATIENCE": "base",
    "Alone": "base",
    "Parallel": "base",
    "ProcessLost": "base",
    "Mesh": "mesh",
    "open_parallel": "open",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
