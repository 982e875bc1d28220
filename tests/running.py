"""What tests wait for and start: by what happens, not by time; nothing that a test started outlives it."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HANG_S = 6 * 3600.0  # no condition: only so that a test which would wait for ever fails one day, on a crowded machine too
MARK = "MFCORE_STARTED_BY_A_TEST"


def until(happened: Callable[[], Any], process: subprocess.Popen | None = None) -> Any:
    """Wait until ``happened`` gives something true, and give it; fails where ``process`` ends first."""
    guard = time.monotonic() + HANG_S
    while not (found := happened()):
        if process is not None and process.poll() is not None and not (found := happened()):
            raise AssertionError(f"the process ended first, with status {process.returncode}")
        assert found or time.monotonic() < guard, "it never happened"
        if found:
            break
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def starting() -> Iterator[Callable[..., subprocess.Popen]]:
    """Gives `subprocess.Popen` for processes that end, with all that they start, where the context does.

    Each leads a session of its own; what left that, as kernels do, is told by a mark in its environment (on Linux).
    """
    mark, processes = f"{MARK}={uuid.uuid4().hex}", []

    def start(command: list[str], env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen:
        marked = {**(os.environ if env is None else env), MARK: mark.partition("=")[2]}
        processes.append(subprocess.Popen(command, env=marked, start_new_session=True, **more))
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            _kill(os.killpg, process.pid)
        while left := [pid for pid in marked_by(mark) if _kill(os.kill, pid)]:
            for pid in left:
                until(lambda pid=pid: pid not in marked_by(mark))
        for process in processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


def marked_by(*variables: str) -> list[int]:
    """The processes that have all of ``variables`` ("NAME=value") in their environment; none where there is no /proc."""
    wanted, found = {variable.encode() for variable in variables}, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                found.append(int(process.name))
    return found


def _kill(how: Callable[[int, int], None], which: int) -> bool:
    try:
        how(which, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
