"""The table of servers: who it names is there, who is named runs, and a call of another kind goes to the reference."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import patchsae_kernels as pk
from patchsae_kernels import cpu, reference, servers
from patchsae_kernels.calls import DecodeCall, PoolCall
from patchsae_kernels.ops import OPS
from tests.kernels.every_op import EVERY_OP, the_case

ROWS = [pytest.param(op, id=op.name) for op in OPS]


@pytest.mark.parametrize("op", ROWS)
def test_what_a_row_names_is_there(op):
    assert callable(getattr(op.reference, op.name))
    modules = {server.module for server in op.servers().values()}
    for module in map(importlib.import_module, modules):
        assert callable(module.serves)
        assert callable(getattr(module, op.name))


def test_every_row_is_called_by_the_laws_of_all_ops():
    called = set()

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Noting():
        for run in EVERY_OP.values():
            run(the_case())
    assert {f"patchsae::{op.name}" for op in OPS} <= called


@pytest.mark.skipif(not cpu.available, reason="the native extension is not installed")
def test_who_is_named_is_who_runs(monkeypatch):
    ran = set()

    def noting(name, function):
        def noted(call):
            ran.add(name)
            return function(call)

        return noted

    for op in OPS:
        if op.cpu is not None:
            monkeypatch.setattr(op.cpu, op.name, noting(op.name, getattr(op.cpu, op.name)))
    for run in EVERY_OP.values():
        run(the_case())
    assert ran == {name for name, words in pk.describe()["ops"].items() if words.startswith("native")}


def test_a_call_that_a_server_does_not_take_is_the_reference_s():
    z = [torch.ones(2, dtype=torch.float64), torch.tensor([0, 1]).int(), torch.tensor([0, 2])]
    weights = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    call = DecodeCall(*z, *weights)
    assert not cpu.decode.serves(call)
    assert torch.equal(torch.ops.patchsae.decode(*z, *weights), reference.decode(call))


def test_a_record_with_other_names_than_the_schema_is_refused():
    row = servers.Op("decode(Tensor values) -> Tensor", PoolCall, lambda call: None, reference)
    with pytest.raises(TypeError, match="decode has the arguments .* its record"):
        servers._record(row)
