"""The command ``mfcore``: run a study, or a part of it, and use what was trained.

    mfcore paper --study demo                 run a study and build its supplement
    mfcore predict --study S --arm A --table new.csv
    mfcore study check mine.yaml              is a study file right, and are its data there?

``mfcore COMMAND --help`` says what each takes; ``python -m mfcore`` is the same. ``paper``,
``data`` and ``embed`` need a clone of the repository, which has the notebooks that they run; not
so ``embed --encoder``. With ``torchrun --nproc-per-node N -m mfcore train`` (or ``pretrain``) N
processes, each with its own GPU, share every batch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfcore.sweep import COMMANDS, ROOT, study_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfcore.data.options import Data
    from mfcore.store import Run
    from mfcore.study.config import Settings

DEVICES = '"cpu", "cuda", "cuda:1" or "auto" (auto)'


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 where something can't be done, which is
    said. Options that it doesn't know are Snakemake's, where a sweep runs.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(arguments[0] if arguments else "")
    asked, options = parser.parse_known_args(arguments)
    is_sweep = asked.command in COMMANDS and getattr(asked, "encoder", None) is None
    if options and not (is_sweep and asked.hands_on):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    asked.options = options
    if is_sweep and not (ROOT / "notebooks").is_dir():
        return _say(
            f"mfcore {asked.command} runs notebooks: clone the repository and call it there"
        )
    from mfcore.store import errors

    try:
        return asked.work(asked)
    except (RuntimeError, ValueError, OSError) as error:  # mfcore's own name the remedy
        return _say(errors.told(error))
    except KeyboardInterrupt:
        _say("stopped")
        return 130  # as a shell has it


def _say(problem: str) -> int:
    print(f"mfcore: {problem}", file=sys.stderr)
    return 1


def _parser(name: str) -> argparse.ArgumentParser:
    """The parser; the sweep's commands have their options only where ``name`` is one of them."""
    parser = argparse.ArgumentParser(prog="mfcore", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    if name in COMMANDS:
        from mfcore.sweep.__main__ import add_commands

        add_commands(commands)
        _add_one_encoder(commands.choices["embed"])
    else:
        for command, words in COMMANDS.items():
            commands.add_parser(command, help=words)
    study = argparse.ArgumentParser(add_help=False)
    study.add_argument(
        "--study",
        type=study_file,
        required=True,
        help="a study's name in studies/, or a YAML file",
    )
    study.add_argument("--results", default="results", help="the folder of results (results)")
    _add_pieces(commands, study)
    _add_uses(commands, study)
    return parser


def _add_one_encoder(embed: argparse.ArgumentParser) -> None:
    one = embed.add_argument_group("one encoder, in this process, without the sweep")
    one.add_argument("--encoder", help="an encoder's name")
    one.add_argument("--share", type=int, help="which of --shares, from 0; none: all that is left")
    one.add_argument("--batch-size", type=int, default=0, help="patches at once; 0: as fits (0)")
    one.add_argument("--device", default="auto", help=DEVICES)
    embed.set_defaults(work=_embed)


def _add_pieces(commands: "argparse._SubParsersAction", study: argparse.ArgumentParser) -> None:
    """The commands that do one piece of a study's work, in a process of its own."""
    piece = argparse.ArgumentParser(add_help=False, parents=[study])
    piece.add_argument("--data", type=Path, help="the study's data (data/NAME beside studies/)")
    piece.add_argument("--device", default="auto", help=DEVICES)
    train = commands.add_parser("train", parents=[piece], help="train one network on one fold")
    train.add_argument("--network", required=True, help="one of the study's networks")
    train.add_argument("--fold", type=int, required=True, help="which fold, from 0")
    train.set_defaults(work=_train)
    words = "pretrain one encoder of a study"
    pretrain = commands.add_parser("pretrain", parents=[piece], help=words)
    pretrain.add_argument("--encoder", required=True, help="one of the study's pretrainings")
    pretrain.set_defaults(work=_pretrain)
    words = "measure what a switch or a scale is worth"
    measure = commands.add_parser("measure", parents=[piece], help=words)
    words = 'its name; "base": no switch, "paper": all; a scale: such as 64px_0.25um'
    measure.add_argument("--switch", "--scale", required=True, help=words)
    measure.set_defaults(work=_measure)
    for reads_slides in (pretrain, measure):
        reads_slides.add_argument(
            "--workers", type=int, default=1, help="reading threads of each process (1)"
        )


def _add_uses(commands: "argparse._SubParsersAction", study: argparse.ArgumentParser) -> None:
    """The commands that use what a study made, and the one that checks its file."""
    predict = commands.add_parser(
        "predict", parents=[study], help="score unlabelled candidates by what a study trained"
    )
    predict.add_argument(
        "--arm", required=True, help="an encoder (its probe) or a network of the study"
    )
    predict.add_argument(
        "--table", type=Path, required=True, help="CSV: file, and x, y in level-0 px on slides"
    )
    predict.add_argument("--data", type=Path, help="folder of slides or images (the table's)")
    predict.add_argument(
        "--out",
        type=Path,
        help="CSV of scores (RESULTS/STUDY/scores/TABLE.ARM.csv); not where labels of a study lie",
    )
    predict.add_argument(
        "--geojson",
        type=Path,
        help="folder for a file a slide, for QuPath; not where labels of a study lie",
    )
    predict.add_argument("--size", type=float, help="training set's size (the study's largest)")
    predict.add_argument("--device", default="auto", help='"cpu", "cuda" or "auto" (auto)')
    predict.add_argument("--workers", type=int, default=1, help="threads that read slides (1)")
    predict.set_defaults(work=_predict)

    export = commands.add_parser(
        "export", parents=[study], help="write a study's embeddings as other tools read them"
    )
    export.add_argument("--encoder", required=True, help="one of the study's encoders")
    export.add_argument("--layout", required=True, help="trident, clam or eva")
    export.add_argument("--out", type=Path, required=True, help="the folder to write into")
    export.set_defaults(work=_export)

    of_study = commands.add_parser("study", help="check a study file")
    verbs = of_study.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser("check", help="is a study file right, and are its data there?")
    check.add_argument("file", type=study_file, help="a study's name in studies/, or a YAML file")
    check.add_argument("--data", type=Path, help="folder of its data (data/NAME beside studies/)")
    check.set_defaults(work=_check)


def _piece(asked: argparse.Namespace, work: "Callable[[Settings, Path], Run]") -> int:
    """Do a piece of a study's work, alone or as one of torchrun's processes; prints its folder."""
    from mfcore.study import config, data
    from mfcore.training import processes

    study = config.load_study(asked.study)
    asked.data = data.data_folder(study, asked.study, asked.data)
    with processes.joined(asked.device) as asked.device:
        run = work(study, Path(asked.results) / study.name)
        if processes.here().is_first:
            print(run.folder)
    return 0


def _embed(asked: argparse.Namespace) -> int:
    if asked.encoder is None:
        from mfcore.sweep.__main__ import embed

        if asked.share is not None:
            raise ValueError("--share is of one encoder; name it by --encoder")
        return embed(asked)
    from mfcore.study import encoders

    how = asked.device, asked.batch_size
    if asked.share is None:
        return _piece(asked, lambda s, folder: encoders.embed(s, asked.encoder, folder, *how))
    share = asked.share, asked.shares
    return _piece(
        asked, lambda s, folder: encoders.embed_share(s, asked.encoder, folder, *share, *how)
    )


def _train(asked: argparse.Namespace) -> int:
    from mfcore.study import arms

    of = asked.network, asked.fold
    return _piece(
        asked, lambda s, folder: arms.train(s, *of, folder, asked.device, data_folder=asked.data)
    )


def _pretrain(asked: argparse.Namespace) -> int:
    from mfcore.study import arms

    return _piece(
        asked,
        lambda s, folder: arms.pretrain(
            s, asked.encoder, asked.data, folder, asked.device, asked.workers
        ),
    )


def _measure(asked: argparse.Namespace) -> int:
    from mfcore import open_study
    from mfcore.study import data
    from mfcore.sweep import switches

    study = open_study(asked.study, asked.results)
    folder = data.data_folder(study.settings, asked.study, asked.data)
    return switches.measure_and_tell(study, asked.switch, folder, asked.device, asked.workers)


def _predict(asked: argparse.Namespace) -> int:
    import pandas as pd

    from mfcore import open_study, predict, store
    from mfcore.data.labels import geojson
    from mfcore.measures.binary import classify

    study = open_study(asked.study, asked.results)
    size = "" if asked.size is None else f".{asked.size:g}"
    key = store.file_sha256(asked.table)[:8] if asked.table.is_file() else ""
    name = f"{asked.table.stem}-{key}.{store.file_name(asked.arm)}{size}.csv"
    out = asked.out or study.folder / "scores" / name
    for option in ("out", "geojson"):
        _refuse_among_labels(option, asked, study.settings.data)
    scored = predict(
        study, asked.arm, asked.table, asked.data, asked.device, asked.size, asked.workers
    )
    store.write_csv(out, scored.table)
    print("\n".join([*scored.sentences, str(out)]))
    if asked.geojson:
        if not study.settings.source.has_slides:
            raise ValueError("--geojson places candidates on slides; these are patch images")
        asked.geojson.mkdir(parents=True, exist_ok=True)
        table = scored.table.assign(
            label=classify(scored.table["score"]),
            x_l0_px=scored.table["x"].astype(float),
            y_l0_px=scored.table["y"].astype(float),
        )
        names = study.settings.data.negative, study.settings.data.positive
        slides = pd.Series(table["file"].unique())
        file_names = slides.map(lambda file: Path(file).name)
        if alike := slides[file_names.duplicated(keep=False)].tolist():
            raise ValueError(f"--geojson: slides of one name: {alike[:4]}; score each on its own")
        for file, rows in table.groupby("file"):
            target = asked.geojson / f"{Path(str(file)).name}.geojson"
            geojson.write(rows, target, names, ("score", "score_sd"))
        print(f"{table['file'].nunique()} files for QuPath in {asked.geojson}")
    return 0


def _refuse_among_labels(option: str, asked: argparse.Namespace, data: "Data") -> None:
    """Raise ValueError where an option names a place among a study's labels, to be read as some."""
    from mfcore.data.labels.source import SOURCES

    path = getattr(asked, option)
    if path is None:
        return
    folder, table = (path.parent if option == "out" else path).resolve(), asked.table.resolve()
    names = [name for one in SOURCES.values() for name in one.main_files if name[0] != "*"]
    if folder in (table.parent, (asked.data or table.parent).resolve()):
        names += [*SOURCES[data.source].main_files, *data.written]
    labels = {file for name in names for file in folder.glob(name)} - {table}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as before:
            labels -= {path.resolve()} if "score_sd" in before.readline() else set()
    if labels or asked.study.resolve().parents[1] / "data" in folder.parents:
        raise ValueError(
            f"--{option} {path}: the labels of a study lie in {folder}, where scores would be read"
            " as labels, or replace some; name another folder"
        )


def _export(asked: argparse.Namespace) -> int:
    from mfcore import open_study
    from mfcore.encoders import features
    from mfcore.study import data

    study = open_study(asked.study, asked.results)
    placing = data.placing_of(study.settings)
    run = study.embeddings(asked.encoder)
    files = features.export(run, study.labels, asked.out, asked.layout, placing)
    print(f"{len(files):,} files in {asked.out}")
    return 0


def _check(asked: argparse.Namespace) -> int:
    from mfcore.data.synthetic import domains
    from mfcore.study import data, encoders, external, predictions, pretrained
    from mfcore.study.config import load_study

    settings = load_study(asked.file)
    arms = list(predictions.arms_of(settings))
    n = f"{len(arms)} arm{'s' * (len(arms) != 1)}"
    print(f"{settings.name}: the study file is right; {n}: {', '.join(arms)}")
    folder = data.data_folder(settings, asked.file, asked.data)
    others = predictions.external_sets(settings)
    for name in settings.encoders:
        if not pretrained.is_of(settings, name):  # which has no card yet
            encoders.card_of(settings, name)
    if asked.data and not folder.is_dir():
        return _say(f"--data {folder}: no such folder")
    if settings.synthetic:
        data.refuse_enlarged(settings, domains.scanned())
    if settings.synthetic or not folder.is_dir():
        print(f"data: {'made by mfcore' if settings.synthetic else 'not there yet'} ({folder})")
        return 0
    labels = data.looked_at(settings, folder, n_workers=2)
    n_positive = int(labels["label"].sum())
    print(
        f"data: {labels['file'].nunique():,} files, {labels['domain'].nunique()} domains;"
        f" {settings.data.positive}: {n_positive:,}, {settings.data.negative}:"
        f" {len(labels) - n_positive:,} ({folder})"
    )
    if left_out := labels.attrs.get("left_out"):
        print(f"data.slides leaves out: {left_out['n_slides']:,} slides")
    encoders.check_features(settings, labels)
    data.check_splits(settings, labels)
    for name in others:
        there = external.folder_of(name, folder)
        print(f"test_on: {name} ({there}{'' if there.is_dir() else ', not there yet'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
