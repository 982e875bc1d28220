"""Work of a study in a process of its own.

``python -m mfcore embed`` (or ``train``, ``pretrain``) ``--study FILE --results FOLDER ...``. With
``torchrun --nproc-per-node N -m mfcore train ...`` (or ``pretrain``) N processes, each with its own
GPU, share every batch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mfcore import store
from mfcore.data.labels.schema import LabelError
from mfcore.encoders import EncoderError
from mfcore.store import errors as store_errors
from mfcore.study import arms, encoders, pretrain
from mfcore.study.config import Settings, load_study


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints the folder of the run, and returns the exit status."""
    from mfcore.pretraining.objective import PretrainingError
    from mfcore.pretraining.slides import PatchingError
    from mfcore.training import processes
    from mfcore.training.task import TrainingError

    chosen = _parser().parse_args(arguments)
    try:
        study = load_study(chosen.study)
        chosen.data = chosen.data or chosen.study.resolve().parents[1] / "data" / study.name
        with processes.joined(chosen.device) as chosen.device:
            run = chosen.work(study, chosen.results / study.name, chosen)
            if processes.here().is_first:
                print(run.folder)
    except (
        EncoderError,
        LabelError,
        PatchingError,
        PretrainingError,
        TrainingError,
        store.StoreError,
        ValueError,  # ConfigError and PatchError, too
        OSError,
    ) as error:
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
    own.add_argument("--workers", type=int, default=1, help="reading threads of each process (1)")
    return parser


def _embed(study: Settings, results: Path, chosen: argparse.Namespace) -> store.Run:
    how = chosen.device, chosen.batch_size
    if chosen.share is None:
        return encoders.embed(study, chosen.encoder, results, *how)
    return encoders.embed_share(study, chosen.encoder, results, chosen.share, chosen.shares, *how)


def _train(study: Settings, results: Path, chosen: argparse.Namespace) -> store.Run:
    network, fold = chosen.network, chosen.fold
    return arms.train(study, network, fold, results, chosen.device, data_folder=chosen.data)


def _pretrain(study: Settings, results: Path, chosen: argparse.Namespace) -> store.Run:
    encoder, how = chosen.encoder, (chosen.device, chosen.workers)
    return pretrain.pretrain(study, encoder, chosen.data, results, *how)


if __name__ == "__main__":
    sys.exit(main())
