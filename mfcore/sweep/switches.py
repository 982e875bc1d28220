"""Measure what one switch is worth: make the runs of the study with the switch flipped, among the study's own.

What flipping leaves equal is found in the store and not made again, also while others measure on the same folder.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mfcore import encoders, store
from mfcore.analysis import switches
from mfcore.analysis.switches import BASE, PAPER, derived
from mfcore.data import downloads
from mfcore.data.patches_read import DiskError
from mfcore.store import errors as store_errors
from mfcore.store.records import digest
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders
from mfcore.study.config import ConfigError, Switches
from mfcore.study.study import Study, open_study
from mfcore.training.task import TrainingError

PARTS = (encoders.EncoderError, store.StoreError, TrainingError, ValueError)  # of one arm; the other goes on


def measure(study: Study, switch: str, data: str | Path, device: str = "cpu", n_workers: int = 1) -> list[str]:
    """Make what shows a switch's effect on the arms of the study's ``effects``; returns a line for each arm that failed.

    switch: as for `switches.derived`. data: the study's data folder, read only where patches are cut or drawn anew. An arm
    that the switch doesn't touch is left out; where it touches none, nothing is made. Raises ValueError for a switch that
    there isn't, and what `study_data.extract` and `study_data.write_splits` raise.
    """
    this, problems = derived(study, switch), []
    touched = [arm for arm in switches.arms(study.settings) if not switches.why_not(study, switch, arm)]
    if touched:
        _draw(study, this, data, n_workers)
    for arm in touched:
        with _turn(this, switches.made_from(this.settings, arm)):
            try:
                _fit(this, arm, data, device)
            except PARTS as error:
                problems.append(f"{arm}: {error}")
    return problems


def _turn(study: Study, made_from: object) -> contextlib.AbstractContextManager[None]:
    """The lock on what is made from this: of several processes one makes it, the others wait and then find it."""
    return store.in_turn(study.folder / ".turns", digest(made_from))


def _draw(study: Study, this: Study, data: str | Path, n_workers: int) -> None:
    """Make patches and splits of a derived study; patches that are the study's own are looked for before data are read."""
    config = study_data.patches_config(this.settings)
    with _turn(this, config):
        is_own = config == study_data.patches_config(study.settings)
        if not (is_own and _is_there(lambda: this.patches)):
            study_data.extract(this.settings, study_data.prepare(this.settings, data, n_workers), this.folder, n_workers)
        study_data.write_splits(this.settings, this.folder)


def _fit(this: Study, arm: str, data: str | Path, device: str) -> None:
    """Train a network on every fold, or embed by an encoder and probe it."""
    if arm in this.settings.encoders:
        if not _is_there(lambda: this.embeddings(arm)):
            study_encoders.embed(this.settings, arm, this.folder, device)
        study_arms.fit_probe(this.settings, this.embeddings(arm), this.folder)
        return
    for fold in range(this.settings.splits.n_folds):
        study_arms.train(this.settings, arm, fold, this.folder, device, data_folder=data)


def _is_there(find: Callable[[], store.Run]) -> bool:
    """Whether a run is found."""
    try:
        return bool(find())
    except store.StoreError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: measure one switch of a study, and the study as it is to compare with; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.sweep.switches", description=main.__doc__)
    parser.add_argument("--study", type=Path, required=True, help="a study's YAML file")
    names = [BASE, *Switches.CHOICES, PAPER]
    parser.add_argument("--switch", required=True, choices=names, help=f'"{BASE}": none; "{PAPER}": all')
    parser.add_argument("--results", type=Path, required=True, help="the folder that holds the study's")
    parser.add_argument("--data", type=Path, help="folder of the study's data (data/ and the study's name)")
    parser.add_argument("--device", default="auto", help='"cpu", "cuda" or "auto", a GPU where there is one (auto)')
    parser.add_argument("--workers", type=int, default=1, help="threads that read slides (1)")
    chosen = parser.parse_args(arguments)
    problems = []
    try:
        study = open_study(chosen.study, chosen.results)
        if not switches.arms(study.settings):
            raise ConfigError(f"{chosen.study}: effects name neither an encoder nor a network to measure on")
        data = chosen.data or chosen.study.resolve().parent.parent / "data" / study.name
        for name in dict.fromkeys((BASE, chosen.switch)):
            problems += measure(study, name, data, chosen.device, chosen.workers)
    except (*PARTS, downloads.DownloadError, DiskError, OSError) as error:
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 1
    for row in switches.table(study, (chosen.switch,)).to_dict("records"):
        print(f"{row['arm']} ({row['kind']}): {switches.sentence(row)}")
    for problem in problems:
        print(f"mfcore: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
