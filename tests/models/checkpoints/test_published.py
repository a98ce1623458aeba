"""The list of published SAEs: what it says of each can be used as it is."""

from __future__ import annotations

import re

import open_clip
import pytest

from patchsae.models.checkpoints import hub
from patchsae.models.checkpoints.formats import known
from patchsae.models.checkpoints.published import NOT_SEEN, NOT_STATED, TOKENS, find, published
from patchsae.models.sae_config import SAEConfig

WIDTHS = {
    "ViT-B-16-quickgelu": (12, 768, 512),
    "ViT-B-32": (12, 768, 512),
    "ViT-L-14-quickgelu": (24, 1024, 768),
    "RN50-quickgelu": (None, None, 1024),
}
"""Blocks, width and width of the embedding of the CLIPs."""


def test_short_names_are_found_each_once_in_order() -> None:
    names = [entry.name for entry in published()]
    assert len(set(names)) == len(names) > 100
    assert all(re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", name) for name in names)
    assert [find(name) for name in names] == published()
    assert find("saev/clip-b16") is None


def test_layer_2_comes_before_layer_10() -> None:
    def padded(name: str) -> str:
        return re.sub(r"\d+", lambda digits: digits.group().zfill(3), name)

    names = [entry.name for entry in published()]
    assert names == sorted(names, key=padded)


def test_what_is_on_the_hub_has_a_place_there_and_what_is_not_says_what_to_do() -> None:
    for entry in published():
        if entry.source is None:
            assert re.search(r"https://.*: download .* and name its path$", entry.where), entry
        else:
            place = hub.parse(entry.source)
            assert place is not None
            assert entry.where == f"https://huggingface.co/{place.repository}"
    sources = [entry.source for entry in published() if entry.source]
    assert len(set(sources)) == len(sources)


def test_sizes_are_those_of_weights() -> None:
    for entry in published():
        weights = 2 * entry.d_in * entry.d_sae
        assert entry.size >= 4 * weights
        assert entry.file is not None or entry.size <= 4.1 * weights, entry
        assert entry.d_sae > entry.d_in > 0


def test_expansion_and_k_in_a_name_are_those_of_the_entry_and_its_folder() -> None:
    for entry in published():
        found = re.search(r"-(\d+)x-k(\d+)$", entry.name)
        if found:
            times, k = found.groups()
            assert entry.d_sae == int(times) * entry.d_in
            assert str(entry.source).endswith(f"/batchtopk_{times}x_k{k}")


def test_layers_in_a_name_are_those_of_the_entry_and_its_repository() -> None:
    seen = [(re.search(r"-layer(\d+)-", entry.name), entry) for entry in published()]
    assert sum(found is not None for found, _ in seen) == 60
    for found, entry in seen:
        if found:
            assert entry.layer == int(found[1])
            assert re.search(rf"[_-]{entry.layer}-(hook_)?resid_post", str(entry.source))


def test_a_clip_is_one_of_open_clip_with_the_widths_of_its_sae() -> None:
    known = set(open_clip.list_pretrained())
    of_clip = [entry for entry in published() if entry.pretrained is not None]
    assert {entry.model for entry in of_clip} == set(WIDTHS)
    for entry in of_clip:
        assert (entry.model, entry.pretrained) in known
        layers, width, embedding = WIDTHS[entry.model]
        assert entry.d_in == (embedding if entry.tokens == "embedding" else width)
        assert entry.layer is not None
        assert layers is None or -layers <= entry.layer < layers


def test_every_clip_that_open_clip_has_is_named_as_it_does() -> None:
    elsewhere = {entry.model for entry in published() if entry.pretrained is None}
    assert not elsewhere & set(open_clip.list_models())
    assert all(re.fullmatch(r"timm:\w+(\.\w+)?|[\w-]+/[\w-]+(:\w+)?", model) for model in elsewhere)


def test_what_is_said_of_the_tower_is_metadata_of_a_sae() -> None:
    for entry in published():
        config = SAEConfig(entry.d_in, entry.d_sae, metadata=entry.metadata)
        assert config.metadata["model"] == entry.model
        assert config.metadata["tokens"] in TOKENS
        assert ("layer" in config.metadata) == (entry.layer is not None)
        assert ("pretrained" in config.metadata) == (entry.pretrained is not None)


def test_what_lacks_a_block_or_a_licence_says_why() -> None:
    for entry in published():
        if entry.layer is None:
            assert f"name one as {entry.source}/layer_N/RUN" in entry.note
        if entry.licence == NOT_SEEN and entry.source is not None:
            assert "licence: its card was not seen" in entry.note
    assert {entry.licence for entry in published()} == {"Apache-2.0", "CC-BY-SA-4.0", "MIT", NOT_SEEN, NOT_STATED}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("saev/clip-b16-in1k", ("osunlp/SAE_CLIP_24K_ViT-B-16_IN1K", 10, "patches", 768, 24576, 151_096_320)),
        (
            "visaebench/clip-b16-batchtopk-32x-k64",
            ("visaebench/clip-vitb16-saes/batchtopk_32x_k64", 11, "patches", 768, 24576, 151_096_320),
        ),
        ("patchsae/clip-b16-in1k", (None, 10, "all", 768, 49152, 302_189_568)),
        (
            "overcomplete/dinov2-b14-ra-sae-32k",
            ("matybohacek/RA-SAE-DINOv2-32k", 11, "all", 768, 32000, 4_390_000_000),
        ),
    ],
)
def test_an_entry_has_what_its_authors_say(name: str, facts: tuple[object, ...]) -> None:
    entry = find(name)
    assert entry is not None
    assert (entry.source, entry.layer, entry.tokens, entry.d_in, entry.d_sae, entry.size) == facts


def test_a_format_is_one_that_opens_or_is_said_not_to() -> None:
    assert {entry.format for entry in published()} - {format_.name for format_ in known()} == {"clip-topk-sae"}
