"""Measuring what one switch is worth: patches, splits, embedding, probe and network of the study with that switch flipped.

What flipping leaves equal is found in the store and not made again, also while others measure on the same folder; what a
kill leaves is gone on with.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mfcore import encoders, store
from mfcore.analysis import compare_effects, effects
from mfcore.analysis.effects import BASE, PAPER, derived
from mfcore.data import downloads
from mfcore.data.patches_read import DiskError
from mfcore.store import errors as store_errors
from mfcore.store.records import digest
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders
from mfcore.study.config import ConfigError, Settings, Switches, as_dict, load_study
from mfcore.training.task import TrainingError

__all__ = ["SwitchError", "derived", "main", "measure"]

PARTS = (encoders.EncoderError, store.StoreError, TrainingError, ValueError)  # of one arm; the other goes on


class SwitchError(RuntimeError):
    """Some arms couldn't be measured; ``problems`` gives each one's reason, the message all. What could be is kept."""

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


def measure(
    study: Settings, switch: str, data: str | Path, results: str | Path, device: str = "cpu", n_workers: int = 1
) -> None:
    """Make what shows a switch's effect on the arms of ``study.effects``, and a record of it for `compare_effects`.

    switch: as for `effects.derived`. data: the study's data folder, looked into only where patches are read. results:
    the study's own folder. An arm that the switch doesn't touch is left out; where it touches none, nothing is made. Raises
    ValueError for a switch that there isn't, SwitchError where an arm fails, when the other is done, and what
    `study_data.extract` and `study_data.write_splits` raise.
    """
    results, this = Path(results), derived(study, switch)
    own = _patches(derived(study, BASE), data, results, n_workers) if effects.arms(study) else None
    touched = _touched(study, switch, own)
    if not touched:
        return
    source = _patches(this, data, results, n_workers, own)
    configs = (study_data.splits_config(this, networks) for networks in (False, True))
    with _turn(results, "splits", source.key, *configs):
        drawn = {
            "splits": study_data.write_splits(this, results),
            "network_splits": study_data.find_splits(this, results, networks=True),
        }
    made = {"patches": source.key, **{name: run.key for name, run in drawn.items()}}
    problems = []
    for arm in touched:
        try:
            made |= (
                _network(this, arm.name, data, results, device, made)
                if arm.is_network
                else _probe(this, arm.name, results, device, made)
            )
        except PARTS as error:
            problems.append(f"{arm.name}: {error}")
    name, config = effects.record_name(switch), effects.config_of(study, switch)
    with _turn(results, "effect", name, config, made):
        run = store.open_run(results, "effect", name, config, made)
        if not run.done:
            run.finish([])
    if problems:
        raise SwitchError(*problems)


def _touched(study: Settings, switch: str, own: store.Run | None) -> list[effects.Arm]:
    """The arms that the switch can change, as far as the study and its patches tell."""
    arms = [arm for arm in effects.arms(study) if not effects.why_not(study, switch, arm)]
    return [] if own is None or effects.reach(study, switch, own).is_nothing else arms


def _turn(results: Path, stage: str, *content: object) -> contextlib.AbstractContextManager[None]:
    """The turn of whoever makes this, so that of several at once one does, and the others find it."""
    return store.in_turn(results / ".turns", f"{stage}-{digest(content)}")


def _found(find: Callable[[], store.Run]) -> store.Run | None:
    try:
        return find()
    except store.StoreError:
        return None


def _patches(this: Settings, data: str | Path, results: Path, n_workers: int, own: store.Run | None = None) -> store.Run:
    """The patches of a derived study, of the same data as the study's own; these are the data's at ``data`` where none are."""
    config = study_data.patches_config(this)
    with _turn(results, "patches", config):
        if own is not None:
            inputs = own.identity["inputs"]
            if _found(lambda: store.find_run(results, "patches", this.name, config, inputs)):
                return store.open_run(results, "patches", this.name, config, inputs)
        elif found := _found(lambda: study_data.find_patches(this, results)):
            return found
        return study_data.extract(this, study_data.prepare(this, data, n_workers), results, n_workers)


def _probe(this: Settings, encoder: str, results: Path, device: str, made: dict[str, str]) -> dict[str, str]:
    """Keys of the encoder's embeddings and of its probe."""
    config = study_encoders.embeddings_config(this, encoder, results)
    with _turn(results, "embeddings", encoder, config, made["patches"]):
        found = _found(lambda: study_encoders.find_embeddings(this, encoder, results))
        embeddings = found or study_encoders.embed(this, encoder, results, device)
    with _turn(results, "probe", encoder, as_dict(this.probe), made["splits"], embeddings.key):
        fitted = study_arms.fit_probe(this, embeddings, results)
    return {"embeddings": embeddings.key, "probe": fitted.key}


def _network(this: Settings, name: str, data: str | Path, results: Path, device: str, made: dict[str, str]) -> dict[str, str]:
    """Keys of the network's trainings, a fold each."""
    keys = {}
    for fold in range(this.splits.n_folds):
        config = study_arms.training_config(this, this.network(name), fold)
        with _turn(results, "train", name, config, made["patches"], made["network_splits"]):
            keys[f"train-fold{fold}"] = study_arms.train(this, name, fold, results, device, data_folder=data).key
    return keys


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: measure one switch of a study, and the study as it is to compare with; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.sweep.switches", description=main.__doc__)
    parser.add_argument("--study", type=Path, required=True, help="a study's YAML file")
    names = [effects.record_name(BASE), *Switches.CHOICES, PAPER]
    parser.add_argument("--switch", required=True, choices=names, help=f'"{names[0]}": none; "{PAPER}": all')
    parser.add_argument("--results", type=Path, required=True, help="the folder that holds the study's")
    parser.add_argument("--data", type=Path, help="folder of the study's data (data/ and the study's name)")
    parser.add_argument("--device", default="auto", help='"cpu", "cuda" or "auto", a GPU where there is one (auto)')
    parser.add_argument("--workers", type=int, default=1, help="threads that read slides (1)")
    chosen = parser.parse_args(arguments)
    switch = BASE if chosen.switch == names[0] else chosen.switch
    problems = []
    try:
        study = load_study(chosen.study)
        if not effects.arms(study):
            raise ConfigError(f"{chosen.study}: effects name neither an encoder nor a network to measure on")
        data = chosen.data or chosen.study.resolve().parent.parent / "data" / study.name
        for one in dict.fromkeys((BASE, switch)):
            try:
                measure(study, one, data, chosen.results / study.name, chosen.device, chosen.workers)
            except SwitchError as error:
                problems += error.problems
    except (*PARTS, downloads.DownloadError, DiskError, OSError) as error:
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 1
    for row in compare_effects.rows_of(study, switch, chosen.results / study.name):
        print(compare_effects.said(row))
    for problem in problems:
        print(f"mfcore: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
