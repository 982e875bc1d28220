"""The notebooks: their pairs as committed, and a tiny study run through all of them, killed and resumed on the way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
from running import HANG_S, starting, until

from mfcore import store
from mfcore.sweep import ROOT, inputs as sweep_inputs, pairs

NOTEBOOKS = ROOT / "notebooks"
MAX_BYTES = 1_500_000
MAX_CODE_LINES = 40

TINY = """
name: tiny
title: "Tiny: for testing"
data: {source: synthetic, seed: 3, n_slides: 20, n_annotations: 300}
splits: {sizes: [0.3, 1.0], n_folds: 1}
encoders: ["random:test_vit", "timm:no_such_model", own]
networks:
  - {name: tiny_end_to_end, architecture: "random:test_resnet", input_px: 32, n_epochs: 2, patches_per_epoch: 32, shift_px: 2}
pretraining:
  - &own
    name: own
    architecture: vit_tiny_patch16_224
    arguments: {img_size: 32, embed_dim: 24, num_heads: 3, depth: 1}
    patches: {size_px: 40, um_per_px: [0.25, 0.5]}
    crops: {global_px: 32, local_px: 16, n_local: 2}
    n_steps: 4
    batch_size: 4
    n_prototypes: 16
    head_hidden: 16
    head_bottleneck: 8
    n_snapshots: 2
  - {<<: *own, name: without_start, start: "timm:vit_tiny_patch16_224.no_such_weights"}
tasks:
  - {name: synthetic_tissue, encoders: [own, without_start], snapshots: true, n_runs: 2, n_steps: 20}
  - {name: synthetic_nuclei, encoders: [own], n_runs: 1, n_steps: 4, batch_size: 4}
"""


def problems(folder: Path) -> list[str]:
    """What is wrong with the committed notebooks: pairs that drifted, stale or missing outputs, errors, size, thickness."""
    found = []
    for source in pairs.sources(folder):
        target = source.with_suffix(".ipynb")
        if not target.is_file():
            found.append(f"{target.name} is missing; run `make notebooks`")
            continue
        built, written = nbformat.read(target, as_version=4), jupytext.read(source)
        code = [cell for cell in built.cells if cell.cell_type == "code"]
        of_what, _, built.cells[0].source = built.cells[0].source.partition("\n\n")
        if of_what != pairs.OF_WHAT:
            found.append(f"{target.name} doesn't begin with {pairs.OF_WHAT!r}; run `make notebooks`")
        if [(c.cell_type, c.source) for c in built.cells] != [(c.cell_type, c.source) for c in written.cells]:
            found.append(f"{target.name} and {source.name} have drifted apart; keep the right one, then run `make notebooks`")
        if built.metadata.get("mfcore", {}).get("fingerprint") != pairs.fingerprint(source):
            found.append(f"{target.name} is stale: its source, mfcore or its study changed since; run `make notebooks`")
        if any(output.output_type == "error" for cell in code for output in cell.outputs):
            found.append(f"{target.name} holds an error")
        if not any(cell.outputs for cell in code):
            found.append(f"{target.name} holds no outputs; run `make notebooks`")
        if target.stat().st_size > MAX_BYTES:
            found.append(f"{target.name} has {target.stat().st_size:,} bytes, over {MAX_BYTES:,}; show smaller figures")
        text = "\n".join(cell.source for cell in written.cells if cell.cell_type == "code")
        n_lines = sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))
        if n_lines > MAX_CODE_LINES or re.search(r"^\s*(def|class) ", text, re.MULTILINE):
            found.append(f"{source.name} has {n_lines} lines of code or defines something; that belongs in mfcore")
    return found


def test_the_committed_notebooks_are_pairs_with_fresh_outputs():
    assert problems(NOTEBOOKS) == []


def test_a_drifted_pair_a_stale_output_and_an_error_are_found(tmp_path):
    source = tmp_path / "01_a.py"
    source.write_text('# %% [markdown]\n# # A\n\n# %% tags=["parameters"]\nx = 1\n\n# %%\nprint(x)\n')
    assert problems(tmp_path) == ["01_a.ipynb is missing; run `make notebooks`"]
    pairs.build(tmp_path)
    first = source.with_suffix(".ipynb").read_bytes()
    pairs.build(tmp_path)
    assert source.with_suffix(".ipynb").read_bytes() == first, "two builds of one source differ"
    assert nbformat.reads(first, 4).cells[0].source == f"{pairs.OF_WHAT}\n\n# A"
    without = nbformat.reads(first, 4)
    without.cells[0].source = "# A"
    nbformat.write(without, source.with_suffix(".ipynb"))
    assert problems(tmp_path)[0].startswith("01_a.ipynb doesn't begin with '*The committed outputs are those of the study")
    source.with_suffix(".ipynb").write_bytes(first)
    source.write_text(source.read_text().replace("x = 1", "x = 2"))
    assert [p.split(":")[0].split(";")[0] for p in problems(tmp_path)] == [
        "01_a.ipynb and 01_a.py have drifted apart",
        "01_a.ipynb is stale",
    ]
    broken = nbformat.read(source.with_suffix(".ipynb"), 4)
    broken.cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="v", traceback=[])]
    nbformat.write(broken, source.with_suffix(".ipynb"))
    assert "01_a.ipynb holds an error" in problems(tmp_path)


def test_readme_keeps_what_a_study_found_while_its_results_are_away(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- found demo -->\nAUROC 0.9\n<!-- end -->\nafter\n")
    assert pairs.update_page(readme, tmp_path / "results", tmp_path / "figures") == []
    assert "AUROC 0.9" in readme.read_text()


def test_readme_and_docs_hold_what_the_studies_found():
    for name, page in (("amibr", "README.md"), ("demo_full", "docs/studies.md")):
        text = (ROOT / page).read_text()
        block = text.split(f"<!-- found {name} -->")[1].split("<!-- end -->")[0]
        assert "AUROC" in block and f"notebooks/figures/{name}_data_scaling.png" in block
        assert (NOTEBOOKS / "figures" / f"{name}_data_scaling.png").is_file()
        assert ("synthetic" in block) == (name == "demo_full")


def test_the_fingerprint_follows_the_imports():
    reached = {path.relative_to(ROOT / "mfcore").as_posix() for path in sweep_inputs.reached(NOTEBOOKS / "05_data_scaling.py")}
    assert {"analysis/scaling.py", "store/__init__.py", "study/study.py", "study/config.py", "measures/binary.py"} <= reached
    assert not reached & {"training/train.py", "pretraining/loop.py"}, "a change of the training loops leaves 05 as it is"
    reached = {path.relative_to(ROOT / "mfcore").as_posix() for path in sweep_inputs.reached(NOTEBOOKS / "08_pretrain.py")}
    assert {"pretraining/pretrain.py", "pretraining/objective.py", "study/config.py"} <= reached, (
        "modules of a package count too"
    )


@pytest.mark.parametrize("source", pairs.sources(NOTEBOOKS), ids=lambda path: path.stem)
def test_a_notebook_has_its_cells_in_order(source):
    cells = jupytext.read(source).cells
    assert cells[0].source.startswith("# "), "whose outputs it has is said when it is executed, not here"
    assert nbformat.read(source.with_suffix(".ipynb"), 4).cells[0].source.startswith(f"{pairs.OF_WHAT}\n\n# ")
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [1], "the title comes first, the parameters second"
    text = "\n".join(cell.source for cell in cells)
    for part in ("| reads | writes | costs", "**What we saw.**", "**Limits.**", "**Next.**", "## Checks", "files written:"):
        assert part in text, f"{source.name} lacks {part!r}"


@pytest.mark.parametrize("source", pairs.sources(NOTEBOOKS), ids=lambda path: path.stem)
def test_a_notebook_shows_no_text_in_quotes(source):
    """A text at the end of a cell is shown as Python writes it; `print` shows what it says."""
    code = [ast.parse(cell.source).body for cell in jupytext.read(source).cells if cell.cell_type == "code"]
    ends = [body[-1].value for body in code if isinstance(body[-1], ast.Expr)]
    shown = [part for end in ends for part in ([end.body, end.orelse] if isinstance(end, ast.IfExp) else [end])]
    assert not [part.value for part in shown if isinstance(part, ast.Constant)]


def _sweep(start, study, results, told=subprocess.PIPE):
    command = [sys.executable, "-m", "mfcore.sweep", "paper", "--study", str(study), "--results", str(results), "--cores", "2"]
    command += ["--data", str(results / "data")]
    return start(command, stdout=told, stderr=subprocess.STDOUT, text=True)


def test_a_tiny_study_runs_through_is_killed_and_resumed_and_a_failing_arm_is_a_row(tmp_path, started):
    """Two sweeps: the first is killed, with all its processes, while it trains and embeds; the second finishes."""
    study, folder = tmp_path / "tiny.yaml", tmp_path / "results" / "tiny"
    study.write_text(TINY)
    with (tmp_path / "first.txt").open("w") as told, starting() as start:
        first = _sweep(start, study, tmp_path / "results", told)
        until(lambda: list(folder.glob("running/0[248]_*.json")), first)
    patches_folder = next(folder.glob("patches-*"))
    before = store.file_sha256(patches_folder / "run.json")

    second = _sweep(started, study, tmp_path / "results")
    output = second.communicate(timeout=HANG_S)[0]
    assert second.returncode == 1, output  # one encoder doesn't exist
    failures = {path.stem: store.read_json(path)["reason"] for path in (folder / "failures").glob("*.json")}
    unknown = store.file_name("timm:no_such_model")
    without = {f"02_embed.{unknown}", f"03_linear_probe.{unknown}", "08_pretrain.without_start"}
    assert set(failures) == without, output
    assert "no_such_model" in failures[f"02_embed.{unknown}"]
    assert store.file_sha256(patches_folder / "run.json") == before, "finished patches were extracted again"
    for run in folder.glob("*-*/run.json"):
        store.Run(run.parent, {k: store.read_json(run)[k] for k in ("stage", "name", "config", "inputs")}).verify()
    probes_and_networks = [*folder.glob("probe-*/predictions.parquet"), *folder.glob("train-*/predictions.parquet")]
    predictions = pd.concat([pd.read_parquet(path) for path in probes_and_networks])
    assert predictions["score"].between(0, 1).all()
    assert len(predictions.groupby(["train_domain", "fold", "size"])) == 2 + 5
    index = folder / "supplement" / "index.html"
    page = index.read_text()
    assert str(index) in output
    assert "synthetic" in page and "no_such_model" in page
    judged = sorted(path.parent.name.split("-")[1] for path in folder.glob("judge-*/run.json"))
    assert judged == ["synthetic_tissue.own", "synthetic_tissue.own_2"], "its two snapshots, the last of which it is"
    runs = folder / "supplement" / "runs"
    pretraining, tasks = ((runs / f"{name}.html").read_text() for name in ("08_pretrain", "09_downstream_tasks"))
    assert "no_such_weights" in pretraining and "synthetic_nuclei" in tasks and "synthetic data" in pretraining
    for notebook in sorted((folder / "notebooks").glob("*.ipynb")):
        assert len([*(folder / "supplement").glob(f"*/{notebook.stem}.html")]) == 1, notebook.stem
