"""A notebook's kernel: over files, waited for while it lives."""

import json
import sys
import tempfile
import types
from pathlib import Path

import jupyter_client.client
import nbformat
import pytest

from mfcore.sweep import run as sweep_run

NOTEBOOK = """
# %% tags=["parameters"]
number = 1

# %%
from ipykernel.kernelapp import IPKernelApp

print(number, IPKernelApp.instance().transport, IPKernelApp.instance().connection_file)
"""

KERNEL = """
import os, sys, time
from pathlib import Path

starts = Path({starts!r})
n = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (n + 1))
if n < {n_dying}:
    print("no room for kernel", n, file=sys.stderr)
    sys.exit(1)
parent = os.getppid()
while not Path({go!r}).exists() and os.getppid() == parent:  # a killed test leaves none behind
    time.sleep(0.01)
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])
"""


@pytest.fixture
def notebook(tmp_path):
    source = tmp_path / "tiny.py"
    source.write_text(NOTEBOOK)
    return source


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Gives a function that makes the kernel python3 one that dies so often, and then begins once ``go`` is there."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    starts, go = tmp_path / "starts", tmp_path / "go"

    def make(n_dying: int) -> types.SimpleNamespace:
        (folder / "kernel.py").write_text(KERNEL.format(starts=str(starts), go=str(go), n_dying=n_dying))
        argv = [sys.executable, str(folder / "kernel.py"), "-f", "{connection_file}"]
        (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "stand-in", "language": "python"}))
        return types.SimpleNamespace(n_starts=lambda: len(starts.read_text()), go=go)

    return make


def printed(file: Path) -> list[str]:
    cells = nbformat.read(file, 4).cells
    assert sum("injected-parameters" in cell.metadata.get("tags", []) for cell in cells) <= 1
    return cells[-1].outputs[0].text.split()


def test_a_kernel_talks_over_files_of_its_own_folder(notebook, tmp_path):
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {"number": 2})
    number, transport, file = printed(tmp_path / "out.ipynb")
    assert (number, transport) == ("2", "ipc")
    assert not Path(file).parent.exists(), "its folder goes with it"
    assert Path(file).parent.parent == Path(tempfile.gettempdir())


def test_a_kernel_needs_no_home(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {})
    assert printed(tmp_path / "out.ipynb")[1] == "ipc"


def test_a_kernel_that_dies_before_the_first_cell_says_nothing_of_the_notebook(notebook, tmp_path, stand_in, capfd):
    """The job is begun again; what the kernel wrote stands where the job writes."""
    kernel = stand_in(1)
    kernel.go.touch()
    with pytest.raises(sweep_run.KilledError, match="its kernel died"):
        sweep_run.execute(notebook, tmp_path / "out.ipynb", {})
    assert "no room for kernel 0" in capfd.readouterr().err
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {"number": 3})
    assert printed(tmp_path / "out.ipynb")[0] == "3" and kernel.n_starts() == 2


def test_a_kernel_that_starts_slowly_is_waited_for(notebook, tmp_path, stand_in, monkeypatch):
    """By a clock on which an hour passes at each look, the kernel begins at the fifth."""
    kernel, looks = stand_in(0), []

    def time() -> float:
        looks.append(None)
        if len(looks) == 5:
            kernel.go.touch()
        return 3600.0 * len(looks)

    monkeypatch.setattr(jupyter_client.client, "time", types.SimpleNamespace(time=time, monotonic=time))
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {})
    assert len(looks) >= 5 and kernel.n_starts() == 1


def test_what_is_set_up_at_home_doesn_t_reach_a_notebook(notebook, tmp_path, monkeypatch):
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "own.py").write_text("import builtins; builtins.number = 7; builtins.print = lambda *_: None")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {})
    assert printed(tmp_path / "out.ipynb")[0] == "1"
