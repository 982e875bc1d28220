"""Do embeddings lie by biology or by where slides were made? RI and CRoMa of every encoder."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis.encoders.representations import SECTION, files
from mfcore.analysis.exhibit import Exhibit, of_what
from mfcore.measures import robustness as measured
from mfcore.streams import generator
from mfcore.study.study import Study

BIOLOGY = {"class": "label", "tumour": "domain"}
ORIGINS = {"scanner": "scanner", "laboratory": "lab"}
N_MEASURED = 4000  # patches at most, drawn once for all encoders; all pairs are compared
N_NEIGHBOURS = 11
COLUMNS = ["encoder", "biology", "origin", "ri", "croma", "croma_tail", "n", "n_with_margin"]


def table(study: Study) -> pd.DataFrame:
    """A row an encoder, biology and origin: COLUMNS; see `mfcore.measures.robustness`.

    No row for an origin that no two biologies share, or a biology of a single origin: then no
    neighbour tells which of them counts. Patches of unknown origin are left out.
    """
    labels, rows = study.labels.set_index("patch_id"), []
    order = generator(study.seed, "robustness").permutation(labels.index)
    for encoder, file in files(study).items():
        features, patch_ids = store.read_embeddings(store.run_at(file.parent))
        row_of = pd.Series(np.arange(len(patch_ids)), index=patch_ids)
        for biology, origin in _pairs(labels):
            known = labels.index[labels[ORIGINS[origin]] != ""]
            drawn = labels.loc[order[np.isin(order, known)][:N_MEASURED]]
            columns = BIOLOGY[biology], ORIGINS[origin], "case_id"
            nearest = measured.neighbours(
                features[row_of.loc[drawn.index].to_numpy()],
                *(drawn[name].to_numpy() for name in columns),
                N_NEIGHBOURS,
            )
            values = nearest.robustness_index, nearest.croma, nearest.croma_tail
            n_defined = int(np.isfinite(nearest.margins).sum())
            rows.append((encoder, biology, origin, *values, len(drawn), n_defined))
    return pd.DataFrame(rows, columns=COLUMNS)


def _pairs(labels: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The pairs of biology and origin that vary independently in the labels: some origin has two
    biologies, and some biology two origins.
    """
    for (biology, column), (origin, place) in product(BIOLOGY.items(), ORIGINS.items()):
        known = labels[labels[place] != ""]
        counts = known[[column, place]].drop_duplicates()
        if counts[column].duplicated().any() and counts[place].duplicated().any():
            yield biology, origin


def exhibit(study: Study) -> Exhibit:
    """RI and CRoMa of every encoder of the study."""
    rows = table(study)
    caption = (
        "Of each patch's nearest neighbours in other cases: the robustness index (RI) is the share"
        " of those of its biology and another origin, among these and the reverse, of"
        f" {N_NEIGHBOURS} neighbours (1: only biology counts); CRoMa is the median margin between"
        " the distances to both kinds (above 0: biology counts for more), its tail the mean of the"
        f" lowest tenth ({of_what(study.settings)})."
    )
    if rows.empty:
        caption = (
            "Neither scanners nor laboratories are known that two classes or two tumours share, so "
            f"RI and CRoMa can't be measured ({of_what(study.settings)})."
        )
    return Exhibit("10_robustness", "Robustness", caption, rows, None, SECTION)
