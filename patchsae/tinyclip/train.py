"""Trains or fine-tunes a small CLIP on the captions of the shapes world or the class names of any labelled dataset."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.loader import batches
from patchsae.data.order import train_order
from patchsae.progress import track
from patchsae.tinyclip.config import TinyClipConfig
from patchsae.tinyclip.model import load_model, new_model, open_clip_config, preprocess, save_model
from patchsae.tinyclip.texts import TextGroup, text_groups


@dataclass(frozen=True)
class TrainingRecord:
    """How a checkpoint came about; written beside it as training.json."""

    dataset: str
    images: int
    """Images in the dataset."""
    start: str | None
    """The checkpoint that training went on from."""
    steps: int
    """Steps that were done."""
    minutes: float
    config: dict[str, int | float | bool]
    """The TinyClipConfig."""


def train_clip(
    dataset: ImageDataset,
    out: Path | str,
    config: TinyClipConfig | None = None,
    start: Path | str | None = None,
    workers: int = 1,
    device: str = "cpu",
) -> TrainingRecord:
    """Trains on `dataset` and writes an open_clip local-dir checkpoint (float16) to `out`.

    The loss is CLIP's (Radford et al. 2021: symmetric cross-entropy over cosine similarities), averaged over the
    batch's groups of texts, with all images of a text as its positives. On a CPU, matrix products run in bfloat16.
    The same arguments on the same machine with the same number of threads give the same weights. Progress goes to
    standard error; Ctrl-C ends the training and writes what there is.

    Args:
        dataset: ShapesWorld (its captions) or any dataset whose images all have a class (its class names).
        out: receives ``open_clip_config.json``, ``open_clip_model.safetensors`` and ``training.json``.
        config: default TinyClipConfig().
        start: a local-dir checkpoint to go on from; its sizes take the place of the config's.
        workers: processes that decode images.
        device: "cpu" or "cuda".

    Raises:
        DataError: an empty dataset, or an image without label.
        FileNotFoundError, ValueError: `start` holds no checkpoint, or one of another architecture.
    """
    config = config or TinyClipConfig()
    if not len(dataset):
        raise DataError("dataset is empty; expected at least one image")
    torch.manual_seed(config.seed)
    model, model_config = (new_model(config), open_clip_config(config)) if start is None else load_model(start)
    run = _Run(model.to(device).train(), config, device)
    begun = time.monotonic()
    try:
        with track(config.steps * config.batch_size, "tinyclip") as progress:
            for pixels, groups in _steps(model, dataset, config, workers):
                run.step(pixels, groups)
                progress.advance(len(pixels), loss=run.loss)
    except KeyboardInterrupt:
        print(f"interrupted after {run.done} of {config.steps} steps; writing {out}", file=sys.stderr)
    if start is None:
        run.clear_unread_words()
    origin = None if start is None else Path(start).name
    minutes = round((time.monotonic() - begun) / 60, 1)
    record = TrainingRecord(dataset.name, len(dataset), origin, run.done, minutes, asdict(config))
    save_model(model, model_config, out, asdict(record))
    return record


def grouped_loss(images: Tensor, texts: Tensor, groups: list[TextGroup], scale: Tensor) -> Tensor:
    """Mean over the groups of the symmetric contrastive loss, a scalar.

    images [B, E] and texts [all groups' texts, E] have unit norm. An image's target is its text; a text's target is
    spread evenly over its images.
    """
    losses, first = [], 0
    for group in groups:
        logits = scale * images @ texts[first : first + len(group.texts)].T  # [B, texts]
        positive = torch.as_tensor(group.positive, device=images.device)
        shares = F.one_hot(positive, len(group.texts)).to(logits)
        losses.append(F.cross_entropy(logits, positive) + F.cross_entropy(logits.T, (shares / shares.sum(0)).T))
        first += len(group.texts)
    return torch.stack(losses).mean() / 2


class _Run:
    """The model under training with its optimiser, and which words it has read."""

    def __init__(self, model: CLIP, config: TinyClipConfig, device: str) -> None:
        self.model, self.config, self.device = model, config, device
        self.tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
        self.read = torch.zeros(model.vocab_size, dtype=torch.bool)
        self.done = 0
        self.loss = float("nan")

    def step(self, pixels: Tensor, groups: list[TextGroup]) -> None:
        """One optimiser step on pixels [B, 3, H, W]."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * _schedule(self.done, self.config.steps)
        tokens = self.tokenizer([text for group in groups for text in group.texts])
        self.read[tokens.flatten()] = True
        with _fast_arithmetic(self.device):
            images = self.model.encode_image(pixels.to(self.device), normalize=True).float()
            texts = self.model.encode_text(tokens.to(self.device), normalize=True).float()
        loss = grouped_loss(images, texts, groups, self.model.logit_scale.exp())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.done, self.loss = self.done + 1, loss.detach().item()

    def clear_unread_words(self) -> None:
        """Zeroes the embeddings of words that were never read: in a fresh model they are noise, and zeros compress."""
        with torch.no_grad():
            self.model.token_embedding.weight[~self.read.to(self.device)] = 0


@contextmanager
def _fast_arithmetic(device: str) -> Iterator[None]:
    """On a CPU: products in bfloat16, and attention as plain products.

    Measured on one Zen 4 core, 65 tokens, heads of 32: 8.2 ms per image and step with torch's fused CPU attention,
    5.2 ms without.
    """
    if device != "cpu":
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def _steps(
    model: CLIP, dataset: ImageDataset, config: TinyClipConfig, workers: int
) -> Iterator[tuple[Tensor, list[TextGroup]]]:
    order = train_order(len(dataset), config.steps * config.batch_size, config.seed, dataset.read_groups)
    words = random.Random(config.seed)
    changes = torch.Generator().manual_seed(config.seed)
    for batch in batches(dataset, preprocess(model), config.batch_size, order=order, workers=workers):
        pixels = _augmented(batch.pixels, changes) if config.augment else batch.pixels
        yield pixels, text_groups(dataset, batch.index.numpy(), words)


def _augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors and shifts each image at random (by up to an eighth of its side, edges repeated)."""
    n, _, height, width = pixels.shape
    reach = height // 8
    padded = F.pad(pixels, (reach,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)  # [n, height], [n, width]
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
