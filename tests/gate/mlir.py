"""A kernel in Triton's IR: its operations, what stands around each, and which arguments a pointer was made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend


class Module:
    """An IR file, parsed by Triton.

    Attributes:
        operations: in the order of the text, but what has a body comes after it.
    """

    def __init__(self, path: Path, target: GPUTarget) -> None:
        self._context = ir.context()
        ir.load_dialects(self._context)
        make_backend(target).load_dialects(self._context)
        self._module = ir.parse_mlir_module(str(path), self._context)
        self.operations: list[Any] = []
        self._module.walk(self.operations.append)
        self.operations.pop()  # the module itself
        self._blocks = {op.get_block().get_parent().id(): op.get_block() for op in self.operations}
        self._owners = {
            op.get_region(i).id(): place
            for place, op in enumerate(self.operations)
            for i in range(op.get_num_regions())
        }
        self._numbers: dict[int, int] = {}
        self._sources: dict[int, list[Any]] = defaultdict(list)
        for place in range(len(self.operations)):
            self._follow(place)

    def around(self, place: int, names: Collection[str]) -> Iterator[int]:
        """Places of the operations with these names around the one at ``place``, from the inside."""
        owner = self._owner(place)
        while owner is not None:
            if self.operations[owner].get_name() in names:
                yield owner
            owner = self._owner(owner)

    def arguments(self, op: Any) -> frozenset[int]:
        """Numbers of the kernel's arguments that the pointers among the operands of ``op`` were made from."""
        waiting, seen = operands(op), set()
        while waiting:
            value = waiting.pop()
            if is_pointer(value) and value.id() not in seen:
                seen.add(value.id())
                waiting += self._sources[value.id()]
        return frozenset(self._numbers[id] for id in seen & self._numbers.keys())

    def _owner(self, place: int) -> int | None:
        return self._owners.get(self.operations[place].get_block().get_parent().id())

    def _follow(self, place: int) -> None:
        """Note what the results of one operation, and the values inside it that it sets, are made from."""
        op = self.operations[place]
        name, owner = op.get_name(), self._owner(place)
        if name == "tt.func":
            self._numbers = {value.id(): i for i, value in enumerate(self._entry(op, 0))}
        elif name == "scf.for":  # bounds and step, then what it carries
            self._join(operands(op)[3:], self._entry(op, 0)[1:], results(op))
        elif name == "scf.while":
            self._join(operands(op), self._entry(op, 0))
        elif name == "scf.condition" and owner is not None:
            around = self.operations[owner]
            self._join(operands(op)[1:], self._entry(around, 1), results(around))
        elif name == "scf.yield" and owner is not None:
            around = self.operations[owner]
            into = {"scf.for": self._entry(around, 0)[1:], "scf.while": self._entry(around, 0)}
            again = into.get(around.get_name(), [])
            self._join(operands(op), again, [] if around.get_name() == "scf.while" else results(around))
        else:
            for result in results(op):
                self._sources[result.id()] += operands(op)

    def _entry(self, op: Any, region: int) -> list[Any]:
        """Values that a body of ``op`` starts with."""
        block = self._blocks[op.get_region(region).id()]
        return [block.get_argument(i) for i in range(block.get_num_arguments())]

    def _join(self, values: list[Any], *targets: list[Any]) -> None:
        for target in targets:
            for value, made in zip(values, target, strict=False):
                self._sources[made.id()].append(value)


def operands(op: Any) -> list[Any]:
    return [op.get_operand(i) for i in range(op.get_num_operands())]


def results(op: Any) -> list[Any]:
    return [op.get_result(i) for i in range(op.get_num_results())]


def is_pointer(value: Any) -> bool:
    """A pointer, a tensor of them, or a descriptor of memory."""
    kind = str(value.get_type())
    return "!tt.ptr" in kind or "tensordesc" in kind
