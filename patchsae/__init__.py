"""PatchSAE: sparse autoencoders on the patch tokens of a CLIP vision transformer.

Names are imported on first use, so that ``import patchsae`` and ``patchsae --help`` do not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.adapters.load import load_adapter as load_adapter
    from patchsae.adapters.maple import load_maple as load_maple
    from patchsae.data import load_image as load_image
    from patchsae.data import open_images as open_images
    from patchsae.disk.runs import Run as Run
    from patchsae.experiments.stream.job import Job as Job
    from patchsae.models.checkpoints.load import load_sae as load_sae
    from patchsae.models.clip import SplitCLIP as SplitCLIP
    from patchsae.models.clip import load_clip as load_clip
    from patchsae.models.sae import SparseAutoencoder as SparseAutoencoder
    from patchsae.models.sae_config import SAEConfig as SAEConfig
    from patchsae.models.steering import steer as steer

_HOMES = {
    "SplitCLIP": "models.clip",
    "load_clip": "models.clip",
    "SAEConfig": "models.sae_config",
    "SparseAutoencoder": "models.sae",
    "load_sae": "models.checkpoints.load",
    "steer": "models.steering",
    "load_image": "data",
    "open_images": "data",
    "load_adapter": "adapters.load",
    "load_maple": "adapters.maple",
    "Run": "disk.runs",
    "Job": "experiments.stream.job",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

# Names that were promised and go on working; what is below them moved with them.
lazy.moved(
    {
        "patchsae.adapting": "patchsae.adapt",
        "patchsae.maple": "patchsae.adapters.maple",
        "patchsae.experiments.adaptation": "patchsae.experiments.compare",
        "patchsae.experiments.correlation": "patchsae.experiments.correlate",
        "patchsae.experiments.masking": "patchsae.experiments.mask",
        "patchsae.training.parallel": "patchsae.parallel",
    }
)
