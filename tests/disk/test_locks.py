import os
import re
import signal
import subprocess
import sys
import time

import pytest

from patchsae.disk.locks import FolderLock, StageLocked

HOLD = """
import os, sys, time
from pathlib import Path
from patchsae.disk.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if sys.argv[2] != "0" and os.fork() == 0:  # a data worker, which outlives its parent a little
    time.sleep(float(sys.argv[2]))
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, request):
    arguments = [sys.executable, "-c", HOLD, str(tmp_path), str(getattr(request, "param", 0))]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(StageLocked, match=f"{re.escape(str(tmp_path))} is being written by process {holder.pid}"):
        FolderLock(tmp_path)
    assert time.monotonic() - began < 5  # only a dead holder's workers are worth waiting for


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("holder", [0.5], indirect=True)
def test_workers_of_a_killed_holder_are_waited_for(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    FolderLock(tmp_path).release()


def test_release_frees_the_folder_even_while_a_forked_worker_lives(tmp_path):
    lock = FolderLock(tmp_path)
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    lock.release()
    try:
        FolderLock(tmp_path).release()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_one_process_cannot_take_a_folder_twice(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(StageLocked, match=f"process {os.getpid()}"):
        FolderLock(tmp_path)
    lock.release()


def test_waiting_ends_when_the_holder_lets_go(tmp_path, holder):
    code = "import sys, pathlib, patchsae.disk.locks as l; l.FolderLock(pathlib.Path(sys.argv[1]), wait=True)"
    waiter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    time.sleep(0.5)
    assert waiter.poll() is None
    holder.kill()
    assert waiter.wait(timeout=20) == 0
