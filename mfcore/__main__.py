"""Work of a study in a process of its own.

``python -m mfcore embed`` (or ``train``, ``pretrain``, ``measure``) ``--study FILE --results FOLDER
...``. With ``torchrun --nproc-per-node N -m mfcore train ...`` (or ``pretrain``) N processes, each
with its own GPU, share every batch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mfcore import store
from mfcore.store import errors as store_errors
from mfcore.study import arms, encoders
from mfcore.study.config import Settings, load_study
from mfcore.study.study import Study


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints the folder of the run, or what a switch is worth."""
    from mfcore.training import processes

    chosen = _parser().parse_args(arguments)
    try:
        study = load_study(chosen.study)
        chosen.data = chosen.data or chosen.study.resolve().parents[1] / "data" / study.name
        if chosen.work is _measure:
            return _measure(study, chosen.results / study.name, chosen)
        with processes.joined(chosen.device) as chosen.device:
            run = chosen.work(study, chosen.results / study.name, chosen)
            if processes.here().is_first:
                print(run.folder)
    except (RuntimeError, ValueError, OSError) as error:  # the bases of what stages raise
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--study", type=Path, required=True, help="a study's YAML file")
    every.add_argument("--results", type=Path, required=True, help="folder that holds the study's")
    every.add_argument("--data", type=Path, help="the study's data (data/<study> beside studies/)")
    every.add_argument("--device", default="auto", help='"cpu", "cuda", "cuda:1" or "auto" (auto)')
    parser = argparse.ArgumentParser(
        prog="python -m mfcore", description="one piece of a study's work"
    )
    works = parser.add_subparsers(required=True)

    embed = works.add_parser("embed", parents=[every], help="embed the study's patches, or a share")
    embed.set_defaults(work=_embed)
    embed.add_argument("--encoder", required=True, help="an encoder's name")
    embed.add_argument("--share", type=int, help="which share, from 0; none: all that is left")
    embed.add_argument("--shares", type=int, default=1, help="of how many (1)")
    embed.add_argument("--batch-size", type=int, default=0, help="patches at once; 0: as fits (0)")

    train = works.add_parser("train", parents=[every], help="train one network on one fold")
    train.set_defaults(work=_train)
    train.add_argument("--network", required=True, help="one of the study's networks")
    train.add_argument("--fold", type=int, required=True, help="which fold, from 0")

    own = works.add_parser("pretrain", parents=[every], help="pretrain one encoder of the study")
    own.set_defaults(work=_pretrain)
    own.add_argument("--encoder", required=True, help="one of the study's pretrainings")
    switch = works.add_parser("measure", parents=[every], help="measure what a switch is worth")
    switch.set_defaults(work=_measure)
    switch.add_argument("--switch", required=True, help='its name; "base": none, "paper": all')
    for reads_slides in (own, switch):
        reads_slides.add_argument(
            "--workers", type=int, default=1, help="reading threads of each process (1)"
        )
    return parser


def _embed(study: Settings, results: Path, chosen: argparse.Namespace) -> store.Run:
    how = chosen.device, chosen.batch_size
    if chosen.share is None:
        return encoders.embed(study, chosen.encoder, results, *how)
    return encoders.embed_share(study, chosen.encoder, results, chosen.share, chosen.shares, *how)


def _train(study: Settings, results: Path, chosen: argparse.Namespace) -> store.Run:
    network, fold = chosen.network, chosen.fold
    return arms.train(study, network, fold, results, chosen.device, data_folder=chosen.data)


def _measure(study: Settings, results: Path, chosen: argparse.Namespace) -> int:
    from mfcore.sweep import switches

    opened = Study(study, results)
    return switches.measure_and_tell(
        opened, chosen.switch, chosen.data, chosen.device, chosen.workers
    )


def _pretrain(study: Settings, results: Path, chosen: argparse.Namespace) -> store.Run:
    encoder, how = chosen.encoder, (chosen.device, chosen.workers)
    return arms.pretrain(study, encoder, chosen.data, results, *how)


if __name__ == "__main__":
    sys.exit(main())
