"""SAE checkpoints: which of the formats (in formats/) a path has, and the writing of one.

Here is what all formats use: what a path holds (`opened`), its tensors held against shapes (`layout`), the fold into
our weights (`fold`), what was understood (`understood`), from a path, a short name or a Hub id to a SAE (`load`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchsae.models.checkpoints.formats import known

if TYPE_CHECKING:
    from patchsae.models.checkpoints.format import Format
    from patchsae.models.checkpoints.opened import Opened
    from patchsae.models.sae import SparseAutoencoder


def open_path(path: Path) -> Opened:
    """What lies at an existing path; what pickles of any format ask for becomes inert."""
    from patchsae.models.checkpoints.opened import Opened

    stand_ins = {name: inert for format_ in known() for name, inert in format_.stand_ins.items()}
    packages = tuple(package for format_ in known() for package in format_.packages)
    return Opened(path, stand_ins, packages)


def detect(opened: Opened) -> Format:
    """The format of what was opened, by its contents.

    Raises:
        ValueError: none fits, or more than one does.
    """
    from patchsae.models.checkpoints.formats import ours

    _refuse_what_holds_no_weights(opened.path)
    if ours.is_ours(opened.path):
        return ours.FORMAT  # first: what else lies in the directory of a stage is no weights
    found = [candidate for candidate in known() if candidate.matches(opened)]
    if len(found) != 1:
        held = f"{opened.file} holds {_held(opened)}"
        which = f"which may be {' or '.join(f.name for f in found)}" if found else "which no format has"
        raise ValueError(f"{held}, {which}. Known formats: {', '.join(f.name for f in known())}")
    return found[0]


def writable() -> list[str]:
    """The names of the formats that can be written."""
    return [format_.name for format_ in known() if format_.write is not None]


def write(sae: SparseAutoencoder, directory: str | Path, to: str = "patchsae") -> None:
    """Write a SAE into a directory, made if missing, as another library reads it.

    Args:
        to: one of `writable`.

    Raises:
        ValueError: ``to`` is none of them, or cannot hold this SAE; the message says what of it.
    """
    writer = next((format_.write for format_ in known() if format_.name == to), None)
    if writer is None:
        raise ValueError(f"to={to[:60]!r}; expected one of {', '.join(writable())}")
    folder = Path(directory)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    try:
        writer(sae.config, state, folder)
    except BaseException:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def _held(opened: Opened) -> str:
    """The contents of a file of weights in a few words."""
    content: Any = opened.content
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"[:100]
    names = ", ".join(str(name)[:40] for name in list(content)[:6]) or "nothing"
    more = f" and {len(content) - 6} more" if len(content) > 6 else ""
    beside = f"; its configuration is {opened.config_file.name}" if opened.config_file else " without a configuration"
    return f"{names}{more}{beside}"


def _refuse_what_holds_no_weights(path: Path) -> None:
    """Raise ValueError for what is part of a run, or of a SAE, with what may have been meant."""
    from patchsae.models.checkpoints.formats.ours import CONFIG, WEIGHTS, is_ours

    if not path.is_dir():
        if path.name in (WEIGHTS, CONFIG) and is_ours(path.parent):
            raise ValueError(f"{path} is a part of a SAE; name its directory, {path.parent}")
    elif (path / "train" / WEIGHTS).is_file():
        raise ValueError(f"{path} is a run, whose SAE is {path / 'train'}: name that")
    elif (path / "config.toml").is_file() and not (path / WEIGHTS).is_file():
        raise ValueError(
            f"{path} is a stage of a run, which holds no SAE; expected that of `patchsae train`, when it is finished"
        )
