"""From what a command line names to the objects the experiments take: images, CLIP, SAE, earlier stages.

A run directory remembers: what a verb is not told, it takes from the stage that trained the SAE.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch

from patchsae.adapt.options import AdaptOptions
from patchsae.adapters import AdaptedCLIP, load_adapter
from patchsae.adapters.files import FILE as ADAPTER
from patchsae.cli.choices import FewImages, Images, Model
from patchsae.data import ImageDataset, SplitError, limit, open_images
from patchsae.data.base import Subset
from patchsae.data.open import is_shapes
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.claims import whole_number
from patchsae.disk.names import written
from patchsae.disk.runs import Run, Stage
from patchsae.experiments.options import StreamOptions
from patchsae.models import clip_config, clip_weights
from patchsae.models.checkpoints.load import load_sae
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.models.clip_names import NOT_SAID
from patchsae.models.sae import SparseAutoencoder

Options = TypeVar("Options", bound=StreamOptions | AdaptOptions)

TRAIN = "train"
DEFAULT_MODEL = "tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def finished_stage(run: Run, name: str, verb: str, instead: str) -> Stage:
    """A stage whose results another verb needs.

    Raises FileNotFoundError that says which command makes it, and what else could be given (``instead``).
    """
    stage = run.stage(name)
    if not stage.finished:
        missing = stage.path if run.root.is_dir() else f"The run {run.root}"
        state = "is not finished" if stage.path.exists() else "does not exist"
        named = "" if name == verb else f" --name {name}"
        have = ", ".join(s.name for s in run.stages() if s.finished) or "none"
        raise FileNotFoundError(
            f"{missing} {state}: run `patchsae {verb} --run {run.root}{named}` first, or give {instead}. "
            f"Finished stages there: {have}"
        )
    return stage


def autoencoder(run: Run, sae: str | None, device: torch.device | str) -> SparseAutoencoder:
    """The SAE that ``--sae`` names, or the one trained in this run."""
    return load_sae(finished_stage(run, TRAIN, TRAIN, "--sae CHECKPOINT").path if sae is None else sae, device)


def images(
    choice: Images, origin: Mapping[str, Any], default: str | None = None, option: str = "--split"
) -> tuple[ImageDataset, dict[str, Any]]:
    """The dataset of a choice, and what to record of it; what is left out comes from ``origin``, then ``default``.

    What lies beside the images and is none of them is said on standard error.

    Raises ValueError when nobody says which images, and for a split that is not there, which ``option`` named.
    """
    source = choice.images or origin.get("images") or default
    if source is None:
        raise ValueError("--images is not given, and the SAE does not say which images it was trained on")
    inherited = origin if choice.images is None and choice.split is None else {}
    split = choice.split or inherited.get("split")
    most, seed = choice.limit, choice.limit_seed
    if most is None and "limit" in inherited:
        most, seed = inherited["limit"], inherited.get("limit_seed", 0)
    # of the images alone, whichever part of them is read
    outside = choice.outside or (choice.images is None and bool(origin.get("outside")))
    try:
        dataset = open_images(source, split, outside)
    except SplitError as error:
        raise ValueError(f"{option} {error.reason}") from error
    if is_first():
        for note in dataset.notes:
            print(f"{dataset.name}: {note}", file=sys.stderr)
    if most is not None:
        dataset = limit(dataset, most, seed)
    found = {
        "images": _writable(_whole(source)),
        "split": split,
        "limit": most,
        "limit_seed": None if most is None else seed,
        "outside": outside or None,
        **({"on_bad_image": origin.get("on_bad_image")} if choice.images is None else {}),
    }
    return dataset, {key: value for key, value in found.items() if value is not None}


def as_trained(options: Options, found: Mapping[str, Any]) -> Options:
    """The options of a verb, with what `images` found of bad images where nothing was said."""
    return replace(options, on_bad_image=options.on_bad_image or found.get("on_bad_image", "stop"))


def is_first() -> bool:
    """Whether this process speaks for those of torchrun; asked before they are joined."""
    return os.environ.get("RANK", "0") == "0"


def clip(choice: Model, origin: Mapping[str, Any]) -> SplitCLIP:
    """The CLIP of a choice; what is left out comes from ``origin``, the metadata of a SAE.

    Raises ValueError as `load_clip`: for a model of open_clip without weights, random ones are for those who ask.
    """
    name = choice.model or str(origin.get("model", DEFAULT_MODEL))
    layer = _number(origin, "layer", -2) if choice.layer is None else choice.layer
    on = device(choice)
    pretrained, seed = choice.pretrained, 0
    if pretrained is None and name == origin.get("model"):
        seed = _number(origin, "model_seed", 0)
        pretrained = clip_weights.RANDOM if "model_seed" in origin else str(origin.get("pretrained", NOT_SAID))
    return load_clip(
        _whole(name) if name.startswith(clip_weights.LOCAL_DIR) else name,
        _whole_weights(name, pretrained or NOT_SAID),
        layer=layer,
        device=on,
        dtype=DTYPES[choice.dtype],
        seed=seed,
    )


def clip_and_images(
    model: Model, choice: Images, origin: Mapping[str, Any], default: str | None = None
) -> tuple[SplitCLIP, ImageDataset, dict[str, Any]]:
    """The CLIP, the images and what to record of them, and a line that says what they are; see `clip` and `images`."""
    dataset, found = images(choice, origin, default)  # first: it takes less time, and more can be wrong with it
    opened = clip(model, origin)
    say_what_is_used(opened, dataset)
    return opened, dataset, found


def say_what_is_used(model: SplitCLIP, dataset: ImageDataset | None, what: str = "") -> None:
    """One line on standard error: model, weights, layer, images, device; a second one where they hardly fit.

    what: the images in words, where they are not the whole of the dataset.
    """
    if not is_first():
        return
    own = "its own weights" if model.seed is None else f"random weights of seed {model.seed}"
    what = what or (f"{len(dataset):,} images of {dataset.name}" if dataset is not None else "no images")
    block = f"block {model.layer} of 0..{model.layers - 1}"
    print(f"using {model.name}, {model.pretrained or own}, {block}; {what}; {model.device}", file=sys.stderr)
    if model.name == DEFAULT_MODEL and model.seed is None and dataset is not None and not _drawn(dataset):
        print(
            "note: 'tiny' is a CLIP of 4 million parameters that has seen the drawn shapes and nothing else; for other "
            "images name one, such as --model ViT-B-16-quickgelu --pretrained openai",
            file=sys.stderr,
        )


def _drawn(dataset: ImageDataset) -> bool:
    """Whether a dataset, or what it is a part of, is the shapes world."""
    while isinstance(dataset, Subset):
        dataset = dataset.parent
    return isinstance(dataset, ShapesWorld)


def absolute(path: str) -> str:
    """A path that holds from anywhere."""
    return os.path.abspath(os.path.expanduser(path))


def without_download(choice: Model) -> Model:
    """The same architecture with random weights where the choice names a model of open_clip and no local file."""
    local = choice.pretrained is not None and os.path.exists(os.path.expanduser(choice.pretrained))
    named = (choice.model or DEFAULT_MODEL).replace("/", "-") in open_clip.list_models()
    return replace(choice, pretrained=clip_weights.RANDOM) if named and not local else choice


def adapter(path: str, clip: SplitCLIP, classnames: Sequence[str] | None = None) -> AdaptedCLIP:
    """What ``--adapter`` names, on a CLIP: a stage of `patchsae adapt`, what `save_adapter` wrote, official MaPLe.

    Raises FileNotFoundError or ValueError as `load_adapter`, and where a stage has no adapter yet.
    """
    return load_adapter(clip, adapter_folder(path), classnames)


def adapter_folder(path: str) -> Path:
    """Where an adapter lies. FileNotFoundError, before anything is loaded, where there is none."""
    folder = Path(os.path.expanduser(path))
    if not folder.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected RUN/NAME of `patchsae adapt`, an adapter file, or an official checkpoint"
        )
    if (folder / "config.toml").exists() and not (folder / ADAPTER).exists():
        raise FileNotFoundError(f"{path} is a stage without {ADAPTER}: run `patchsae adapt` to its end first")
    return folder


def few_images(
    choice: FewImages, origin: Mapping[str, Any]
) -> tuple[ImageDataset, ImageDataset, list[ImageDataset], dict[str, Any]]:
    """Train split, test split, test splits of the targets, and what to record of them."""
    source = choice.images or origin.get("images") or "shapes"
    outside = choice.outside or (choice.images is None and bool(origin.get("outside")))

    def tested(name: str, split: str | None) -> tuple[ImageDataset, dict[str, Any]]:
        chosen = Images(name, split, choice.test_limit, outside=outside)
        return images(chosen, {}, option="--test-split")

    train, found = images(Images(source, choice.split, outside=outside), {})
    test, _ = tested(source, choice.test_split)
    targets = [tested(name, None if _names_split(name) else choice.test_split) for name in choice.targets]
    record = {
        "images": found["images"],
        "split": choice.split,
        "test_split": choice.test_split,
        "test_limit": choice.test_limit,
        "targets": [opened["images"] for _, opened in targets],
        "outside": outside or None,
        "on_bad_image": origin.get("on_bad_image") if choice.images is None else None,
    }
    settings = {key: value for key, value in record.items() if value is not None}
    return train, test, [dataset for dataset, _ in targets], settings


def trained_on(run: Run) -> dict[str, Any]:
    """What the stage that trained the SAE of a run says of its model and images; {} where there is none."""
    return run.stage(TRAIN).config or {}


def clip_folder(name: str) -> Path:
    """The folder of "tiny", "local-dir:PATH" or PATH. FileNotFoundError where no CLIP is there."""
    named = os.path.expanduser(name.removeprefix(clip_weights.LOCAL_DIR))
    folder = clip_weights.TINY if name == "tiny" else Path(named)
    if not (folder / clip_config.FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {clip_config.FILE}; expected 'tiny' or a CLIP's folder")
    return folder


def position(dataset: ImageDataset, index: int) -> int:
    """An index that the user gave; ValueError outside of the dataset."""
    if not 0 <= index < len(dataset):
        raise ValueError(f"index is {index}; expected 0..{len(dataset) - 1}, the images of {dataset.name}")
    return index


def device(choice: Model) -> str:
    """ "auto" resolved. ValueError for what is no device, or none that is here."""
    there = torch.cuda.is_available()
    if choice.device == "auto":
        return "cuda" if there else "cpu"
    kind, _, number = choice.device.partition(":")
    known = (kind == "cpu" and not number) or (kind == "cuda" and (not number or number.isdecimal()))
    if not known:
        raise ValueError(f"device is {choice.device!r}; expected auto, cpu, cuda, cuda:1, ...")
    if kind == "cuda" and not (there and int(number or 0) < torch.cuda.device_count()):
        raise ValueError(f"device is {choice.device!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    return choice.device


def _names_split(source: str) -> bool:
    """Whether a source says which split it means: "SOURCE:SPLIT", "shapes:SPLIT?...", as `open_images` reads them."""
    head = source.partition("?")[0] if is_shapes(source) else source
    return ":" in head and not os.path.exists(os.path.expanduser(head))


def _writable(source: str) -> str:
    """A source that can be recorded. Raises ValueError for a path whose bytes are not UTF-8."""
    if written(source) != source:
        raise ValueError(f"--images is {written(source)!r}, whose bytes are not text; give it another name, or a link")
    return source


def _number(origin: Mapping[str, Any], name: str, default: int) -> int:
    return whole_number("the metadata of the SAE", name, origin.get(name, default), most=2**31, least=-(2**31))


def _whole_weights(name: str, pretrained: str) -> str:
    """Weights that are a path made absolute; a tag, or what is no path, as it is."""
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    return pretrained if pretrained in (NOT_SAID, clip_weights.RANDOM, *tags) else _whole(pretrained)


def _whole(name: str) -> str:
    """A name that is a path (also PATH:SPLIT, a glob, local-dir:PATH) made absolute, so that it holds from anywhere."""
    if is_shapes(name):
        return name
    if name.startswith(clip_weights.LOCAL_DIR):
        return clip_weights.LOCAL_DIR + absolute(name.removeprefix(clip_weights.LOCAL_DIR))
    path = os.path.expanduser(name)
    if os.path.exists(path) or os.path.exists(path.rpartition(":")[0]) or glob.glob(path):
        return os.path.abspath(path)
    return name
