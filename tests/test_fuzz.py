"""Every attack for a second; `python -m tests.fuzz --minutes 60` goes on for an hour."""

import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.attacks import attacks, try_case

BUDGET = 1.0  # seconds
MOST = 40  # cases, so that a faster machine tries no others
ALL = attacks()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_second_of(name):
    end, number = time.monotonic() + BUDGET, 0
    while number < 3 or (number < MOST and time.monotonic() < end):
        try_case(name, 0, number, ALL[name])
        number += 1


@pytest.mark.slow
def test_an_attack_is_run_by_its_name_in_a_process_of_its_own(monkeypatch, capsys):
    """ "files.damaged" is the beginning of another one's name, too."""
    monkeypatch.setattr(sys, "argv", ["tests.fuzz", "--only", "files.damaged", "--minutes", "0.02"])
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    name, cases, findings = capsys.readouterr().out.splitlines()[0].split()
    assert (name, findings) == ("files.damaged", "0")
    assert int(cases) > 0
