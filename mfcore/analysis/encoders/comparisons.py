"""Which pretrainings of a study are compared, and by how much their scores differ.

A comparison is found from the configs: pretrainings equal in all but one thing. Pretrainings that
differ in their seed alone are one way to pretrain, and are compared over seeds.
"""

import json

import pandas as pd

from mfcore.analysis.encoders import pretraining_run
from mfcore.measures.statistics import MIN_FOLDS, Folds, Test, paired_test, unpaired_test
from mfcore.study import pretrained
from mfcore.study.config import Pretraining, Settings, as_dict
from mfcore.study.pretrained import METHODS, in_full

# What the paper varies, one thing at a time, with the figure or table of kaiko 2024 that shows it
VARIED = {
    "start": "What training starts from (kaiko 2024, Fig. 1)",
    "patches.slide_fraction": "Share of the slides (kaiko 2024, Fig. 2, left)",
    "patches.n_distinct": "Number of distinct patches (kaiko 2024, Fig. 2, right)",
    "patches.um_per_px": "Magnifications, one or several",
    "method": "DINO or DINOv2 (kaiko 2024, Fig. 4)",
}
NO_DIFFERENCE = ("name", "seed", "n_snapshots")  # a training's name, its draws, what is kept of it
SCORES = ["name", "task", "metric", "split", "step", "mean", "sd", "n_runs"]
COMPARED = ["varied", "base", "value", "way", *SCORES]
PANEL = ["varied", "base", "task", "metric"]


def comparisons(settings: Settings, *varied: str) -> pd.DataFrame:
    """All that the study's pretrainings allow of some keys of VARIED, of all where none is named.

    A row a pretraining of a comparison: ``varied, base, name, value``. Those of a comparison are
    equal in all but ``varied``, and ``base`` is the first of them in the study; several may have
    the same ``value`` (`value_of`): other draws, or another learning rate of a method. Methods are
    compared where all is equal that isn't the method's own: learning rate, schedules, losses,
    crops' scales.
    """
    rows = [
        (key, _but_for(one, key), one.name, value_of(one, key))
        for key in varied or VARIED
        for one in settings.pretraining
    ]
    table = pd.DataFrame(rows, columns=["varied", "base", "name", "value"], dtype=object)
    groups = table.groupby(["varied", "base"], sort=False)
    order = groups.ngroup()[groups["value"].transform("nunique") > 1].sort_values(kind="stable")
    table = table.assign(base=groups["name"].transform("first"))
    return table.loc[order.index].reset_index(drop=True)


def _but_for(one: Pretraining, key: str) -> str:
    """All that decides a pretraining, as text, without ``key`` and what only names or keeps it."""
    left_out = {*NO_DIFFERENCE, key}
    if key == "method":  # a head of another size is no method's own
        left_out |= METHODS["dino"].published.keys() - {"n_prototypes"}
        left_out |= {"crops.global_scale", "crops.local_scale"}
    content = pretraining_run.flattened(as_dict(in_full(one)))
    return json.dumps({k: v for k, v in content.items() if k not in left_out}, sort_keys=True)


def value_of(one: Pretraining, key: str) -> str:
    """What a pretraining has for ``key``, a key of VARIED, in words."""
    patches, n = one.patches, one.patches.n_distinct
    return {
        "start": "random" if one.start == "random" else f"from {one.start}",
        "patches.slide_fraction": f"{100 * patches.slide_fraction:g} % of slides",
        "patches.n_distinct": "every patch new" if n is None else f"{n:,} patches",
        "patches.um_per_px": f"{', '.join(f'{value:g}' for value in patches.um_per_px)} µm/px",
        "method": METHODS[one.method].title,
    }[key]


def compared(settings: Settings, table: pd.DataFrame, *varied: str) -> pd.DataFrame:
    """Rows of scores by pretraining (SCORES) of all comparisons of some keys of VARIED: COMPARED.

    ``way``: the first of the pretrainings that differ from a row's in their seed alone. Of tasks
    that judged two ways of a comparison or more: one alone is compared with nothing.
    """
    rows = comparisons(settings, *varied).merge(table, on="name")
    rows["way"] = rows["name"].map(pretrained.first_seeds(settings))
    n_ways = rows.groupby(PANEL)["way"].transform("nunique")
    return rows.loc[n_ways > 1, COMPARED].reset_index(drop=True)


def last(settings: Settings, table: pd.DataFrame) -> pd.DataFrame:
    """Of `compared`, each pretraining after its last step, on each task, by each metric.

    One that was judged at earlier steps alone has no row.
    """
    n_steps = {one.name: one.n_steps for one in settings.pretraining}
    return table[table["step"] == table["name"].map(n_steps)].reset_index(drop=True)


# ---- over seeds ----


def by_way(table: pd.DataFrame) -> pd.DataFrame:
    """Of `compared`, pretrainings that differ in their seed alone as one, by their first's name.

    Columns COMPARED, with the mean over seeds of ``mean`` and ``sd``, and ``low, high, n_seeds``:
    the lowest and the highest seed. Of a single seed, ``low`` and ``high`` are the mean less and
    more ``sd``, which is over heads.
    """
    keys = ["varied", "base", "value", "way", "task", "metric", "split", "step"]
    ways = table.groupby(keys, sort=False, dropna=False, as_index=False).agg(
        mean=("mean", "mean"),
        sd=("sd", "mean"),
        n_runs=("n_runs", "max"),
        low=("mean", "min"),
        high=("mean", "max"),
        n_seeds=("mean", "size"),
    )
    single = ways["n_seeds"] == 1
    ways.loc[single, "low"] = ways["mean"] - ways["sd"]
    ways.loc[single, "high"] = ways["mean"] + ways["sd"]
    return ways.rename(columns={"way": "name"})


def over_seeds(settings: Settings, first: pd.Series, second: pd.Series) -> Test:
    """How much higher ``first`` is than ``second``, each values by name of a pretraining.

    Several of one seed, such as learning rates of a method, count by their mean. Where the two have
    three seeds or more in common, the seeds are paired, and the interval is Student's t: of three
    seeds 4.3 standard errors to each side. Else it is Welch's. ``interval.n``: seeds that both
    have, or of the smaller; NaN bounds below three. What other test items would give is not in it.
    """
    sides = []
    for side in (first, second):
        seeds = [settings.pretraining_of(name.partition("@")[0]).seed for name in side.index]
        sides.append(Folds(side.groupby(pd.Index(seeds, dtype=int)).mean()))
    common = (sides[0] - sides[1]).defined()
    test = paired_test if len(common) >= MIN_FOLDS else unpaired_test
    return test(*sides, n_train=1, n_test=0)  # no correction: seeds share no draw of patches


def differences(settings: Settings, table: pd.DataFrame) -> pd.DataFrame:
    """The last scores of `compared`, a row a way to pretrain that isn't its base's.

    Columns PANEL, name, value, ``mean`` over seeds, ``n_seeds`` and ``n_seeds_of_base`` with a
    score, and the ``difference`` from the base, ``low, high`` as `over_seeds`.
    """
    rows = []
    for panel, part in last(settings, table).groupby(PANEL, sort=False):
        scores = {way: one.set_index("name")["mean"] for way, one in part.groupby("way")}
        base = scores.get(panel[1], pd.Series(dtype=float))
        for way, value in part.drop_duplicates("way")[["way", "value"]].itertuples(index=False):
            if way != panel[1]:
                one, mean = over_seeds(settings, scores[way], base).interval, scores[way].mean()
                difference = round(one.estimate, 12) + 0.0  # no rounding error, no -0
                n_seeds = scores[way].count(), base.count()
                rows.append((*panel, way, value, mean, *n_seeds, difference, one.low, one.high))
    columns = ["name", "value", "mean", "n_seeds", "n_seeds_of_base", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=[*PANEL, *columns])
