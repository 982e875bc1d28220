"""Leaks of splits: how many test patches share a case, a slide or pixels with a training patch."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import splits, splits_draw
from mfcore.data.splits_draw import Placing, Scheme

# What training may share with a test patch, and the column that tells
SHARED = {
    "test_on_train_slides": "slide_id",
    "test_on_train_cases": "case_id",
    "test_overlapping_train": None,
    "test_twin_in_train": "twin",
}
LEAKS = tuple(SHARED)
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
    visible = [name for name in ("slide_id", "case_id") if labels[name].nunique() < len(labels)]
    has_places = "slide_id" in visible and labels["x_l0_px"].notna().any()
    visible += ["twin"] if "twin" in labels else []
    rows = []
    for unit in splits.units(table):
        patches = {role: indexed.loc[ids] for role, ids in splits.select(table, unit).items()}
        train, test = patches["train"], patches["test"]
        leaks = {
            leak: test[name].isin(train[name]).mean() if name in visible else np.nan
            for leak, name in SHARED.items()
        }
        if has_places:
            leaks["test_overlapping_train"] = splits_draw.overlapping(train, test).mean()
        rows.append(
            {
                **asdict(unit),
                **{f"n_{role}": len(of_role) for role, of_role in patches.items()},
                **{
                    f"positives_{role}": of_role["label"].mean()
                    for role, of_role in patches.items()
                },
                **{
                    f"n_{role}_{name}s": patches[role][f"{name}_id"].nunique()
                    for name in ("slide", "case")
                    for role in ("train", "test")
                },
                **leaks,
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
    remarks = {
        "Every patch counts as a slide of its own: the audit can't see which patches share slides"
        " or pixels.": n_slides == n,
        "No case has several patches: the audit can't see which patches are of one patient.": (
            n_cases == n
        ),
        "No case has several slides: where a patient has several slides, the audit can't see"
        " patients on both sides of a split.": n_cases == n_slides < n,
        f"The data don't say where {n_nowhere:,} of the {n:,} patches lie; the audit can't see"
        " which of these share pixels.": n_nowhere and n_slides < n,
        f"The authors' own split has patches of {n_both} cases on both sides; they stay where the"
        " authors put them.": n_both,
        f"{n_twins} of the authors' training patches have a twin in the authors' test set; by the"
        " authors' split they are left out of training here.": n_twins,
    }
    return [remark for remark, holds in remarks.items() if holds]


def twins_sentence(table: pd.DataFrame) -> str:
    """A sentence on the number of twins, as `twins` returns them."""
    return (
        f"{len(table):,} patches have the same pixels as another one,"
        f" {table['contradicts'].sum():,} of them with contradicting labels (a copy that is"
        " shifted, scaled or compressed anew isn't recognised)."
    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The audit of several schemes as a table to read: means over folds, a row a scheme and a size,
    shares in per cent.

    table: as `audit_schemes` returns it.
    """
    means = table.groupby(["scheme", "size"], sort=False).mean().reset_index()
    counts = ["n_train", "n_val", "n_test"]
    means[counts] = means[counts].round().astype(int)
    shares = ["positives_train", "positives_test", *LEAKS]
    means[shares] = means[shares].apply(per_cent)
    # A space that doesn't break
    means["size"] = [f"{splits.percent(size)}\u00a0%" for size in means["size"]]
    means["scheme"] = means["scheme"].map(scheme_title)
    return means[["scheme", "size", *counts, *shares]]


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


def load(run: store.Run, name: str = "audit.csv") -> pd.DataFrame:
    """A table of a finished audit: of the study's own splits, as `audit` returns it; of every
    scheme ("schemes.csv", `audit_schemes`); of twins ("twins.csv", `twins`).
    """
    options = {"keep_default_na": False, "na_values": [""], "dtype": {"train_domain": str}}
    return pd.read_csv(run.path(name), **options)  # a domain may be called NA or 1
