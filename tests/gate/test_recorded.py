"""What kernels used when somebody looked: a rise of more than a tenth is refused, and says how to record anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.gate import broken_kernels, races, recorded, shipped
from tests.gate.arguments import Call, meta
from tests.gate.cases import Case, cases
from tests.gate.compiling import Resources, resources
from tests.gate.parts import PARTS


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path) -> tuple[Case, Resources]:
    """A case that was recorded with 50 registers and 1,000 bytes."""
    (case,) = cases(PARTS[0], [Call("in place", broken_kernels.in_place, (meta(1024),))])
    used = replace(resources(case), registers=50, shared=1000)
    monkeypatch.setattr(recorded, "FILE", tmp_path / "recorded" / "triton.json")
    recorded.recorded.cache_clear()
    recorded.write([(case, used)])
    yield case, used
    recorded.recorded.cache_clear()


@pytest.mark.parametrize(("registers", "shared"), [(50, 1000), (55, 1100), (10, 0)])
def test_what_was_recorded_passes(known: tuple[Case, Resources], registers: int, shared: int) -> None:
    case, used = known
    assert recorded.complaints(case, replace(used, registers=registers, shared=shared)) == []


def test_a_rise_is_refused(known: tuple[Case, Resources]) -> None:
    case, used = known
    (reason,) = recorded.complaints(case, replace(used, registers=56))
    assert "56 registers, recorded were 50" in reason
    assert "python -m tests.gate --record" in reason
    (reason,) = recorded.complaints(case, replace(used, shared=1101))
    assert "1101 bytes of shared memory, recorded were 1000" in reason


def test_a_rise_that_another_compilation_does_not_show_is_chance(known: tuple[Case, Resources], monkeypatch) -> None:
    case, used = known
    risen = replace(used, registers=56)
    assert recorded.refusals(case, risen, at_the_papers_shape=True) == []
    monkeypatch.setattr(recorded, "_again", lambda _case: risen)
    assert len(recorded.refusals(case, risen, at_the_papers_shape=True)) == 1
    assert recorded.refusals(case, risen, at_the_papers_shape=False) == []


def test_other_barriers_than_listed_are_refused_at_the_papers_shape(known: tuple[Case, Resources], monkeypatch) -> None:
    case, used = known
    fewer = replace(used, read_back=1)
    monkeypatch.setitem(races.READ_BACK, case.name, 2)
    monkeypatch.setattr(recorded, "_again", lambda _case: fewer)
    assert recorded.refusals(case, fewer, at_the_papers_shape=False) == []
    (reason,) = recorded.refusals(case, fewer, at_the_papers_shape=True)
    assert "READ_BACK has 2" in reason


def test_another_configuration_is_held_to_the_largest(known: tuple[Case, Resources]) -> None:
    case, used = known
    other = replace(case, configuration="another")
    assert recorded.complaints(other, replace(used, registers=55)) == []
    assert "recorded were 50" in recorded.complaints(other, replace(used, registers=56))[0]


def test_a_kernel_without_a_record_is_refused(known: tuple[Case, Resources]) -> None:
    case, used = known
    (reason,) = recorded.complaints(replace(case, part=PARTS[1]), used)
    assert "no record" in reason


def test_a_version_without_a_file_is_held_to_nothing(known: tuple[Case, Resources]) -> None:
    case, used = known
    recorded.FILE.unlink()
    recorded.recorded.cache_clear()
    assert recorded.complaints(case, replace(used, registers=255)) == []


def test_records_are_of_kernels_that_there_are() -> None:
    names = {name.split(".")[-1] for name in shipped.shipped()}
    assert {place.split()[0] for place in recorded.recorded() or {}} <= names
