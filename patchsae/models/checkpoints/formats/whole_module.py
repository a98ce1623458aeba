"""A whole module that `torch.save` pickled, read as the inert objects that stand for its classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from patchsae.disk.archives import Inert
from patchsae.disk.claims import FalseClaim
from patchsae.models.checkpoints.layout import is_number

PACKAGES = ("torch.nn.modules.", "torch.nn.parallel.")  # of PyTorch's own classes
WRAPPER = "torch.nn.parallel.data_parallel.DataParallel"
MOST_MODULES = 1000


class Module(NamedTuple):
    """Attributes:

    name: dotted, of its class; "" where only a state dict was saved.
    tensors: parameters and buffers by the names of the state dict.
    modules: the modules in it by their dotted names, "" its own.
    """

    name: str
    tensors: dict[str, Tensor]
    modules: dict[str, Inert]

    @property
    def kind(self) -> str:
        """The last word of the name of its class."""
        return self.name.rpartition(".")[2]

    def said(self, module: str, attribute: str, default: Any = None) -> Any:
        """An attribute of one of its modules, of any type; ``default`` where it has none."""
        return vars(self.modules[module]).get(attribute, default) if module in self.modules else default

    def number(self, file: Path, module: str, attribute: str, default: float) -> float:
        """An attribute that is a positive number. Raises ValueError for one that is something else."""
        value = self.said(module, attribute, default)
        if not is_number(value, 0):
            raise ValueError(f"{file}: {attribute} of {module} is {str(value)[:40]}; expected a positive number")
        return float(value)

    def class_of(self, module: str) -> str:
        """The dotted name of a module's class; "" where there is no such module."""
        return type(self.modules[module]).__name__ if module in self.modules else ""


def root(content: object) -> Inert | None:
    """The module that was saved, out of a `DataParallel` around it; None for what is no module."""
    if type(content).__name__ == WRAPPER and isinstance(content, Inert):
        inside = vars(content).get("_modules")
        content = inside.get("module") if isinstance(inside, Mapping) else None
    return content if isinstance(content, Inert) else None


def walk(file: Path, module: Inert) -> Module:
    """Its tensors and modules. Raises FalseClaim for modules in modules without end."""
    tensors: dict[str, Tensor] = {}
    modules: dict[str, Inert] = {}
    todo = [("", module)]
    while todo:
        name, inside = todo.pop()
        modules[name] = inside
        if len(modules) > MOST_MODULES:
            raise FalseClaim(f"{file} claims modules in modules without end, such as {name[:60]!r}")
        before = f"{name}." if name else ""
        for kind in ("_parameters", "_buffers"):
            tensors |= {f"{before}{key}": value.detach() for key, value in _entries(inside, kind, Tensor)}
        todo += [(f"{before}{key}", value) for key, value in _entries(inside, "_modules", Inert)]
    return Module(type(module).__name__, tensors, modules)


def of_state_dict(tensors: Mapping[str, Tensor]) -> Module:
    """The same of a state dict; that of a `DataParallel` has "module." before each name."""
    wrapped = bool(tensors) and all(name.startswith("module.") for name in tensors)
    names = {name: name.removeprefix("module.") if wrapped else name for name in tensors}
    return Module("", {names[name]: value.detach() for name, value in tensors.items()}, {})


def _entries(module: Inert, kind: str, wanted: type[Any]) -> list[tuple[str, Any]]:
    entries = vars(module).get(kind)
    if not isinstance(entries, Mapping):
        return []
    return [(str(key), value) for key, value in entries.items() if isinstance(value, wanted)]
