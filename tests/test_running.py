"""What tests start ends with them, whatever it started itself, and whether they pass or fail."""

import subprocess
import sys
from pathlib import Path

import pytest
from running import MARK, marked_by, starting, until

SPAWNS = """
import subprocess, sys
child = "print(flush=True); import threading; threading.Event().wait()"
apart = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
apart.stdout.readline()
print(apart.pid, flush=True)
apart.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process of another session is told by /proc")
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_test_started_ends_with_it(fails):
    with pytest.raises(KeyboardInterrupt), starting() as start:
        first = start([sys.executable, "-c", SPAWNS], stdout=subprocess.PIPE)
        apart = int(first.stdout.readline())
        variables = [v for v in Path(f"/proc/{apart}/environ").read_text().split("\0") if v.startswith(MARK)]
        assert sorted(marked_by(*variables)) == sorted([first.pid, apart])
        if not fails:
            first.kill()
            first.wait()
        raise KeyboardInterrupt
    assert marked_by(*variables) == []


def test_a_process_that_ends_before_what_is_waited_for_fails_the_test():
    with starting() as start, pytest.raises(AssertionError, match="ended first, with status 3"):
        until(lambda: False, start([sys.executable, "-c", "raise SystemExit(3)"]))
