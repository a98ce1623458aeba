"""The figures of an evaluation, in memory and on disk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from patchsae.disk.runs import Stage
from patchsae.experiments.evaluate.concepts import ConceptScores
from patchsae.experiments.evaluate.contrastive import Contrastive
from patchsae.experiments.evaluate.quality import Quality, TokenQuality
from patchsae.experiments.mask.embeddings import RECONSTRUCTION, UNMODIFIED, Masking

CLS_ONLY = Masking("none", "cls reconstructed", 0)
MASKINGS = (UNMODIFIED, RECONSTRUCTION, CLS_ONLY)
TOKEN_GROUPS = ("all", "cls", "patches")

_CONCEPT_TENSORS = tuple(field.name for field in fields(ConceptScores) if field.name not in ("names", "images"))


@dataclass(frozen=True, eq=False)
class EvaluateResult:
    """How good an autoencoder is on some images. What needs labels, or concepts, is None without them."""

    quality: Quality
    dense_above: float
    """A latent that is active on more than this share of the tokens is dense."""
    batch_size: int
    """Images in the batches of the contrastive loss."""
    correct: Tensor | None
    """int64 [3, C]: correctly classified images of every class, for each of MASKINGS."""
    classified: Tensor | None
    """int64 [C]: images of every class."""
    contrastive: Contrastive | None
    """Also None where no batch was whole."""
    concepts: ConceptScores | None
    raw_concepts: ConceptScores | None
    """The same with dimensions of the residual stream in the place of latents."""

    def accuracy(self, masking: Masking) -> float | None:
        """Zero-shot accuracy over all images."""
        if self.correct is None or self.classified is None:
            return None
        return int(self.correct[MASKINGS.index(masking)].sum()) / int(self.classified.sum())

    @property
    def figures(self) -> dict[str, float | int | None]:
        """Every single figure by name; None where it does not exist."""
        quality, loss, concepts, raw = self.quality, self.contrastive, self.concepts, self.raw_concepts
        tokens = {name: _known(value) for name, value in asdict(quality.all).items()}
        figures: dict[str, float | int | None] = {
            **tokens,
            "l0_median": quality.l0_quantile(0.5),
            "latents": len(quality.fired),
            "dead": quality.dead,
            "dense": quality.dense(self.dense_above),
            "dense_above": self.dense_above,
        }
        for masking in MASKINGS:
            name = masking.mode.replace(" ", "_")
            figures[f"contrastive_{name}"] = None if loss is None else loss.losses[masking]
            figures[f"accuracy_{name}"] = self.accuracy(masking)
        figures["contrastive_lowest"] = None if loss is None else loss.lowest
        figures["contrastive_batch"] = self.batch_size
        for name, scores in (("concept", concepts), ("raw_concept", raw)):
            figures[f"{name}_precision"] = None if scores is None else _known(scores.mean_precision)
            figures[f"{name}_iou"] = None if scores is None else _known(scores.mean_iou)
        return figures

    def token_columns(self) -> dict[str, list[Any]]:
        """A row for all tokens, CLS tokens and patches each."""
        rows = [getattr(self.quality, group) for group in TOKEN_GROUPS]
        named = {field.name: [_known(getattr(row, field.name)) for row in rows] for field in fields(TokenQuality)}
        return {"group": list(TOKEN_GROUPS), **named}

    def classification_columns(self) -> dict[str, list[Any]]:
        """A row for the model unmodified, with all tokens reconstructed, and with CLS alone reconstructed."""
        losses = None if self.contrastive is None else self.contrastive.losses
        return {
            "variant": [masking.name for masking in MASKINGS],
            "contrastive_loss": [None if losses is None else losses[masking] for masking in MASKINGS],
            "zero_shot_accuracy": [self.accuracy(masking) for masking in MASKINGS],
        }

    def concept_columns(self) -> dict[str, list[Any]]:
        """A row for every concept: of the best latent, of a random one, and of the best residual dimension."""
        assert self.concepts is not None, "the evaluation found concepts"
        groups, names = zip(*self.concepts.names, strict=True)
        own = {name: _listed(getattr(self.concepts, name)) for name in _CONCEPT_TENSORS}
        own["latent"] = [None if latent < 0 else latent for latent in own["latent"]]
        raw = self.raw_concepts
        compared = {} if raw is None else {"raw_precision": _listed(raw.precision), "raw_iou": _listed(raw.iou)}
        return {"group": list(groups), "concept": list(names), **own, **compared}

    def save(self, stage: Stage) -> None:
        """Write everything but the report's section."""
        stage.save_json("evaluation", self.figures)
        stage.write_table("tokens.csv", self.token_columns())
        frequency = self.quality.frequency.numpy()
        stage.write_table(
            "latents.parquet",
            {"latent": list(range(len(frequency))), "tokens": self.quality.fired.numpy(), "frequency": frequency},
        )
        tensors = {"l0": self.quality.l0, "fired": self.quality.fired}
        if self.correct is not None and self.classified is not None:
            stage.write_table("classification.csv", self.classification_columns())
            tensors |= {"correct": self.correct, "classified": self.classified}
        if self.concepts is not None:
            stage.write_table("concepts.csv", self.concept_columns())
        for prefix, scores in (("concepts", self.concepts), ("raw_concepts", self.raw_concepts)):
            tensors |= {} if scores is None else {f"{prefix}.{n}": getattr(scores, n) for n in _CONCEPT_TENSORS}
        stage.save_tensors("counts", tensors)
        stage.save_json("result", self._plain())

    @staticmethod
    def load(stage: Stage) -> EvaluateResult:
        """Read what :meth:`save` left in the stage."""
        with stage.understanding():
            tensors, plain = stage.load_tensors("counts"), stage.load_json("result")
            groups = {name: TokenQuality(**_unknown(plain["tokens"][name])) for name in TOKEN_GROUPS}
            loss = plain["contrastive"]
            if loss is not None:
                losses = dict(zip(MASKINGS, loss["losses"], strict=True))
                loss = Contrastive(losses, loss["lowest"], loss["batches"])
            return EvaluateResult(
                quality=Quality(**groups, l0=tensors["l0"], fired=tensors["fired"]),
                dense_above=plain["dense_above"],
                batch_size=plain["batch_size"],
                correct=tensors.get("correct"),
                classified=tensors.get("classified"),
                contrastive=loss,
                concepts=_scores("concepts", plain, tensors),
                raw_concepts=_scores("raw_concepts", plain, tensors),
            )

    def _plain(self) -> dict[str, Any]:
        """What `load` needs beside the tensors."""
        tokens = {name: asdict(getattr(self.quality, name)) for name in TOKEN_GROUPS}
        loss = self.contrastive
        return {
            "dense_above": self.dense_above,
            "batch_size": self.batch_size,
            "tokens": {group: {name: _known(v) for name, v in row.items()} for group, row in tokens.items()},
            "contrastive": loss
            and {"losses": [loss.losses[m] for m in MASKINGS], "lowest": loss.lowest, "batches": loss.batches},
            "concepts": self.concepts and {"names": self.concepts.names, "images": self.concepts.images},
            "raw_concepts": self.raw_concepts
            and {"names": self.raw_concepts.names, "images": self.raw_concepts.images},
        }


def _scores(prefix: str, plain: dict[str, Any], tensors: dict[str, Tensor]) -> ConceptScores | None:
    about = plain[prefix]
    if about is None:
        return None
    first, second = about["images"]
    names = tuple((group, concept) for group, concept in about["names"])
    return ConceptScores(names=names, images=(first, second), **{n: tensors[f"{prefix}.{n}"] for n in _CONCEPT_TENSORS})


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _unknown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in row.items()}


def _listed(values: Tensor) -> list[Any]:
    return [_known(value) for value in values.tolist()]
