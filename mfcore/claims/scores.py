"""What claims are asked of: a study's scores by fold, with draws of the tested cases where all folds test the same ones."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import MIN_FOLDS, Folds, Test, mean_of, paired_test
from mfcore.study import predictions as study_predictions
from mfcore.study.config import Network, Settings
from mfcore.study.study import Study

MIXED, INSIDE = "mixed", "inside"  # what fits are trained on: all domains together, or one
DOMAIN_TITLES = {"inside": "in domain", "outside": "out of domain", "drop": "loss out of domain"}
NO_CROSS_DOMAIN = "the study has no cross-domain fits"
AT_SHARE = "balanced_accuracy_at_share"
_KEY = ["arm", "train_domain", "size", "domain"]


class Untestable(Exception):
    """What a claim needs and a study lacks; the message is the reason in the ledger."""


@dataclass(frozen=True)
class Material:
    """What claims are asked of: a study, its `study_predictions.scores`, and its results folder, each file read once."""

    study: Settings
    scores: pd.DataFrame
    results: Path

    @cached_property
    def labels(self) -> pd.DataFrame:
        """The study's stored label table; raises Untestable where patches have not been extracted."""
        try:
            return Study(self.study, self.results).labels
        except store.StoreError as error:
            raise Untestable("patches have not been extracted, so there is no label table") from error

    @cached_property
    def splits(self) -> pd.DataFrame:
        """The splits that the study's probes learn from; raises Untestable where there are none."""
        try:
            return Study(self.study, self.results).splits
        except store.StoreError as error:
            raise Untestable("no splits in the results") from error

    @cached_property
    def collected(self) -> study_predictions.Collected | None:
        """The study's predictions and failures, None where there are none."""
        try:
            return study_predictions.collect(self.study, self.results)
        except store.StoreError:
            return None

    @cached_property
    def runs(self) -> dict[str, store.Run]:
        """The study's current runs of probes and trainings by name; empty without splits."""
        try:
            return study_predictions.current_runs(self.study, self.results)
        except store.StoreError:
            return {}

    @cached_property
    def mixed(self) -> pd.DataFrame:
        """Scores of the fits on all domains (Fig. 1)."""
        return self.scores[self.scores["train_domain"] == study_predictions.ALL]

    @cached_property
    def crossed(self) -> pd.DataFrame:
        """Scores of the fits on single domains (Tab. 2, Fig. 2)."""
        return self.scores[self.scores["train_domain"] != study_predictions.ALL]

    @cached_property
    def sizes(self) -> list[float]:
        """The sizes that were trained at, ascending."""
        return sorted(self.mixed["size"].unique())

    @cached_property
    def arms(self) -> list[str]:
        """The arms that have scores, in the study's order."""
        present = set(self.scores["arm"])
        return [name for name in (*(n.name for n in self.study.networks), *self.study.encoders) if name in present]

    def at(self, arm: str, place: str | float, metric: str = "auroc") -> Folds:
        """One arm's metric by fold at a size, in a column of Tab. 2 (DOMAIN_TITLES), or its "gain" from the smallest size."""
        if place in DOMAIN_TITLES:
            return self.across(arm, metric)[place]
        if place == "gain":
            return self.folds(arm, self.sizes[-1], metric) - self.folds(arm, self.sizes[0], metric)
        return self.at_share(arm, place) if metric == AT_SHARE else self.folds(arm, place, metric)

    def predicted(self, arm: str, size: float) -> pd.DataFrame:
        """One arm's predictions, trained and tested on all domains at one size; empty without predictions."""
        if self.collected is None:
            return pd.DataFrame(columns=["fold", "label", "score"])
        table = self.collected.predictions
        return table[(table["arm"] == arm) & (table["size"] == size) & (table["train_domain"] == study_predictions.ALL)]

    def at_share(self, arm: str, size: float) -> Folds:
        """Balanced accuracy by fold where a score above the share of class 1 calls a patch class 1.

        A classifier that does not weigh the classes needs this threshold where one that weighs them needs 0.5.
        """
        share = self.labels["label"].mean()
        table = self.predicted(arm, size)
        if table.empty:
            return Folds(pd.Series(dtype=float))
        called = (table["score"] > share).astype(float)
        return by_fold(table.assign(score=called), "balanced_accuracy", self.study.splits.seed, study_predictions.ALL).defined()

    def folds(self, arm: str, size: float, metric: str = "auroc") -> Folds:
        """One arm's metric at one size by fold, trained and tested on all domains."""
        return self.cell(arm, study_predictions.ALL, study_predictions.ALL, metric, size)

    def across(self, arm: str, metric: str = "auroc") -> dict[str, Folds]:
        """One arm's metric by fold, ``inside``, ``outside`` and ``drop``: the means over domains, or pairs of them (Tab. 2).

        What is drawn, out of domain, are the cases of each tested domain: domains and pairs are those that there are.
        """
        if (arm, metric) not in self._columns:
            self._columns[arm, metric] = self._across(arm, metric)
        return self._columns[arm, metric]

    def _across(self, arm: str, metric: str) -> dict[str, Folds]:
        ways = self.crossed.loc[self.crossed["arm"] == arm, ["train_domain", "domain"]].drop_duplicates()
        own = ways["train_domain"] == ways["domain"]
        cells = [[self.cell(arm, *way, metric) for way in part.itertuples(index=False)] for part in (ways[own], ways[~own])]
        inside, outside = (mean_of(part) if part else Folds(pd.Series(dtype=float)) for part in cells)
        drop = inside - outside
        return {"inside": inside.at(drop.values.index), "outside": outside.at(drop.values.index), "drop": drop}

    def cell(self, arm: str, train_domain: str, domain: str, metric: str = "auroc", size: float = 1.0) -> Folds:
        """One arm's metric by fold, trained on one domain and tested on one, or on all (`study_predictions.ALL`)."""
        key = arm, train_domain, size, domain
        if (key, metric) not in self._cells:
            rows = self._rows.get(key)
            values = pd.Series(dtype=float) if rows is None else self.scores.iloc[rows].set_index("fold")[metric]
            self._cells[key, metric] = self._drawn(key, metric, values).defined()
        return self._cells[key, metric]

    def _drawn(self, key: tuple, metric: str, values: pd.Series) -> Folds:
        """``values`` with draws of the tested cases where all folds are tested on the same, as the predictions show."""
        rows = self._predicted.get(key)
        if rows is None or self.collected is None:
            return Folds(values, has_own_patches=key[3] in (study_predictions.ALL, key[1]))
        predictions = self.collected.predictions.iloc[rows]
        return replace(by_fold(predictions, metric, self.study.splits.seed, key[3]).at(values.index), values=values)

    @cached_property
    def _cells(self) -> dict[tuple, Folds]:
        return {}

    @cached_property
    def _columns(self) -> dict[tuple, dict[str, Folds]]:
        return {}

    @cached_property
    def _rows(self) -> dict[tuple, np.ndarray]:
        return self.scores.groupby(_KEY, sort=False).indices if len(self.scores) else {}

    @cached_property
    def _predicted(self) -> dict[tuple, np.ndarray]:
        if self.collected is None:
            return {}
        table = self.collected.predictions[_KEY]
        is_mixed = table["train_domain"] == study_predictions.ALL
        return table.assign(domain=table["domain"].mask(is_mixed, study_predictions.ALL)).groupby(_KEY, sort=False).indices

    def test(self, first: Folds | pd.Series, second: Folds | pd.Series | float, tested: str = MIXED) -> Test | None:
        """The paired test over the folds that both have (`statistics.paired_test`); None where nothing can be tested.

        tested: MIXED or INSIDE, whose patches the correction counts where folds have their own (`overlap`). Smaller training
        sets than the largest share less, so that there it is on the safe side.
        """
        first, second = (Folds(of) if isinstance(of, pd.Series) else of for of in (first, second))
        difference = (first - second).defined()
        if len(difference) < MIN_FOLDS or not (difference.has_own_patches or difference.units):
            return None
        return paired_test(difference, 0.0, *self.overlap(tested))

    def overlap(self, tested: str = MIXED) -> tuple[float, float]:
        """Patches that train and that test one fit, means: of fits on all domains at the largest size, else of single ones.

        Of these the tests in domain count, where each fold has patches of its own; also for a loss out of domain. Without
        such fits the shares of a fold.
        """
        rows = self.mixed if tested == MIXED else self.crossed
        if len(rows):
            rows = rows[rows["size"] == self.sizes[-1]] if tested == MIXED else rows[rows["domain"] == rows["train_domain"]]
        if rows.empty:
            share = self.study.splits.test_fraction
            return (1 - share) * (1 - self.study.splits.val_fraction), share
        return float(rows["n_train"].mean()), float(rows["n_test"].mean())

    def network(self, name: str) -> Network | None:
        """The network of an arm, None for a probe's."""
        return next((network for network in self.study.networks if network.name == name), None)

    def missing(self, arm: str) -> str:
        """Why an encoder's probe has no scores here."""
        if arm not in self.study.encoders:
            return "not in this study"
        failures = self.collected.failures if self.collected else None
        rows = failures[failures["arm"] == arm] if failures is not None else ()
        return str(rows["reason"].iloc[0]) if len(rows) else "no predictions yet"
