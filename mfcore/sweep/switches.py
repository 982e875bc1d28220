"""Measure what a switch or a scale is worth: make the runs of the study with the switch flipped, or
at the scale.

What flipping leaves equal is found in the store and not made again, also while others measure on
the same folder.
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from mfcore import store
from mfcore.analysis import switches
from mfcore.analysis.encoders import scales
from mfcore.analysis.switches import BASE, derived
from mfcore.store.records import digest
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders
from mfcore.study.config import ConfigError
from mfcore.study.predictions import arms_of
from mfcore.study.study import Study

REFUSALS = (RuntimeError, ValueError)  # the bases of what stages raise of an arm; others go on


def measure(
    study: Study, switch: str, data: str | Path, device: str = "cpu", n_workers: int = 1
) -> list[str]:
    """Make what shows a switch's effect on the study's arms; returns a line for each that failed.

    switch: as for `switches.derived`, of a scale too. data: the study's data folder, read only
    where patches are cut or drawn anew, and for a scale. An arm that the switch doesn't touch is
    left out; where it touches none, nothing is made. Raises ValueError for a switch that there
    isn't and for a scale that the slides don't have, and what `study_data.extract` and
    `study_data.write_splits` raise.
    """
    this, problems = derived(study, switch), []
    arms = [arm.name for arm in arms_of(this.settings).values() if not arm.method]
    touched = [arm for arm in arms if not switches.why_not(study, switch, arm)]
    if switch in study_data.at_scales(study.settings):
        folder = study_data.prepare(study.settings, data, n_workers)
        study_data.looked_at(study.settings, folder, n_workers)
    if touched:
        _draw(study, this, data, n_workers)
    for arm in touched:
        with _turn(this, switches.made_from(this.settings, arm)):
            try:
                _fit(this, arm, data, device)
            except REFUSALS as error:
                problems.append(f"{arm}: {error}")
    return problems


def _turn(study: Study, made_from: object) -> contextlib.AbstractContextManager[None]:
    """The lock on what is made from this: of several processes one makes it, the others find it."""
    return store.in_turn(study.folder / ".turns", digest(made_from))


def _draw(study: Study, this: Study, data: str | Path, n_workers: int) -> None:
    """Make patches and splits of a derived study; its data are read only for patches of its own."""
    config = study_data.patches_config(this.settings)
    with _turn(this, config):
        is_own = config == study_data.patches_config(study.settings)
        if not (is_own and _is_there(lambda: this.patches)):
            folder = study_data.prepare(this.settings, data, n_workers)
            study_data.extract(this.settings, folder, this.folder, n_workers)
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


def measure_and_tell(
    study: Study, switch: str, data: str | Path, device: str, n_workers: int
) -> int:
    """Measure a scale, or a switch and the study as it is; prints what it is worth, returns the
    exit status.
    """
    is_scale = switch in study_data.at_scales(study.settings)
    if not (is_scale or switches.arms(study.settings)):
        raise ConfigError(f"study {study.name}: effects name neither an encoder nor a network")
    problems = []
    for name in [switch] if is_scale else dict.fromkeys((BASE, switch)):
        problems += measure(study, name, data, device, n_workers)
    table = scales.table(study, switch) if is_scale else switches.table(study, (switch,))
    for row in table.to_dict("records"):
        print(f"{row['arm']} ({row['kind']}): {switches.sentence(row)}")
    for problem in problems:
        print(f"mfcore: {problem}", file=sys.stderr)
    return int(bool(problems))
