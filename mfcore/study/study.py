"""A study and its results: one object that reads each stored table once, for notebooks, exhibits
and claims.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from mfcore import store
from mfcore.data import splits
from mfcore.encoders.card import EncoderCard
from mfcore.study import data, encoders, predictions, pretrained
from mfcore.study.config import ConfigError, Settings, load_study

PARAMETER = re.compile(r"^(\w+) *=", re.MULTILINE)  # what a cell of parameters sets


class Study:
    """What a study file says, and the folder with its runs.

    settings: the study file. folder: of its runs, figures and failures; it may not exist yet. Each
    table is read at first use and kept: open the study again to see what was made since.
    """

    def __init__(self, settings: Settings, folder: str | Path):
        self.settings, self.folder = settings, Path(folder)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The study's name, which is that of its folder."""
        return self.settings.name

    @property
    def seed(self) -> int:
        """Of splits, trainings and resampling."""
        return self.settings.splits.seed

    @property
    def figures(self) -> Path:
        """The folder that exhibits are saved in."""
        return self.folder / "figures"

    # ---- data; each raises StoreError where there is none yet ----

    @cached_property
    def patches(self) -> store.Run:
        """The run with the stored patches."""
        return data.find_patches(self.settings, self.folder)

    @cached_property
    def labels(self) -> pd.DataFrame:
        """A row a stored patch, in the order of the patches, as `mfcore.data.labels.schema`."""
        return store.read_parquet(self.patches.path("labels.parquet"))

    @cached_property
    def splits(self) -> pd.DataFrame:
        """The splits that probes learn from, as `mfcore.data.splits.make`."""
        return splits.load(data.find_splits(self.settings, self.folder))

    @property
    def audit(self) -> store.Run:
        """The finished audit of the splits."""
        return data.find_audit(self.settings, self.folder)

    def under(self, scheme: str) -> "Study":
        """The study under another way to split; raises SplitError for an unknown one."""
        settings = data.under(self.settings, scheme)
        return self if settings == self.settings else Study(settings, self.folder)

    # ---- encoders ----

    def card(self, encoder: str) -> EncoderCard:
        """The card by which the study has an encoder, as `mfcore.study.encoders.card_of`."""
        return encoders.card_of(self.settings, encoder, self.folder)

    def embeddings(self, encoder: str) -> store.Run:
        """The embeddings of the study's patches; raises StoreError where there are none."""
        return encoders.find_embeddings(self.settings, encoder, self.folder)

    def pretraining(self, name: str) -> store.Run:
        """The finished pretraining of an encoder; raises StoreError where there is none."""
        return pretrained.find(self.settings, name, self.folder)

    # ---- arms; each raises StoreError without splits, predictions also without any ----

    @cached_property
    def runs(self) -> dict[str, store.Run]:
        """The current run of each probe (by encoder) and training (``NETWORK-foldN``)."""
        return predictions.current_runs(self.settings, self.folder)

    @cached_property
    def _collected(self) -> predictions.Collected:
        return predictions.collect(self.settings, self.folder)

    @property
    def predictions(self) -> pd.DataFrame:
        """A row a tested patch of each fit, as `mfcore.study.predictions.Collected`."""
        return self._collected.predictions

    @property
    def external_predictions(self) -> pd.DataFrame:
        """A row a patch of ``test_on`` and fit, as `mfcore.study.predictions.on_external_sets`."""
        return predictions.on_external_sets(self.settings, self.folder)

    @property
    def failures(self) -> pd.DataFrame:
        """``arm, stage, reason``: a row a run that failed or is missing."""
        return self._collected.failures

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every metric of every fit, as `mfcore.study.predictions.scores`."""
        return predictions.scores(self.predictions)

    # ---- exhibits ----

    def show(self, exhibit):
        """Save an exhibit among the study's figures and return it, so that a notebook shows it."""
        return exhibit.save(self.figures)


def open_study(
    file: str | Path,
    results: str | Path = "results",
    parameters: Mapping[str, Any] | None = None,
) -> Study:
    """Open a study file with its runs below ``results``.

    parameters: the ``locals()`` of a notebook, which refuses a parameter that it doesn't know.
    Raises ConfigError for such a parameter, and where the file is wrong.
    """
    cells = (parameters or {}).get("In", [])  # as IPython keeps what it ran
    for before, given in pairwise(cells):
        if given.startswith("# Parameters"):  # papermill's cell, after the notebook's own
            known = PARAMETER.findall(before)
            if unknown := [name for name in PARAMETER.findall(given) if name not in known]:
                names = f"{', '.join(unknown)}; it has {', '.join(known)}"
                raise ConfigError(f"the notebook has no parameter {names}")
    settings = load_study(file)
    return Study(settings, Path(results) / settings.name)
