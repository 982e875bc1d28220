"""The command ``mfcore``: run a study, or a part of it, and use what was trained.

    mfcore paper --study demo                 run a study and build its supplement
    mfcore predict --study S --arm A --table new.csv
    mfcore study check mine.yaml              is a study file right, and are its data there?

``mfcore COMMAND --help`` says what each takes. ``paper``, ``data`` and ``embed`` need a clone of
the repository, which has the notebooks that they run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OF_SWEEP = {
    "paper": "run a study through the notebooks and build its supplement",
    "data": "fetch what a study's data folder lacks, and say what is there",
    "embed": "make the embeddings of a study's encoders, and nothing else",
}
OF_STUDY = {
    "train": "train one network of a study on one fold",
    "pretrain": "pretrain one encoder of a study",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 where something can't be done, which is
    said.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else ""
    if name in OF_SWEEP:
        if not (ROOT / "notebooks").is_dir():
            return _say(f"mfcore {name} runs notebooks: clone the repository and call it there")
        from mfcore.sweep.__main__ import main as sweep

        return sweep(arguments)
    if name in OF_STUDY:
        from mfcore.__main__ import main as one

        return one(arguments)
    asked = _parser().parse_args(arguments)
    from mfcore.store import errors

    try:
        return asked.work(asked)
    except (
        RuntimeError,
        ValueError,
        OSError,
    ) as error:  # all of mfcore's own, which name the remedy
        return _say(errors.told(error))


def _say(problem: str) -> int:
    print(f"mfcore: {problem}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mfcore", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in (OF_SWEEP | OF_STUDY).items():
        commands.add_parser(name, help=words)
    study = argparse.ArgumentParser(add_help=False)
    study.add_argument(
        "--study",
        type=_study_file,
        required=True,
        help="a study's name in studies/, or a YAML file",
    )
    study.add_argument("--results", default="results", help="the folder of results (results)")

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
    predict.add_argument("--out", type=Path, help="CSV of scores (TABLE.scores.csv)")
    predict.add_argument("--geojson", type=Path, help="folder for a file a slide, for QuPath")
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
    check.add_argument("file", type=_study_file, help="a study's name in studies/, or a YAML file")
    check.add_argument("--data", type=Path, help="folder of its data (data/NAME beside studies/)")
    check.set_defaults(work=_check)
    return parser


def _study_file(name: str) -> Path:
    return Path(name) if name.endswith((".yaml", ".yml")) else ROOT / "studies" / f"{name}.yaml"


def _predict(asked: argparse.Namespace) -> int:
    import pandas as pd

    from mfcore import open_study, predict, store
    from mfcore.data.labels import geojson
    from mfcore.measures.binary import classify

    study = open_study(asked.study, asked.results)
    scored = predict(
        study, asked.arm, asked.table, asked.data, asked.device, asked.size, asked.workers
    )
    out = asked.out or asked.table.with_suffix(".scores.csv")
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
    import pandas as pd

    from mfcore.data import patches_read
    from mfcore.study import data, encoders, external, predictions
    from mfcore.study.config import load_study

    settings = load_study(asked.file)
    arms = [*settings.encoders, *(network.name for network in settings.networks)]
    print(f"{settings.name}: the study file is right; {len(arms)} arms: {', '.join(arms)}")
    folder = asked.data or asked.file.resolve().parent.parent / "data" / settings.name
    others = predictions.external_sets(settings)
    for name in settings.encoders:
        encoders.card_of(settings, name)
    if asked.data and not folder.is_dir():
        return _say(f"--data {folder}: no such folder")
    if settings.synthetic or not folder.is_dir():
        print(f"data: {'made by mfcore' if settings.synthetic else 'not there yet'} ({folder})")
        return 0
    labels = data.load_labels(settings, folder)
    jobs = patches_read.look(labels, folder, data.reading_of(settings), n_workers=2)
    tables = [job.rows.assign(um_per_px=job.um_per_px) for job in jobs]
    encoders.check_tolerances(settings, pd.concat(tables))
    n_positive = int(labels["label"].sum())
    print(
        f"data: {labels['file'].nunique():,} files, {labels['domain'].nunique()} domains;"
        f" {settings.data.positive}: {n_positive:,}, {settings.data.negative}:"
        f" {len(labels) - n_positive:,} ({folder})"
    )
    for name in others:
        there = external.folder_of(name, folder)
        print(f"test_on: {name} ({there}{'' if there.is_dir() else ', not there yet'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
