"""Image datasets of every layout users have, as one view: `open_images(source) -> ImageDataset`.

Names load on first use, so that importing this package costs nothing and only `batches` and `check` need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.data.base import BadImage as BadImage
    from patchsae.data.base import BadImageRecord as BadImageRecord
    from patchsae.data.base import DataError as DataError
    from patchsae.data.base import Flawed as Flawed
    from patchsae.data.base import ImageDataset as ImageDataset
    from patchsae.data.base import ReadGroups as ReadGroups
    from patchsae.data.base import Sample as Sample
    from patchsae.data.checks import CheckReport as CheckReport
    from patchsae.data.checks import SplitReport as SplitReport
    from patchsae.data.checks import check as check
    from patchsae.data.classes import base_novel as base_novel
    from patchsae.data.classes import relabelled as relabelled
    from patchsae.data.decode import load_image as load_image
    from patchsae.data.few_shots import few_shot as few_shot
    from patchsae.data.few_shots import few_shot_pair as few_shot_pair
    from patchsae.data.layout import SplitError as SplitError
    from patchsae.data.loader import Batch as Batch
    from patchsae.data.loader import BatchIterator as BatchIterator
    from patchsae.data.loader import batches as batches
    from patchsae.data.open import open_images as open_images
    from patchsae.data.open import splits as splits
    from patchsae.data.order import holdout as holdout
    from patchsae.data.order import limit as limit
    from patchsae.data.order import shuffled_order as shuffled_order
    from patchsae.data.order import train_order as train_order

_HOMES = {
    "BadImage": "base",
    "BadImageRecord": "base",
    "DataError": "base",
    "Flawed": "base",
    "SplitError": "layout",
    "ImageDataset": "base",
    "ReadGroups": "base",
    "Sample": "base",
    "CheckReport": "checks",
    "SplitReport": "checks",
    "check": "checks",
    "base_novel": "classes",
    "relabelled": "classes",
    "load_image": "decode",
    "few_shot": "few_shots",
    "few_shot_pair": "few_shots",
    "Batch": "loader",
    "BatchIterator": "loader",
    "batches": "loader",
    "open_images": "open",
    "splits": "open",
    "holdout": "order",
    "limit": "order",
    "shuffled_order": "order",
    "train_order": "order",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
