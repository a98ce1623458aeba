"""The line that says what was understood, and a SAE held against a tower."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from patchsae.models.checkpoints import origin, understood
from patchsae.models.sae_config import SAEConfig

CLIP = SimpleNamespace(
    name="ViT-B-16-quickgelu", pretrained="openai", layer=10, layers=12, width=768, embed_dim=512, model=None
)


def sae(d_in: int = 768, **metadata: object) -> SAEConfig:
    return SAEConfig(d_in, 24576, metadata=metadata)


def test_the_line_says_all_that_matters() -> None:
    said = {"format": "saev", "variant": "schema 5, topk", "b_dec": understood.NOT_SUBTRACTED}
    config = SAEConfig(768, 24576, "topk_no_relu", 32, said, soft_cap=2.0)
    assert understood.line(config) == (
        "saev schema 5, topk: topk_no_relu 32, capped at 2, D 768, S 24,576; b_dec not subtracted, tokens as they are; "
        "a tower that is not said, a block that is not said, tokens not said"
    )
    config = SAEConfig(4, 8, metadata={"model": "tiny", "layer": 3, "tokens": "patches"}, normalise="layer_norm")
    assert understood.line(config) == (
        "patchsae: relu, D 4, S 8; b_dec subtracted, each token layer-normed; tiny, output of block 3, patches"
    )


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"model": "openai/clip-vit-base-patch16", "pretrained": "openai", "layer": -2, "tokens": "patches"},
        {"model": "ViT-B/16", "layer": 10, "tokens": "all"},
        {"model": "local-dir:/anywhere"},
    ],
)
def test_a_sae_of_this_tower_is_taken(said: dict) -> None:
    understood.require_of(sae(**said), CLIP)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (sae(512), "reads pooled image embeddings of width 512; expected one of the tokens of ViT-B-16-quickgelu, "),
        (sae(1024), "reads tokens of width 1024; ViT-B-16-quickgelu has width 768$"),
        (sae(model="ViT-B-32"), "another model: vit-b-32; clip has vit-b-16"),
        (sae(pretrained="datacomp_xl_s13b_b90k"), "another pretrained: datacomp_xl_s13b_b90k; clip has openai"),
        (sae(layer=11), "another layer: 11; clip has 10"),
        (sae(layer=-1), "another layer: 11; clip has 10"),
        (sae(layer=23), "another layer: 23; clip has 10"),
        (sae(tokens="cls"), "trained on CLS alone"),
        (sae(tokens="embedding"), "reads pooled image embeddings of width 768"),
        (sae(hook="blocks.3.hook_mlp_out"), "reads blocks.3.hook_mlp_out; clip gives the output of a block"),
    ],
)
def test_a_sae_of_another_is_refused(config: SAEConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        understood.require_of(config, CLIP)


def test_a_sae_of_cls_will_do_for_who_asks_about_cls() -> None:
    understood.require_of(sae(tokens="cls"), CLIP, cls=True)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"tokens": "50k", "model": 3, "layer": True, "l0": "many", "hook": None}, {}),
        ({"tokens": "patches", "layer": 3, "l0": 32, "other": 1}, {"tokens": "patches", "layer": 3, "l0": 32}),
        ({"model": "x" * 500}, {"model": "x" * 200}),
    ],
)
def test_of_a_strangers_table_our_entries_are_taken_where_they_are_such(said: dict, found: dict) -> None:
    assert origin.ours(said) == found
