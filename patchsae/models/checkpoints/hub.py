"""Checkpoints from the Hugging Face Hub: ``owner/name``, ``owner/name/folder/or/file``, either with ``@revision``.

A repository may hold many SAEs. What is fetched is one: weights and configurations of one folder, or one file of
weights and the configurations beside it; nothing of the folders below. The files lie in the cache of huggingface_hub,
where other SAEs of the repository may lie in folders below the path that is returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from patchsae.disk.atomic import write_text
from patchsae.disk.paths import OutsidePath, below, is_below
from patchsae.errors import brief

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
CONFIGURATIONS = (".json", ".yaml", ".yml")
MOST_CONFIGURATION = 2**24  # bytes; what is larger configures nothing
MOST_WEIGHTS = 4  # files in a folder of one SAE
MOST_ENTRIES = 100_000  # read of the Hub's answer
SHOWN = 8  # folders in a message

_ID = re.compile(r"(?P<repository>\w[\w.-]*/[\w.-]+)(?:/(?P<inside>[^@\\]+))?(?:@(?P<revision>\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """A place on the Hub.

    Attributes:
        repository: ``owner/name``.
        inside: a folder or a file in it, "" for its root.
        revision: a branch, a tag or a commit.
    """

    repository: str
    inside: str = ""
    revision: str = "main"


class _NoAnswer(Exception):
    """The Hub said nothing of the place, so that what is in the cache may serve."""


def parse(source: str) -> HubId | None:
    """The place that ``source`` names; None if it cannot be a Hub id."""
    found = _ID.fullmatch(source.rstrip("/"))
    if found is None or not source.isprintable():
        return None
    parts = [*source.partition("@")[0].rstrip("/").split("/"), *(found["revision"] or "main").split("/")]
    if any(part in ("", ".", "..") for part in parts):
        return None
    return HubId(found["repository"], found["inside"] or "", found["revision"] or "main")


def fetch(source: str) -> Path:
    """Download the SAE that ``source`` names, as far as it is not here yet, and return its local directory or file.

    Without an answer from the Hub, weights that are in the cache serve.

    Raises:
        FileNotFoundError: ``source`` cannot be a Hub id, the Hub does not have it or does not give it out, its folder
            holds no weights or too many, or there is no network and nothing in the cache. One line says what to do.
        ImportError: huggingface_hub is not installed.
        OutsidePath: the Hub lists a file that lies elsewhere.
    """
    place = parse(source)
    if place is None:
        raise FileNotFoundError(f"{source[:300]} does not exist, and is no Hugging Face Hub id (owner/name)")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{source} does not exist here; to load it from the Hugging Face Hub: pip install 'patchsae[hub]'"
        ) from error
    try:
        return _from_the_hub(place)
    except _NoAnswer as error:
        kept = _in_the_cache(place)
        if kept is not None and _has_weights(kept):
            return kept
        lacks = f"; what was fetched of {_on_the_hub(place)} has no {place.inside or 'weights'}" if kept else ""
        raise FileNotFoundError(
            f"{source} does not exist here, and could not be had from the Hugging Face Hub: {error}{lacks}"
        ) from error


def _from_the_hub(place: HubId) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    with _asking(place):
        commit = str(api.model_info(place.repository, revision=place.revision).sha)
    if not _COMMIT.fullmatch(commit):  # it becomes the name of a folder
        raise _NoAnswer(f"it calls the commit of {place.revision} {commit[:60]!r}; expected 40 hexadecimal digits")
    names = _of_one_sae(api, place, commit)
    with _asking(place):
        files = [Path(hf_hub_download(place.repository, name, revision=commit)) for name in names]
    root = files[0].parents[names[0].count("/")]
    if place.revision != commit:
        _remember(root, place.revision, commit)
    return root / place.inside


def _remember(root: Path, revision: str, commit: str) -> None:
    """Which commit a branch or tag is, where huggingface_hub looks it up without network; after all files are there."""
    reference = below(root.parent.parent / "refs", revision, "the revision")
    with suppress(OSError):  # a cache that several share may be read-only
        if not reference.is_file() or reference.read_text() != commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, commit)


def _in_the_cache(place: HubId) -> Path | None:
    """Where the place would lie, if anything of its revision was ever fetched."""
    from huggingface_hub import snapshot_download

    repository, revision = place.repository, place.revision
    try:  # no pattern: which files there ought to be is not known here
        root = snapshot_download(repository, revision=revision, allow_patterns=[], local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(root) / place.inside


def _has_weights(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(file.suffix in WEIGHTS for file in path.iterdir()))


def _of_one_sae(api: HfApi, place: HubId, commit: str) -> list[str]:
    """Which files to download: configurations first, so that a folder with weights is whole."""
    named = PurePosixPath(place.inside)
    folder = named.parent if named.suffix in WEIGHTS else named
    sizes = {path: size for path, size in _listed(api, place, commit, folder).items() if path.parent == folder}
    weights = sorted(str(path) for path in sizes if path.suffix in WEIGHTS and (folder == named or path == named))
    if not weights and folder != named:
        raise FileNotFoundError(f"{_on_the_hub(place)} has no {named}")
    if not weights:
        raise FileNotFoundError(_without_weights(api, place, commit, folder))
    if len(weights) > MOST_WEIGHTS:
        raise FileNotFoundError(
            f"{_on_the_hub(place)} has {len(weights)} files of weights in {_words(folder)}, "
            f"more than one SAE has: name one, such as {place.repository}/{weights[0][:200]}"
        )
    small = [path for path, size in sizes.items() if path.suffix in CONFIGURATIONS and size <= MOST_CONFIGURATION]
    return sorted(map(str, small)) + weights


def _listed(
    api: HfApi, place: HubId, commit: str, folder: PurePosixPath, recursive: bool = False
) -> dict[PurePosixPath, int]:
    """Files and their sizes in bytes, in ``folder`` (and below). OutsidePath for one that lies outside of it."""
    from huggingface_hub.hf_api import RepoFile

    inside = None if folder == PurePosixPath() else str(folder)
    with _asking(place):
        tree = islice(api.list_repo_tree(place.repository, inside, revision=commit, recursive=recursive), MOST_ENTRIES)
        files = {PurePosixPath(entry.path): entry for entry in tree if isinstance(entry, RepoFile)}
        sizes = {path: int(file.size) for path, file in files.items()}
    for path, file in files.items():
        text = file.path
        if not (is_below(text) and path.is_relative_to(folder) and text.isprintable()) or "\\" in text:
            raise OutsidePath(
                f"{_on_the_hub(place)} lists the file {text[:200]!r} in {_words(folder)}; expected a path below it"
            )
    return sizes


def _without_weights(api: HfApi, place: HubId, commit: str, folder: PurePosixPath) -> str:
    """What to say of a folder without weights: which ones below it have some."""
    found = _listed(api, place, commit, folder, recursive=True)
    folders = sorted({str(path.parent) for path in found if path.suffix in WEIGHTS})
    none = f"{_on_the_hub(place)} has no weights ({', '.join(WEIGHTS)}) in {_words(folder)}"
    if not folders:
        return f"{none}, nor in folders below: expected the repository of a SAE"
    more = f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else ""
    shown = ", ".join(name[:100] for name in folders[:SHOWN])
    return f"{none}; folders that have some are {shown}{more}: name one, such as {place.repository}/{folders[0][:100]}"


def _words(folder: PurePosixPath) -> str:
    return "its root" if folder == PurePosixPath() else str(folder)


def _on_the_hub(place: HubId) -> str:
    return f"{place.repository} on the Hugging Face Hub"


@contextmanager
def _asking(place: HubId) -> Iterator[None]:
    """What huggingface_hub raises, as FileNotFoundError with what to do, or _NoAnswer where the cache may serve."""
    from huggingface_hub import constants, errors

    there = f"{constants.ENDPOINT}/{place.repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"{_on_the_hub(place)} is gated: ask for access at {there}, then log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{_on_the_hub(place)} has no revision {place.revision}: {there} lists its branches, tags and commits"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{place.repository} does not exist here, and the Hugging Face Hub has no such repository or shows it to "
            "its members only: look at the name, or log in with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # a file that is listed, and the network is gone
        raise _NoAnswer(_reason(error)) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{_on_the_hub(place)} has no {place.inside}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, *errors.HfHubHTTPError.__bases__) as error:
        # Its HTTP client's failures have no root that two versions of huggingface_hub share but that of its own errors;
        # what is no answer of the Hub at all, a proxy's page, is a ValueError or a wrong type.
        raise _NoAnswer(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The first line of what a library says, and what to do."""
    said = brief(error).strip().partition("\n")[0] or type(error).__name__
    return f"{said} ({type(error).__name__}); try again with a network, or name a path to where it was downloaded"
