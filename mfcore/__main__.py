"""Work of a study in a process of its own: ``python -m mfcore embed --study FILE``; or train,
pretrain, measure.

With ``torchrun --nproc-per-node N -m mfcore train ...`` (or ``pretrain``) N processes, each with
its own GPU, share every batch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mfcore import store
from mfcore.store import errors as store_errors
from mfcore.study import arms, encoders, pretrain
from mfcore.study.config import Settings, load_study
from mfcore.study.study import Study


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints the folder of the run, or what a switch is worth, and returns the
    exit status.
    """
    chosen = _parser().parse_args(arguments)
    try:
        study = load_study(chosen.study)
        data = chosen.data or chosen.study.resolve().parent.parent / "data" / study.name
        if chosen.work == "measure":
            from mfcore.sweep import switches

            opened = Study(study, chosen.results / study.name)
            return switches.measure_and_tell(
                opened, chosen.switch, data, chosen.device, chosen.workers
            )
        run = (
            _embed(study, chosen) if chosen.work == "embed" else _in_processes(study, chosen, data)
        )
    except (RuntimeError, ValueError, OSError) as error:  # the bases of what stages raise
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 1
    if run is not None:
        print(run.folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mfcore", description="one piece of a study's work"
    )
    works = parser.add_subparsers(dest="work", required=True)
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--study", type=Path, required=True, help="a study's YAML file")
    every.add_argument(
        "--results", type=Path, required=True, help="the folder that holds the study's"
    )
    every.add_argument("--data", type=Path, help="the study's data (data/<study> beside studies/)")
    every.add_argument(
        "--device", default="auto", help='"cpu", "cuda:1" or "auto": a GPU if there is one'
    )
    embed = works.add_parser("embed", parents=[every], help="embed the study's patches, or a share")
    embed.add_argument("--encoder", required=True, help="an encoder's name")
    embed.add_argument("--share", type=int, help="which, from 0; none: all that is left")
    embed.add_argument("--shares", type=int, default=1, help="of how many (1)")
    embed.add_argument(
        "--batch-size", type=int, default=0, help="patches at once; 0: as the device can"
    )
    train = works.add_parser(
        "train", parents=[every], help="train one network of the study on one fold"
    )
    train.add_argument("--network", required=True, help="one of the study's networks")
    train.add_argument("--fold", type=int, required=True, help="which fold, from 0")
    own = works.add_parser("pretrain", parents=[every], help="pretrain one encoder of the study")
    own.add_argument("--encoder", required=True, help="one of the study's pretrainings")
    switch = works.add_parser("measure", parents=[every], help="measure what a switch is worth")
    switch.add_argument("--switch", required=True, help='its name; "base": none, "paper": all')
    for reads_slides in (own, switch):
        reads_slides.add_argument(
            "--workers", type=int, default=1, help="threads that read, a process (1)"
        )
    return parser


def _embed(study: Settings, chosen: argparse.Namespace) -> store.Run:
    where = study, chosen.encoder, chosen.results / study.name
    if chosen.share is None:
        return encoders.embed(*where, chosen.device, chosen.batch_size)
    return encoders.embed_share(
        *where, chosen.share, chosen.shares, chosen.device, chosen.batch_size
    )


def _in_processes(study: Settings, chosen: argparse.Namespace, data: Path) -> store.Run | None:
    """The run of a training or a pretraining, for the first of several processes; None for the
    others.
    """
    from mfcore.training import processes

    results = chosen.results / study.name
    with processes.joined(chosen.device) as device:
        if chosen.work == "train":
            run = arms.train(study, chosen.network, chosen.fold, results, device, data_folder=data)
        else:
            run = pretrain.pretrain(study, chosen.encoder, data, results, device, chosen.workers)
        return run if processes.here().is_first else None


if __name__ == "__main__":
    sys.exit(main())
