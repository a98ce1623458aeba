"""The published SAEs of vision models: what each was trained on, and where its weights lie.

A list of facts, no judgement: that a SAE is named here does not say that one of the formats opens it. Sizes, blocks and
tokens are those that its authors' code, tables and model cards give.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

APACHE, MIT, SHARE_ALIKE = "Apache-2.0", "MIT", "CC-BY-SA-4.0"
NOT_STATED = "not stated"
NOT_SEEN = "not seen"  # whoever entered it here had no sight of the model card
TOKENS = ("all", "patches", "cls", "embedding")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A SAE that others have published.

    Attributes:
        name: the short name that `load_sae` takes.
        source: what `hub.fetch` takes, or None where the weights are not on the Hugging Face Hub.
        format: whose layout the files have.
        model: the tower: open_clip's name where ``pretrained`` is its tag, else the name under which others load it.
        pretrained: open_clip's tag of the tower's weights, or None for a tower that open_clip does not name.
        layer: the block whose output is encoded, from 0, or from the end if negative; None where the files of several
            blocks lie in ``source``.
        tokens: "all", "patches", "cls", or "embedding", the pooled and projected one.
        d_in: D.
        d_sae: S.
        file: bytes of its file, where they are more than those of its parameters.
        licence: of the weights, as the model card or, without one, the authors' repository says.
        where: an address for people, and what to do with what lies there if ``source`` is None.
        note: what else must be known before its latents mean anything.
        input: what it was trained on where that is not the tokens as they are, and its file does not say it.
    """

    name: str
    source: str | None
    format: str
    model: str
    pretrained: str | None = None
    layer: int | None
    tokens: str
    d_in: int
    d_sae: int
    file: int | None = None
    licence: str
    where: str
    note: str = ""
    input: str = ""

    @property
    def size(self) -> int:
        """Bytes to download: of its file, or of the parameters in float32."""
        parameters = 2 * self.d_in * self.d_sae + self.d_in + self.d_sae
        return 4 * parameters if self.file is None else self.file

    @property
    def metadata(self) -> dict[str, str | int]:
        """What a SAE that is loaded by this name says of the CLIP, where its file does not: as in `SAEConfig`."""
        said = {"model": self.model, "pretrained": self.pretrained, "layer": self.layer, "tokens": self.tokens}
        return {key: value for key, value in said.items() if value is not None}


def find(name: str) -> Published | None:
    """The published SAE of a short name."""
    return _by_name().get(name)


def published() -> list[Published]:
    """All of them, by name; layer 2 before layer 10."""
    return list(_by_name().values())


@cache
def _by_name() -> dict[str, Published]:
    families = (_saev(), _prisma(), _visaebench(), _of_embeddings(), _universal(), _others())
    entries = sorted((entry for family in families for entry in family), key=lambda entry: _order(entry.name))
    return {entry.name: entry for entry in entries}


def _order(name: str) -> list[tuple[str, int]]:
    return [(words, int(digits or -1)) for words, digits in re.findall(r"(\D*)(\d*)", name)]


def _on_the_hub(like: Published, name: str, source: str) -> Published:
    """An entry that is ``like`` another and lies on the Hugging Face Hub."""
    repository = "/".join(source.split("/")[:2])
    return replace(like, name=name, source=source, where=f"https://huggingface.co/{repository}")


_OPENAI_B16 = Published(
    name="",
    source=None,
    format="",
    model="ViT-B-16-quickgelu",
    pretrained="openai",
    layer=10,
    tokens="patches",
    d_in=768,
    d_sae=24576,
    licence=MIT,
    where="",
)


def _saev() -> list[Published]:
    clip = replace(_OPENAI_B16, format="saev")
    other = replace(clip, pretrained=None)
    bioclip = replace(
        other,
        model="imageomics/bioclip",
        note="the tower lies in open_clip's layout: download that repository and name it as local-dir:PATH",
    )
    dinov2 = replace(
        other,
        model="facebookresearch/dinov2:dinov2_vitb14_reg",
        input="its authors trained it on (x - mean) / 2.0181241035461426, and the 768 numbers of mean are only in the "
        "example of inference in their repository; taken as tokens as they are. mean= and std= decide it",
    )
    siblings = replace(clip, note="licence: that of its siblings and of its author's own copy; its card was not seen")
    return [
        _on_the_hub(siblings, "saev/clip-b16-in1k", "osunlp/SAE_CLIP_24K_ViT-B-16_IN1K"),
        _on_the_hub(bioclip, "saev/bioclip-b16-inat21", "osunlp/SAE_BioCLIP_24K_ViT-B-16_iNat21"),
        _on_the_hub(dinov2, "saev/dinov2-b14-in1k", "osunlp/SAE_DINOv2_24K_ViT-B-14_IN1K"),
        *_saev_dinov3(replace(other, layer=None, d_sae=16384)),
    ]


def _saev_dinov3(like: Published) -> list[Published]:
    """Repositories of up to 36 SAEs: six blocks, each at several sparsities."""
    last = "13, 15, 17, 19, 21 or 23"
    repositories = (
        ("s16-in1k", "SAE_DINOv3_ViT-S-16_IN1K", "vits16", 384, "6 to 11"),
        ("b16-in1k", "SAE_DINOv3_ViT-B-16_IN1K", "vitb16", 768, "6 to 11"),
        ("l16-in1k", "SAE_DINOv3_ViT-L-16_IN1K", "vitl16", 1024, last),
        ("l16-in1k-topk", "SAE_DINOv3_TopK_ViT-L-16_IN1K", "vitl16", 1024, last),
    )
    choose = (
        "holds many: name one as osunlp/{}/layer_N/RUN, N {}; manifest.jsonl there lists the runs with L0 and error"
    )
    return [
        _on_the_hub(
            replace(
                like,
                model=f"facebook/dinov3-{tower}-pretrain-lvd1689m",
                d_in=d_in,
                note=choose.format(repository, blocks),
            ),
            f"saev/dinov3-{name}",
            f"osunlp/{repository}",
        )
        for name, repository, tower, d_in, blocks in repositories
    ]


# What the names of Prisma's repositories end with, for each block from 0
_PRISMA_ALL = ("1e-05", "1e-05", "5e-05", *["1e-05"] * 9)
_PRISMA_CLS = (
    *("936.799987792969-82", "314.175018310547-85", "711.121887207031-96", "686.334411621094-95"),
    *("682.543762207031-95", "510.356262207031-94", "430.556243896484-92", "492.959381103516-88"),
    *("635.018737792969-76", "518.621887207031-74", "552.512512207031-74", "383.75-65"),
)
_PRISMA_PATCHES = (
    *("989.203430175781-99", "757.82958984375-99", "1007.89801025391-99", "935.601989746094-99"),
    *("965.410095214844-99", "964.674072265625-99", "1006.57165527344-99", "984.1376953125-99"),
    *("965.125-99", "854.891540527344-99", "90.03951-72", "829.0498046875-99"),
)
_PRISMA_DINO = (
    *("507-98", "549-95", "661-95", "989-95", "876-99", "1001-98"),
    *("962-99", "1086-98", "530-90", "1105-99", "835-99", "1085-99"),
)


def _prisma() -> list[Published]:
    """The SAEs after each of the twelve blocks; those of what an MLP adds read no block's output."""
    clip = replace(_OPENAI_B16, format="prisma", model="ViT-B-32", pretrained="datacomp_xl_s13b_b90k", d_sae=49152)
    return [entry for layer in range(12) for entry in _prisma_of(replace(clip, layer=layer, tokens="all"), layer)]


def _prisma_of(clip: Published, layer: int) -> list[Published]:
    hub, name, after = "Prisma-Multimodal", f"prisma/clip-b32-layer{layer}-resid-post", f"{layer}-hook_resid_post"
    vanilla = f"{hub}/sparse-autoencoder-clip-b-32-sae-vanilla-x64-layer-{after}-l1-{_PRISMA_ALL[layer]}"
    sweep = f"{hub}/imagenet-sweep-vanilla-x64"
    silent = replace(clip, licence=NOT_STATED)
    siblings = replace(silent, note="licence: its card was not seen; those of its siblings state none")
    cls, patches = replace(siblings, tokens="cls"), replace(siblings, tokens="patches")
    top_k = replace(silent, tokens="cls")
    dino = replace(siblings, model="facebook/dino-vitb16", pretrained=None)
    dino_after = f"{layer}-resid_post-{_PRISMA_DINO[layer]}"
    return [
        _on_the_hub(replace(clip, licence=APACHE), name, vanilla),
        _on_the_hub(cls, f"{name}-cls", f"{sweep}-CLS_{after}-{_PRISMA_CLS[layer]}"),
        _on_the_hub(top_k, f"{name}-cls-topk64", f"{hub}/sae-top_k-64-cls_only-layer_{after}"),
        _on_the_hub(patches, f"{name}-patches", f"{sweep}-Spatial_max_{after}-{_PRISMA_PATCHES[layer]}"),
        _on_the_hub(
            dino, f"prisma/dino-b16-layer{layer}-resid-post", f"{hub}/DINO-vanilla-x64-all_patches_{dino_after}"
        ),
    ]


def _visaebench() -> list[Published]:
    """Twelve of each of five towers, all after the last block."""
    note = (
        "trained on (x - mean) / std of ImageNet's patches, which are not in the file; licence: its card was not seen, "
        "the package that reads it is Apache-2.0"
    )
    clip = replace(_OPENAI_B16, format="visaebench", layer=11, licence=NOT_SEEN, note=note)
    other = replace(clip, pretrained=None)
    final = f"after the tower's final norm; {note}"
    towers = (
        ("clip-b16", "clip-vitb16", clip),
        ("dinov2-b14", "dinov2-vitb14", replace(other, model="facebookresearch/dinov2:dinov2_vitb14", note=final)),
        ("siglip-b16", "siglip-vitb16", replace(other, model="google/siglip-base-patch16-224")),
        ("mae-b16", "mae-vitb16", replace(other, model="timm:vit_base_patch16_224.mae")),
        ("deit-b16", "deit-vitb16", replace(other, model="timm:deit_base_patch16_224")),
    )
    return [
        _on_the_hub(
            replace(like, d_sae=768 * times),
            f"visaebench/{tower}-batchtopk-{times}x-k{k}",
            f"visaebench/{repository}-saes/batchtopk_{times}x_k{k}",
        )
        for tower, repository, like in towers
        for times in (8, 16, 32)
        for k in (64, 128, 192, 256)
    ]


def _of_embeddings() -> list[Published]:
    """Of CLIP's image embeddings."""
    b16 = replace(_OPENAI_B16, layer=-1, tokens="embedding", d_in=512, d_sae=4096)
    l14 = replace(b16, model="ViT-L-14-quickgelu", d_in=768, d_sae=6144)
    msae = replace(l14, format="msae", licence=NOT_SEEN, note="licence: its card was not seen; its code is MIT")
    file = "6144_768_TopKReLU_64_RW_False_False_0.0_cc3m_ViT-L~14_train_image_2905936_768.pth"
    top_k = replace(
        b16,
        format="clip-topk-sae",
        licence=NOT_STATED,
        note="k 16, on embeddings of length 1; sizes are those of its authors' configuration",
    )
    return [
        _on_the_hub(msae, "msae/clip-l14-cc3m", f"WolodjaZ/MSAE/ViT-L_14/centered/{file}"),
        _on_the_hub(msae, "msae/clip-l14-cc3m-not-centered", f"WolodjaZ/MSAE/ViT-L_14/not_centered/{file}"),
        _on_the_hub(top_k, "clip-topk-sae/clip-b16-in1k", "lasgroup/clip-topk-sae"),
        _dn_cbm(b16, "b16"),
        _dn_cbm(l14, "l14"),
        _dn_cbm(replace(b16, model="RN50-quickgelu", d_in=1024, d_sae=8192), "rn50"),
    ]


def _dn_cbm(like: Published, tower: str) -> Published:
    there = "https://nextcloud.mpi-klsb.mpg.de/index.php/s/PZYoKSq29XaEgL6"
    return replace(
        like,
        name=f"dn-cbm/clip-{tower}-cc3m",
        format="dn-cbm",
        where=f"{there}: download sparse_autoencoder_final.pt of this tower and name its path",
        note="licence: that of its authors' code",
    )


def _universal() -> list[Published]:
    """One dictionary of concepts for three towers."""
    like = replace(
        _OPENAI_B16,
        format="universal-sae",
        pretrained=None,
        layer=-1,
        d_sae=6144,
        note="after the tower's final norm; trained on (x - mean) / std, which its authors' repository has in a "
        "configuration; latent i is the same concept in all three; licence: that of its authors' code",
    )
    there = "https://drive.google.com/drive/folders/1zkh5Ftd2dRJFKEzYwad0AZKsn-A8MWNx"
    towers = (
        ("dinov2-s14", "facebookresearch/dinov2:dinov2_vits14", 384, "uni_DinoV2_checkpoint_29.pth"),
        ("siglip-b16", "timm:vit_base_patch16_siglip_224.webli", 768, "uni_SigLIP_checkpoint_29.pth"),
        ("vit-b16", "timm:vit_base_patch16_224", 768, "uni_ViT_checkpoint_29.pth"),
    )
    return [
        replace(
            like,
            name=f"universal-sae/{name}-in1k",
            model=model,
            d_in=d_in,
            where=f"{there}: download {file} and name its path",
        )
        for name, model, d_in, file in towers
    ]


def _others() -> list[Published]:
    released = replace(
        _OPENAI_B16,
        name="patchsae/clip-b16-in1k",
        format="patchsae-pt",
        tokens="all",
        d_sae=49152,
        licence=NOT_SEEN,
        where="Google Drive, by the link in https://github.com/dynamical-inference/patchsae: download "
        "clip-vit-base-patch16_-2_resid_49152.pt and name its path",
    )
    archetypal = replace(
        _OPENAI_B16,
        format="overcomplete",
        model="facebookresearch/dinov2:dinov2_vitb14_reg",
        pretrained=None,
        layer=11,
        tokens="all",
        d_sae=32000,
        file=4_390_000_000,
        licence=SHARE_ALIKE,
        note="all 261 tokens after the tower's final norm; licence: that which others who use it name",
    )
    return [
        released,
        _on_the_hub(archetypal, "overcomplete/dinov2-b14-ra-sae-32k", "matybohacek/RA-SAE-DINOv2-32k"),
    ]
