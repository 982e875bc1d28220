"""What claims are asked of: each arm's scores by fold, with draws of the cases where all folds test
the same ones.
"""

from dataclasses import replace
from functools import cache, cached_property

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import MIN_FOLDS, Folds, Test, mean_of, paired_test
from mfcore.study.predictions import ALL
from mfcore.study.study import Study

DOMAIN_TITLES = {"inside": "in domain", "outside": "out of domain", "drop": "loss out of domain"}
NO_CROSS_DOMAIN = "the study has no cross-domain fits"
AT_SHARE = "balanced_accuracy_at_share"
CELL = ["arm", "train_domain", "size", "domain"]
NO_FOLDS = Folds(pd.Series(dtype=float))


class Untestable(Exception):
    """What a claim needs and a study lacks; the message is the reason in the ledger."""


class Material:
    """A study that claims are asked of."""

    def __init__(self, study: Study):
        self.study, self.settings = study, study.settings
        self.networks = {network.name: network for network in study.settings.networks}
        self.cell, self.across = cache(self._cell), cache(self._across)  # drawing cases takes long

    @cached_property
    def mixed(self) -> pd.DataFrame:
        """Scores of the fits on all domains (Fig. 1)."""
        return self.study.scores[self.study.scores["train_domain"] == ALL]

    @cached_property
    def crossed(self) -> pd.DataFrame:
        """Scores of the fits on single domains (Tab. 2, Fig. 2)."""
        return self.study.scores[self.study.scores["train_domain"] != ALL]

    @cached_property
    def sizes(self) -> list[float]:
        """The sizes that were trained at, ascending."""
        return sorted(self.mixed["size"].unique())

    @cached_property
    def scored(self) -> set[str]:
        """The arms that have scores."""
        return set(self.study.scores["arm"])

    @cached_property
    def probes(self) -> list[str]:
        """The encoders whose probes have scores, in the study's order."""
        return [name for name in self.settings.encoders if name in self.scored]

    def ways(self, arm: str) -> list[tuple[str, str]]:
        """The domains that the arm's fits on single domains were trained and tested on."""
        return [
            (train, domain)
            for name, train, _, domain in self._scores.indices
            if name == arm and train != ALL
        ]

    def missing(self, arm: str) -> str:
        """Why an encoder's probe has no scores here."""
        if arm not in self.settings.encoders:
            return "not in this study"
        return self.study.failures.set_index("arm")["reason"].get(arm, "no predictions yet")

    # ---- scores by fold ----

    def at(self, arm: str, place: str | float, metric: str = "auroc") -> Folds:
        """An arm's metric by fold at a size, in a column of Tab. 2, or its "gain" over sizes."""
        if place in DOMAIN_TITLES:
            return self.across(arm, metric)[place]
        if place == "gain":
            return self.at(arm, self.sizes[-1], metric) - self.at(arm, self.sizes[0], metric)
        if metric == AT_SHARE:
            return self.at_share(arm, place)
        return self.cell(arm, ALL, ALL, metric, place)

    def at_share(self, arm: str, size: float) -> Folds:
        """Balanced accuracy by fold where a score above the share of class 1 calls a patch class 1.

        A classifier that does not weigh the classes needs this threshold where one that weighs them
        needs 0.5.
        """
        table = self.predicted(arm, ALL, size, ALL)
        if table.empty:
            return NO_FOLDS
        called = (table["score"] > self.study.labels["label"].mean()).astype(float)
        table = table.assign(score=called)
        return by_fold(table, "balanced_accuracy", self.study.seed, ALL).defined()

    def _cell(
        self, arm: str, train_domain: str, domain: str, metric: str = "auroc", size: float = 1.0
    ) -> Folds:
        """An arm's metric by fold, trained on one domain and tested on one, or on ALL."""
        key = arm, train_domain, size, domain
        if key not in self._scores.indices:
            return NO_FOLDS
        values = self._scores.get_group(key).set_index("fold")[metric]
        return self.drawn(key, metric, values).defined()

    def _across(self, arm: str, metric: str) -> dict[str, Folds]:
        """An arm's metric by fold in each column of Tab. 2: means over domains or pairs of domains.

        Out of domain the cases of each tested domain are drawn; the domains stay as they are.
        """
        home = [way for way in self.ways(arm) if way[0] == way[1]]
        others = [way for way in self.ways(arm) if way not in home]
        cells = [[self.cell(arm, *way, metric) for way in ways] for ways in (home, others)]
        inside, outside = (mean_of(part) if part else NO_FOLDS for part in cells)
        drop = inside - outside
        return {
            "inside": inside.at(drop.values.index),
            "outside": outside.at(drop.values.index),
            "drop": drop,
        }

    def drawn(self, key: tuple, metric: str, values: pd.Series) -> Folds:
        """``values`` with draws of the tested cases where all folds are tested on the same."""
        folds = by_fold(self.predicted(*key), metric, self.study.seed, key[-1])
        return replace(folds.at(values.index), values=values)

    def predicted(self, *key: object) -> pd.DataFrame:
        """The predictions of a cell, by CELL; empty without predictions."""
        groups = self._predictions
        return groups.get_group(key) if key in groups.indices else self.study.predictions.iloc[:0]

    @cached_property
    def _scores(self) -> DataFrameGroupBy:
        return self.study.scores.groupby(CELL)

    @cached_property
    def _predictions(self) -> DataFrameGroupBy:
        table = self.study.predictions
        domain = table["domain"].mask(table["train_domain"] == ALL, ALL)
        return table.assign(domain=domain).groupby(CELL)

    # ---- tests ----

    def test(self, difference: Folds, is_crossed: bool = False) -> Test | None:
        """`statistics.paired_test` of a difference by fold; None where nothing can be tested.

        Where folds have patches of their own, the correction counts the patches that train and that
        test one fit: of fits on all domains at the largest size, or (``is_crossed``, also for a
        loss out of domain) of fits on one domain, tested in domain. Smaller training sets than the
        largest share less, so that there it is on the safe side.
        """
        difference = difference.defined()
        if len(difference) < MIN_FOLDS or not (difference.has_own_patches or difference.units):
            return None
        fits = self.mixed[self.mixed["size"] == self.mixed["size"].max()]
        if is_crossed:
            fits = self.crossed[self.crossed["domain"] == self.crossed["train_domain"]]
        return paired_test(difference, 0.0, fits["n_train"].mean(), fits["n_test"].mean())
