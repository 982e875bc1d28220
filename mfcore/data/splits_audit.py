"""Leaks of splits: how many test patches share a case, a slide or pixels with a training patch."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import splits, splits_draw
from mfcore.data.splits_draw import Placing, Scheme

LEAKS = (
    "test_on_train_slides",
    "test_on_train_cases",
    "test_overlapping_train",
    "test_twin_in_train",
)
TWINS = [
    "group",
    "contradicts",
    "patch_id",
    "file",
    "slide_id",
    "case_id",
    "domain",
    "x_l0_px",
    "y_l0_px",
    "label",
]


def audit(table: pd.DataFrame, labels: pd.DataFrame, placing: Placing) -> pd.DataFrame:
    """One row per unit of a table of splits.

    n_train, n_val, n_test; share of positives in each; numbers of slides and cases that train and
    test. Shares of test patches (LEAKS): on a slide, and of a case, that training sees; with at
    least one pixel in common with a training patch (`splits_draw.with_places`); with a twin, a
    patch of the same pixels, in training. NaN where the audit can't see it: every patch is a slide
    or case of its own, no place is known, ``labels`` have no column ``twin``. Training means the
    role "train" alone.

    table: as `splits.make` returns it. labels: the patches, as `mfcore.data.labels.table.COLUMNS`.
    placing: of the patches.
    """
    indexed = splits_draw.with_places(labels, placing).set_index("patch_id")
    shares_slides, shares_cases = (
        labels[name].nunique() < len(labels) for name in ("slide_id", "case_id")
    )
    has_places = shares_slides and labels["x_l0_px"].notna().any()
    rows = []
    for unit in splits.units(table):
        ids = splits.select(table, unit)
        train, test = indexed.loc[ids["train"]], indexed.loc[ids["test"]]
        rows.append(
            {
                "train_domain": unit.train_domain,
                "fold": unit.fold,
                "size": unit.size,
                **{f"n_{role}": len(ids[role]) for role in splits.ROLES},
                **{
                    f"positives_{role}": float(indexed.loc[ids[role], "label"].mean())
                    for role in splits.ROLES
                },
                "n_train_slides": train["slide_id"].nunique(),
                "n_test_slides": test["slide_id"].nunique(),
                "n_train_cases": train["case_id"].nunique(),
                "n_test_cases": test["case_id"].nunique(),
                "test_on_train_slides": (
                    test["slide_id"].isin(train["slide_id"]).mean() if shares_slides else np.nan
                ),
                "test_on_train_cases": (
                    test["case_id"].isin(train["case_id"]).mean() if shares_cases else np.nan
                ),
                "test_overlapping_train": (
                    splits_draw.overlapping(train, test).mean() if has_places else np.nan
                ),
                "test_twin_in_train": (
                    test["twin"].isin(train["twin"]).mean() if "twin" in test else np.nan
                ),
            }
        )
    return pd.DataFrame(rows)


def audit_schemes(
    labels: pd.DataFrame, schemes: Mapping[str, Scheme]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The audit of patches under several schemes, by name.

    Returns the rows of `audit` with ``scheme`` before them, and for each scheme that can't split
    these data the reason.
    """
    tables, reasons = [], {}
    for name, scheme in schemes.items():
        try:
            table = audit(splits.make(labels, scheme), labels, scheme.placing)
        except splits.SplitError as error:
            reasons[name] = str(error)
            continue
        table.insert(0, "scheme", name)
        tables.append(table.drop(columns="train_domain"))
    return pd.concat(tables, ignore_index=True), reasons


def twins(labels: pd.DataFrame) -> pd.DataFrame:
    """Every patch that has a twin, columns TWINS, group by group; groups with contradicting labels
    come first.

    labels: a label table with a column ``twin`` (`mfcore.data.patches.twins`).
    """
    groups = labels.groupby("twin")["label"]
    table = labels.assign(group=labels["twin"], contradicts=groups.transform("nunique") > 1)[
        groups.transform("size") > 1
    ]
    return table.sort_values(
        ["contradicts", "group", "patch_id"], ascending=[False, True, True], ignore_index=True
    )[TWINS]


def remarks(labels: pd.DataFrame) -> list[str]:
    """Sentences on the leaks that an audit of these data can't see, and on those of the authors'
    own split.

    labels: a label table with a column ``twin`` (`mfcore.data.patches.twins`).
    """
    n_slides, n_cases, n = labels["slide_id"].nunique(), labels["case_id"].nunique(), len(labels)
    n_nowhere = int(labels[["x_l0_px", "y_l0_px"]].isna().any(axis=1).sum())
    tested = labels[labels["official_split"] == "test"]
    learnt = labels[labels["official_split"].isin(["train", "val"])]
    n_both = len(set(tested["case_id"]) & set(learnt["case_id"]))
    n_twins = int(learnt["twin"].isin(tested["twin"]).sum())
    remarks = (
        (
            n_slides == n,
            (
                "Every patch counts as a slide of its own: the audit can't see which patches share"
                " slides or pixels."
            ),
        ),
        (
            n_cases == n,
            "No case has several patches: the audit can't see which patches are of one patient.",
        ),
        (
            n_cases == n_slides < n,
            (
                "No case has several slides: where a patient has several slides, the audit can't"
                " see patients on both sides of a split."
            ),
        ),
        (
            n_nowhere and n_slides < n,
            (
                f"The data don't say where {n_nowhere:,} of the {n:,} patches lie; the audit can't"
                " see which of these share pixels."
            ),
        ),
        (
            n_both,
            (
                f"The authors' own split has patches of {n_both} cases on both sides; they stay"
                " where the authors put them."
            ),
        ),
        (
            n_twins,
            (
                f"{n_twins} of the authors' training patches have a twin in the authors' test set;"
                " by the authors' split they are left out of training here."
            ),
        ),
    )
    return [remark for holds, remark in remarks if holds]


def twins_sentence(table: pd.DataFrame, audit: pd.DataFrame) -> str:
    """Sentences on the number of twins, and on twins on both sides of a split.

    table, audit: of one study, as `twins` and `audit` return them.
    """
    text = "No two patches have the same pixels"
    if len(table):
        groups = table.groupby("group")["contradicts"].first()
        full = audit[(audit["train_domain"] == splits.ALL) & (audit["size"] == audit["size"].max())]
        text = (
            f"{len(table):,} patches form {len(groups):,} group{'s' * (len(groups) != 1)} of"
            f" identical pixels, {groups.sum():,} of them with contradicting labels; of this"
            f" study's test patches {100 * full['test_twin_in_train'].mean():.1f} % have a twin in"
            " training"
        )
    return (
        f"{text} (identical pixels only: a copy that is shifted, scaled or compressed anew isn't"
        " recognised)."
    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """An audit as a table to read: means over folds, a row a scheme or training domain and a size,
    shares in per cent.

    table: as `audit` or `audit_schemes` returns it.
    """
    key = "scheme" if "scheme" in table else "train_domain"
    means = table.drop(columns="fold").groupby([key, "size"], sort=False).mean().reset_index()
    means = means.iloc[np.argsort(means[key] != splits.ALL, kind="stable")]
    # A space that doesn't break
    sizes = [f"{splits.percent(size)}\u00a0%" for size in means["size"]]
    names = means[key].map(scheme_title) if key == "scheme" else means[key]
    shown = {"scheme" if key == "scheme" else "trained on": names.to_numpy(), "size": sizes}
    shown |= {
        name: means[name].round().astype(int).to_numpy() for name in ("n_train", "n_val", "n_test")
    }
    shares = ("positives_train", "positives_test", *LEAKS)
    return pd.DataFrame(shown | {name: per_cent(means[name]) for name in shares})


def per_cent(shares: pd.Series) -> list[str]:
    """Shares as text in per cent, a dash for NaN."""
    return [f"{100 * share:.1f} %" if pd.notna(share) else "–" for share in shares]


def scheme_title(scheme: str) -> str:
    """A scheme in words, one of SCHEMES or a mix that `Switches.scheme` names."""
    titles = {
        "slide": "by slide",
        "official": "by the authors' split",
        "annotation": "by annotation",
        "annotation_buffered": "by annotation, no shared pixels",
        "released": "by annotation, as released",
    }
    return titles.get(scheme, f"by {scheme.replace('_', ' ')}")


def between(probes: pd.DataFrame, networks: pd.DataFrame) -> dict[str, float]:
    """The overlap of two tables of splits: means over folds with all the data, trained on all
    domains.

    ``tested_by_both``: share of the probes' test patches that the networks are tested on too;
    ``trained_on_by_networks``: share of them that the networks train on or validate with.
    """
    full = [unit for unit in splits.units(probes) if unit.train_domain == splits.ALL]
    full = [unit for unit in full if unit.size == max(each.size for each in full)]
    pairs = [(splits.select(probes, unit)["test"], splits.select(networks, unit)) for unit in full]
    both = [np.isin(test, of_network["test"]).mean() for test, of_network in pairs]
    seen = [
        np.isin(test, np.concatenate([of_network["train"], of_network["val"]])).mean()
        for test, of_network in pairs
    ]
    return {"tested_by_both": float(np.mean(both)), "trained_on_by_networks": float(np.mean(seen))}


def tests_sentence(table: pd.DataFrame) -> str:
    """A sentence on splits whose folds all test the same patches; empty where the folds differ.

    table: as `mfcore.data.splits.make` returns it.
    """
    tested = table[(table["role"] == "test") & (table["train_domain"] == splits.ALL)]
    tests = tested.groupby("fold")["patch_id"].agg(frozenset)
    if len(tests) < 2 or tests.nunique() > 1:
        return ""
    return (
        f"All {len(tests)} folds test the same patches: the spread over folds shows how training"
        " varies, not how patients do."
    )


def networks_sentence(run: store.Run) -> str:
    """A sentence on the networks' splits against the probes', from a finished audit; empty where
    they are the same.
    """
    shares = run.record["facts"].get("networks", {})
    if not shares:
        return ""
    tested, trained = (100 * shares[name] for name in ("tested_by_both", "trained_on_by_networks"))
    return (
        "Networks have folds of their own: of the patches that a fold tests the probes on,"
        f" {tested:.0f} % test the networks too, and {trained:.0f} % train them: probes and"
        " networks are compared on different patches."
    )


def load(run: store.Run) -> pd.DataFrame:
    """The audit of the study's own splits, as `audit` returns it."""
    table = pd.read_csv(run.path("audit.csv"))
    names = pd.read_csv(
        run.path("audit.csv"), usecols=["train_domain"], dtype=str, keep_default_na=False
    )
    return table.assign(**names)  # a domain may be called NA or 1


def load_schemes(run: store.Run) -> pd.DataFrame:
    """The audit under every scheme, as `audit_schemes` returns it."""
    return pd.read_csv(run.path("schemes.csv"))


def load_twins(run: store.Run) -> pd.DataFrame:
    """The patches that have a twin, as `twins` returns them."""
    return pd.read_csv(run.path("twins.csv"))
