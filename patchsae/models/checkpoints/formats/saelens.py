"""SAELens: a directory with ``sae_weights.safetensors`` and ``cfg.json``; of version 6, and of those before it.

``x -> normalise -> u``, ``pre = (u - a b_dec) W_enc + b_enc``. With ``rescale_acts_by_decoder_norm`` the latents are
``pre |W_dec row|``, and the choice is among these: scaled weights are the same autoencoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from patchsae.disk.atomic import replacing, write_text
from patchsae.disk.documents import read_json
from patchsae.disk.tensor_files import read_tensors
from patchsae.models.checkpoints import holds, origin, understood
from patchsae.models.checkpoints.fold import fold, gated, row_norms, scaled_latents
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import flag, is_number, require_said, take, text
from patchsae.models.checkpoints.opened import MOST_CONFIG, Opened
from patchsae.models.sae_config import SAEConfig

WEIGHTS, CONFIG, SPARSITY = "sae_weights.safetensors", "cfg.json", "sparsity.safetensors"
SCALER = "activation_scaler.json"
NEVER = 2e-10  # what SAELens adds to a frequency before it takes the logarithm, twice
OWN_KEYS = ("architecture", "d_sae", "hook_point", "hook_name", "activation_fn", "activation_fn_str")
OTHERS_KEYS = ("layer_subtype", "cls_token_only", "use_patches_only", "trainer", "sae_type", "format")
PLAIN = {"W_enc": "D S", "b_enc": "S", "W_dec": "S D", "b_dec": "D"}
GATED = {"W_enc": "D S", "W_dec": "S D", "b_dec": "D", "b_gate": "S", "b_mag": "S", "r_mag": "S"}
FINETUNED = ("scaling_factor", "finetuning_scaling_factor")  # of the latents when they are decoded, before version 6
BATCHED = ("batchtopk", "matryoshka_batchtopk")  # of files saved to go on training
NORMALISE = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "norm_rescale",
    "expected_average_only_in": "none",  # to be folded when it is saved for inference
}
REFUSED = {
    "abstopk": "keeps latents by their size whatever their sign, which no activation of this patchsae does",
    "matching_pursuit": "chooses its latents one after the other, each by what the last one left",
    "temporal": "encodes a token by attention to the tokens before it",
    "transcoder": "reconstructs another activation than the one it reads",
    "skip_transcoder": "reconstructs another activation than the one it reads",
    "jumprelu_transcoder": "reconstructs another activation than the one it reads",
    "jumprelu_skip_transcoder": "reconstructs another activation than the one it reads",
}
ACTIVATIONS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "jumprelu"}
WRITTEN_AS = "6.0.0"  # whose configuration this is
DEFAULT_K = 100  # of SAELens's TopKSAEConfig


def _matches(opened: Opened) -> bool:
    if not {"W_dec", "b_dec"} <= opened.table.keys() or opened.header:
        return False
    said = opened.config
    return any(key in said for key in OWN_KEYS) and not any(key in said for key in OTHERS_KEYS)


def _read(opened: Opened, _: Answers) -> Checkpoint:
    file, said = opened.file, opened.config
    kind, k = _architecture(file, said)
    shapes = GATED if kind == "gated" else PLAIN
    taken = take(file, opened.tensors(), shapes, _optional(kind))
    require_said(file, said, taken.sizes, {"d_in": "D", "d_sae": "S"})
    subtracts = flag(file, said, "apply_b_dec_to_input", True)
    rescales = flag(file, said, "rescale_acts_by_decoder_norm", kind in BATCHED)
    tensors = _folded(file, kind, taken.tensors, subtracts, rescales)
    scaling = next((taken.tensors[name] for name in FINETUNED if name in taken.tensors), None)
    if scaling is not None and not bool((scaling == 1).all()):
        if said.get("finetuning_scaling_factor") is not True:
            raise ValueError(f"{file} holds a scaling_factor that is not 1, and does not say that it was finetuned")
        tensors["W_dec"] = scaled_latents(tensors["W_dec"], scaling)
    normalise, unsaid = _normalise(file, said)
    factor = _factor(file) if unsaid else None
    if factor is not None:  # u = x factor
        unsaid = {}
        parts = {name: tensors[name] for name in PLAIN}
        tensors |= fold(**parts, subtracts=True, std=1 / factor)
    metadata: dict[str, str | int | float] = {
        "variant": kind,
        "b_dec": understood.SUBTRACTED if subtracts else understood.NOT_SUBTRACTED,
        **({"input": understood.RAW} if normalise == "none" and not unsaid and factor is None else {}),
        **({} if factor is None else {"input": f"x times {factor:g}"}),
        **_origin(said),
        **_promised(file, said, taken.sizes["S"]),
    }
    activation = ACTIVATIONS.get(kind, "jumprelu")
    config = SAEConfig(taken.sizes["D"], taken.sizes["S"], activation, k, metadata, normalise)
    return Checkpoint(file, config, tensors, unsaid)


def _architecture(file: Path, said: Mapping[str, Any]) -> tuple[str, int | None]:
    """Its name, and k where it is a top-k one."""
    kind = text(file, said, "architecture", "standard")
    if kind in REFUSED:
        raise ValueError(f"{file} holds SAELens's {kind}, which this patchsae does not represent: it {REFUSED[kind]}")
    others = [key for key in ("k", "activation") if key in said]
    if "architecture" not in said and others:
        raise ValueError(f"{file} says its {others[0]} and no architecture, as no SAE of SAELens does")
    before = said.get("activation_fn", said.get("activation_fn_str", "relu"))
    settings = said.get("activation_fn_kwargs")
    k = settings.get("k") if isinstance(settings, Mapping) else said.get("k", DEFAULT_K)
    if kind == "standard" and before == "topk":  # of before version 6
        if not isinstance(settings, Mapping) or "k" not in settings:
            raise ValueError(f"{file} has the activation topk, and its activation_fn_kwargs say no k")
        kind = "topk"
    elif kind == "standard" and before != "relu":
        raise ValueError(f"{file} has the activation {str(before)[:40]}; this patchsae reads relu and topk")
    if kind not in ACTIVATIONS and kind not in BATCHED:
        known = ", ".join((*ACTIVATIONS, *BATCHED))
        raise ValueError(f"{file} has the architecture {kind[:40]}; this patchsae reads {known}")
    return kind, k if kind == "topk" else None


def _optional(kind: str) -> dict[str, str]:
    """Tensors that only some files of an architecture have."""
    names = dict.fromkeys(FINETUNED, "S")
    if kind == "gated":
        names["b_enc"] = "S"  # which nothing uses
    if kind == "jumprelu":
        names |= {"threshold": "S", "log_threshold": "S"}
    return names | ({"topk_threshold": ""} if kind in BATCHED else {})


def _folded(file: Path, kind: str, w: Mapping[str, Tensor], subtracts: bool, rescales: bool) -> dict[str, Tensor]:
    W_enc, W_dec, threshold = w["W_enc"], w["W_dec"], _threshold(file, kind, w)
    if kind == "gated":
        W_enc, b_enc, threshold = gated(W_enc=W_enc, r_mag=w["r_mag"], b_mag=w["b_mag"], b_gate=w["b_gate"])
    else:
        b_enc = w["b_enc"]
    if rescales:
        norms = row_norms(W_dec)
        W_enc, b_enc = scaled_latents(W_enc.T, norms).T, (b_enc.double() * norms).float()
        W_dec = scaled_latents(W_dec, 1 / norms.where(norms > 0, 1))
    tensors = fold(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=w["b_dec"], subtracts=subtracts)
    return tensors if threshold is None else tensors | {"threshold": threshold.clamp(min=0)}


def _threshold(file: Path, kind: str, w: Mapping[str, Tensor]) -> Tensor | None:
    """What a pre-activation must be above; ``relu(pre)`` of a negative one."""
    if kind == "jumprelu" and "log_threshold" in w and "threshold" not in w:
        return w["log_threshold"].double().exp().float()
    name = "threshold" if kind == "jumprelu" else "topk_threshold" if kind in BATCHED else None
    if name is not None and name not in w:
        raise ValueError(f"{file} has no {name}; expected that of a {kind} SAE, which says what its latents keep")
    return None if name is None else w[name].expand(w["b_enc"].shape).contiguous()


def _normalise(file: Path, said: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """What is done to each token, and what of it the file leaves open."""
    name = said.get("normalize_activations")
    if name is None or isinstance(name, bool):  # of before version 6
        name = "expected_average_only_in" if name else "none"
    if not isinstance(name, str) or name not in NORMALISE:
        raise ValueError(
            f"{file} normalises its input by {str(name)[:40]}, which this patchsae does not; it reads "
            f"{', '.join(NORMALISE)}, and what SAELens folds into the weights"
        )
    if name != "expected_average_only_in":
        return NORMALISE[name], {}
    return "none", {
        "input": "SAELens trained it on tokens scaled to an average length of sqrt(D), did not fold the factor into "
        "the weights, and does not say it; taken for tokens as they are. std=(mean length of tokens) / sqrt(D) decides "
        "it"
    }


def _factor(file: Path) -> float | None:
    """What tokens were multiplied by in training, where it is beside the weights."""
    if not (file.parent / SCALER).is_file():
        return None
    found = read_json(file.parent / SCALER, MOST_CONFIG)
    factor = found.get("scaling_factor") if isinstance(found, dict) else None
    if factor is None:
        return None
    if not is_number(factor, 0):
        raise ValueError(f"{file.parent / SCALER}: scaling_factor is {str(factor)[:40]}; expected a positive number")
    return float(factor)


def _origin(said: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The tower, and where in it."""
    more = said.get("metadata")
    more = {**said, **more} if isinstance(more, Mapping) else said
    hook = more.get("hook_name", more.get("hook_point"))
    return {**origin.tower(more.get("model_name")), **origin.ours(more), **origin.place(hook)}


def _promised(file: Path, said: Mapping[str, Any], d_sae: int) -> dict[str, float]:
    """What its training found: how often each latent was active, or the k of a batch."""
    frequencies = file.parent / SPARSITY  # log10(frequency + 1e-10)
    if frequencies.is_file():
        logs = take(frequencies, read_tensors(frequencies)[0], {"sparsity": "S"})
        require_said(frequencies, {"latents": d_sae}, logs.sizes, {"latents": "S"})
        rates = 10 ** logs.tensors["sparsity"].double().clamp(max=0)
        return {"l0": float(rates.sum()), "dead": float((rates < NEVER).double().mean())}
    more = said.get("metadata")
    details = more.get("training_architecture_details") if isinstance(more, Mapping) else None
    k = details.get("k") if isinstance(details, Mapping) else said.get("k")
    trained = more.get("training_architecture") if isinstance(more, Mapping) else None
    return {"l0": float(k)} if type(k) is int and 0 < k <= d_sae and trained in BATCHED else {}


def _write(config: SAEConfig, state: Mapping[str, Tensor], folder: Path) -> None:
    holds.require(config, "saelens", ("relu", "topk", "jumprelu"), ("none", "layer_norm", "norm_rescale"))
    by_ours = {ours: theirs for theirs, ours in NORMALISE.items() if theirs != "expected_average_only_in"}
    said = origin.ours(config.metadata)
    if "model" in said:
        said["model_name"] = said.pop("model")
    layer = said.get("layer")
    if "hook" in said:
        said["hook_name"] = said.pop("hook")
    elif isinstance(layer, int) and layer >= 0:
        said["hook_name"] = f"blocks.{layer}.hook_resid_post"
    record = {
        "architecture": {"relu": "standard"}.get(config.activation, config.activation),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": by_ours[config.normalise],
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": WRITTEN_AS, "sae_lens_training_version": None, **said},
        **({"k": config.k, "rescale_acts_by_decoder_norm": False} if config.activation == "topk" else {}),
    }
    with replacing(folder / WEIGHTS) as temporary:
        save_file(dict(state), temporary)
    write_text(folder / CONFIG, json.dumps(record, indent=2) + "\n")


FORMAT = Format(
    "saelens",
    _matches,
    _read,
    _write,
)
