"""The command mfcore: its help, a study file checked, embeddings exported, candidates scored."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mfcore import cli

ROOT = Path(__file__).parents[1]


COMMANDS = ["paper", "data", "embed", "train", "pretrain", "measure", "predict", "export", "study"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert not ended.value.code and f"usage: mfcore {command}" in capsys.readouterr().out


def test_both_ways_to_call_it_are_one_command_line_with_one_help():
    """And the help loads neither torch nor pandas."""
    own = "import sys; from mfcore.cli import main\n"
    own += "try: main(['--help'])\nfinally: assert not {'torch', 'pandas'} & set(sys.modules)"
    calls = [["-m", "mfcore", "--help"], ["-c", own]]
    done = [subprocess.run([sys.executable, *call], capture_output=True, text=True, check=True).stdout for call in calls]
    assert done[0] == done[1] and done[0].startswith("usage: mfcore ")
    listed = [line.split()[0] for line in done[0].splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == COMMANDS


def test_options_of_snakemake_are_for_the_sweep_alone(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--study", "demo", "--network", "n", "--fold", "0", "--dry-run"])
    assert "unrecognized arguments: --dry-run" in capsys.readouterr().err


def test_embed_is_the_sweeps_unless_one_encoder_is_named(monkeypatch, tmp_path, capsys):
    from mfcore.study import encoders
    from mfcore.sweep import __main__ as sweep

    called = []
    monkeypatch.setattr(
        sweep, "_sweep", lambda study, asked, targets: called.append((targets, asked.options)) or (tmp_path, 0, set())
    )
    run = type("Run", (), {"folder": tmp_path})
    monkeypatch.setattr(encoders, "embed_share", lambda study, *how: called.append(how) or run)
    assert cli.main(["embed", "--study", "demo", "--encoders", "own_vit_untrained", "--dry-run"]) == 0
    one = ["--encoder", "own_vit_untrained", "--share", "1", "--shares", "2", "--device", "cpu", "--results", str(tmp_path)]
    assert cli.main(["embed", "--study", "demo", *one]) == 0
    assert called == [
        (["02_embed.own_vit_untrained"], ["--dry-run"]),
        ("own_vit_untrained", tmp_path / "demo", 1, 2, "cpu", 0),
    ]
    assert cli.main(["embed", "--study", "demo", "--share", "1"]) == 1
    assert "--share is of one encoder; name it by --encoder" in capsys.readouterr().err


def test_a_study_file_and_its_data_are_checked(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntitle: Mine\ndata: {source: csv}\nencoders: [resnet50]\n")
    assert cli.main(["study", "check", str(file), "--data", str(tmp_path / "none")]) == 1
    assert "none: no such folder" in capsys.readouterr().err
    assert cli.main(["study", "check", str(file)]) == 0
    assert "the study file is right; 1 arm: resnet50" in capsys.readouterr().out
    (tmp_path / "annotations.csv").write_text("file,x,y,label\na.svs,ten,2,1\n")
    assert cli.main(["study", "check", str(file), "--data", str(tmp_path)]) == 1
    assert "line 2: x is 'ten'" in capsys.readouterr().err
    file.write_text("name: mine\ntitle: Mine\ndata: {sorce: csv}\nencoders: [resnet50]\n")
    assert cli.main(["study", "check", str(file)]) == 1
    assert "did you mean source?" in capsys.readouterr().err


def test_a_check_asks_no_card_of_an_encoder_that_the_study_pretrains(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntitle: M\ndata: {source: synthetic}\nencoders: [own]\npretraining: [{name: own}]\n")
    assert cli.main(["study", "check", str(file)]) == 0, capsys.readouterr().err


def test_a_check_refuses_what_no_synthetic_slide_has(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntitle: M\ndata: {source: synthetic}\npatches: {um_per_px: 0.2}\nencoders: [resnet50]\n")
    assert cli.main(["study", "check", str(file)]) == 1
    assert "patches: um_per_px is 0.2; 5 of 5 slides are coarser" in capsys.readouterr().err
    scales = "scales: {encoders: [resnet50], patches: [{um_per_px: 0.2, size_px: [64]}, {um_per_px: 0.25, size_px: [64]}]}\n"
    file.write_text("name: mine\ntitle: M\ndata: {source: synthetic}\nencoders: [resnet50]\n" + scales)
    assert cli.main(["study", "check", str(file)]) == 1
    said = capsys.readouterr().err
    assert "scales.patches[0.2 um/px]: um_per_px is 0.2; 5 of 5 slides are coarser" in said and "[0.25" not in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encoders: [resnet51]", "resnet51"),
        ("encoders: [{name: theirs, features: ./none}]", "no features; expected a folder"),
        ("encoders: [resnet50]\ntest_on: [none.yaml]", "no such study file"),
    ],
)
def test_a_check_finds_what_a_study_names_and_is_not_there(tmp_path, capsys, line, message):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntitle: Mine\ndata: {source: csv}\n" + line + "\n")
    assert cli.main(["study", "check", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_a_check_looks_at_every_image(tmp_path, capsys):
    from PIL import Image

    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntitle: Mine\ndata: {source: images}\npatches: {um_per_px: null}\nencoders: [resnet50]\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "images.csv").write_text("file,label\na.png,0\nb.png,1\n")
    assert cli.main(["study", "check", str(file), "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "a.png: 9 x 9 px, the study stores" in said and "b.png: not an image" in said


def test_a_check_compares_the_tolerance_of_features_with_the_slides(tmp_path, capsys):
    """Slides of 0.25 um/px: a patch of 64 px at 0.5 um/px has a side of 128 px there."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    resolution = {"resolution": (4e4,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tiff", pixels, tile=(64, 64), photometric="rgb", **resolution)
    (tmp_path / "annotations.csv").write_text("file,x,y,label\na.tiff,100,100,1\na.tiff,140,100,0\n")
    np.save(tmp_path / "f.npy", np.ones((2, 3), np.float32))
    (tmp_path / "f.csv").write_text("file,x,y\na.tiff,100,100\na.tiff,140,100\n")
    file = tmp_path / "mine.yaml"
    for tolerance_px, status in ((64, 0), (65, 1)):
        file.write_text(
            "name: mine\ntitle: Mine\ndata: {source: csv}\npatches: {size_px: 64, um_per_px: 0.5}\n"
            f"encoders: [{{name: theirs, features: ./f.npy, tolerance_px: {tolerance_px}}}]\n"
        )
        cli.main(["study", "check", str(file), "--data", str(tmp_path)])  # two annotations can't be split
        said = "tolerance_px is 65; expected 0 to 64, half the side"
        assert (said in capsys.readouterr().err) == bool(status)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("splits: {by_domain: false}\n", "size 0.001"),
        ("splits: {sizes: [1.0]}\n", "cross-domain"),
        ("splits: {sizes: [1.0], by_domain: false}\n", ""),
    ],
)
def test_a_check_draws_the_splits(tmp_path, capsys, more, message):
    for name in ("a", "b"):
        for i in range(12):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    file = tmp_path / "mine.yaml"
    data = "data: {source: images, positive: a, negative: b}\npatches: {size_px: 8, um_per_px: null}\n"
    file.write_text(f"name: mine\ntitle: M\n{data}encoders: [resnet50]\n{more}")
    assert cli.main(["study", "check", str(file), "--data", str(tmp_path)]) == bool(message)
    assert message in capsys.readouterr().err


def test_a_check_matches_embeddings_made_elsewhere(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (i, i, 9)).save(tmp_path / "data" / name / f"{i}.png")
    file = tmp_path / "mine.yaml"
    data = "data: {source: images, positive: a, negative: b}\npatches: {size_px: 8, um_per_px: null}\n"
    splits = "splits: {sizes: [1.0], by_domain: false}\n"
    file.write_text(f"name: mine\ntitle: M\n{data}{splits}encoders: [{{name: theirs, features: ./f.npy}}]\n")
    np.save(tmp_path / "f.npy", np.ones((24, 3), np.float32))
    for folder, message in (
        ("a/{}.png\nb/{}.png", ""),
        ("a/{}.png\nc/{}.png", "12 of the study's 24 patches have no features"),
    ):
        (tmp_path / "f.csv").write_text("file\n" + "".join(folder.format(i, i) + "\n" for i in range(12)))
        assert cli.main(["study", "check", str(file), "--data", str(tmp_path / "data")]) == bool(message)
        assert message in capsys.readouterr().err


def test_outside_a_clone_what_runs_notebooks_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert cli.main(["paper", "--study", "demo"]) == 1
    assert "clone the repository" in capsys.readouterr().err
