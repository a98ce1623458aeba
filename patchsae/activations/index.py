"""index.json of a cache: what it was made of, and which of its shards are complete."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchsae.activations.options import CacheOptions
from patchsae.activations.packing import image_bytes
from patchsae.data import BadImageRecord
from patchsae.disk.checksums import verified
from patchsae.disk.claims import whole_number
from patchsae.disk.documents import read_json
from patchsae.disk.paths import plain_name
from patchsae.errors import PatchsaeError

if TYPE_CHECKING:
    from patchsae.data import ImageDataset
    from patchsae.models.clip import SplitCLIP

FILE = "index.json"
_FORMAT = 1
_MB = 1_000_000
_MOST = 2**48  # of anything: sizes are multiplied with one another


class CacheMismatch(PatchsaeError):
    """A cache was written from another model, layer or dataset."""


@dataclass(frozen=True)
class ShardRecord:
    """A complete shard."""

    file: str
    images: int
    sha256: str
    """Of what stands before its tokens; see `patchsae.activations.shard`."""


@dataclass(frozen=True)
class CacheIndex:
    """A cache, complete or a prefix of one."""

    model: dict[str, Any]
    """`SplitCLIP.metadata`."""
    clip_fingerprint: str
    dataset: str
    """The dataset's name."""
    dataset_fingerprint: str
    origin: dict[str, Any]
    """What opens the images and the model again (`images`, `split`, ..., `dtype`)."""
    options: CacheOptions
    width: int
    """D."""
    image_tokens: int
    """T of the model: CLS and patches."""
    images: int
    """Images of the dataset."""
    shards: tuple[ShardRecord, ...] = ()
    """In the order in which they are written: the complete ones."""
    bad: tuple[BadImageRecord, ...] = ()
    """Images that were left out."""

    @classmethod
    def of(cls, clip: SplitCLIP, dataset: ImageDataset, options: CacheOptions, origin: dict[str, Any]) -> CacheIndex:
        """Of a cache of which nothing is written yet. ValueError for more tokens than an image has, or no images."""
        count = options.tokens_per_image
        if count is not None and count > clip.image_tokens:
            raise ValueError(f"tokens_per_image is {count}; expected at most {clip.image_tokens}, those of an image")
        if len(dataset) == 0:
            raise ValueError(f"dataset {dataset.name!r} holds no images; expected at least one")
        return cls(
            dict(clip.metadata),
            clip.fingerprint,
            dataset.name,
            dataset.fingerprint,
            origin,
            options,
            clip.width,
            clip.image_tokens,
            len(dataset),
        )

    @classmethod
    def load(cls, folder: Path) -> CacheIndex:
        """Of the cache in `folder`. FileNotFoundError where there is none, ValueError where it cannot be read."""
        path = folder / FILE
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} is not a cache of activations: `patchsae cache --out {folder}` makes one"
            )
        try:
            stored = read_json(verified(path))
            if stored.pop("format") != _FORMAT:
                raise ValueError("another version of the format")
            stored["options"] = CacheOptions(**stored["options"])
            stored["shards"] = tuple(ShardRecord(**record) for record in stored["shards"])
            for name in ("width", "image_tokens", "images"):
                whole_number(path, name, stored[name], _MOST, least=1)
            for record in stored["shards"]:
                plain_name(record.file)
                whole_number(path, "images of a shard", record.images, stored["images"])
            stored["bad"] = tuple(BadImageRecord(**record) for record in stored["bad"])
            return cls(**stored)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not an index of a cache that this version can read: {error}") from error

    def text(self) -> str:
        """The file that `load` reads."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)

    @property
    def block(self) -> int:
        """The block whose output it holds, 0-based."""
        return int(self.model["layer"])

    @property
    def tokens(self) -> int:
        """Tokens of an image in the cache."""
        return self.options.tokens_per_image or self.image_tokens

    @property
    def image_bytes(self) -> int:
        """Bytes of the tokens of one image."""
        return image_bytes(self.tokens, self.width, self.options.store)

    @property
    def shard_images(self) -> int:
        """Images in a shard (the last has fewer): full batches, so that a writer goes on with the batches it had."""
        batch = self.options.batch_size
        return max(1, int(self.options.shard_mb * _MB) // (batch * self.image_bytes)) * batch

    @property
    def shard_count(self) -> int:
        """Shards of the complete cache."""
        return -(-self.images // self.shard_images)

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return len(self.shards) == self.shard_count

    @property
    def bytes_left(self) -> int:
        """About what is still to be written."""
        overhead = 64  # an image's position, checksum and id
        done = min(len(self.shards) * self.shard_images, self.images)
        return (self.images - done) * (self.image_bytes + overhead)

    def places(self, shard: int) -> np.ndarray:
        """The places of a shard in the order in which images are written."""
        return np.arange(shard * self.shard_images, min((shard + 1) * self.shard_images, self.images))

    def with_shard(self, number: int, record: ShardRecord, bad: tuple[BadImageRecord, ...] = ()) -> CacheIndex:
        """The index once shard `number`, one of `shards` or the next one, is (again) complete."""
        known = {one.index: one for one in (*self.bad, *bad)}
        return replace(
            self, shards=(*self.shards[:number], record, *self.shards[number + 1 :]), bad=tuple(known.values())
        )

    def require(self, clip: SplitCLIP | None = None, dataset: ImageDataset | None = None) -> None:
        """Raise CacheMismatch, naming both sides, unless the cache was written from this model and these images."""
        if clip is not None and (self.model, self.clip_fingerprint) != (dict(clip.metadata), clip.fingerprint):
            ours, theirs = _model(self.model, self.clip_fingerprint), _model(clip.metadata, clip.fingerprint)
            raise CacheMismatch(f"the cache was written from {ours}, and this is {theirs}")
        if dataset is not None and self.dataset_fingerprint != dataset.fingerprint:
            raise CacheMismatch(
                f"the cache was written from {self.images:,} images of {self.dataset!r} (fingerprint "
                f"{self.dataset_fingerprint}), and these are {len(dataset):,} images of {dataset.name!r} (fingerprint "
                f"{dataset.fingerprint})"
            )


def _model(metadata: dict[str, Any], fingerprint: str) -> str:
    named = ", ".join(f"{key} {value}" for key, value in metadata.items() if value != "")
    return f"{named} (fingerprint of the weights {fingerprint})"
