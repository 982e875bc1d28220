"""What splits are worth: how many test patches lie on a slide, or share pixels with a patch, that training has seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import patches, splits, splits_draw, store
from mfcore.config import SCHEMES, Study


def audit(study: Study, table: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """One row per unit of a table of splits.

    n_train, n_val, n_test; share of positives in each; ``test_on_train_slides``: share of test patches on a slide that
    training sees; ``test_overlapping_train``: share of test patches with at least one pixel in common with a training
    patch (`splits_draw.with_places` says where patches lie). Training means the role "train" alone.
    table: as `splits.make` returns it. labels: the patches, as `mfcore.labels.COLUMNS`.
    """
    indexed = splits_draw.with_places(study, labels).set_index("patch_id")
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
                **{f"positives_{role}": float(indexed.loc[ids[role], "label"].mean()) for role in splits.ROLES},
                "n_train_slides": train["slide_id"].nunique(),
                "n_test_slides": test["slide_id"].nunique(),
                "test_on_train_slides": float(test["slide_id"].isin(train["slide_id"]).mean()),
                "test_overlapping_train": float(splits_draw.overlapping(train, test).mean()),
            }
        )
    return pd.DataFrame(rows)


def audit_schemes(study: Study, labels: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The audit of a study's patches under every scheme there is, its own or not, trained on all domains.

    Returns the rows of `audit` with ``scheme`` before them, and for each scheme that these data can't be drawn by, why.
    """
    tables, reasons = [], {}
    for scheme in SCHEMES:
        other = replace(splits.under(study, scheme), splits=replace(study.splits, by_domain=False))
        try:
            found = audit(other, splits.make(other, labels), labels)
        except splits.SplitError as error:
            reasons[scheme] = str(error)
            continue
        found.insert(0, "scheme", scheme)
        tables.append(found.drop(columns="train_domain"))
    return pd.concat(tables, ignore_index=True), reasons


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """An audit for the eye: means over folds, a row a scheme or training domain and a size, shares in per cent.

    table: as `audit` or `audit_schemes` returns it.
    """
    key = "scheme" if "scheme" in table else "train_domain"
    means = table.drop(columns="fold").groupby([key, "size"], sort=False).mean().reset_index()
    means = means.iloc[np.argsort(means[key] != splits.ALL, kind="stable")]
    sizes = [f"{100 * size:g}\u00a0%" for size in means["size"]]  # a space that doesn't break
    names = means[key].map(scheme_title) if key == "scheme" else means[key]
    shown = {"scheme" if key == "scheme" else "trained on": names.to_numpy(), "size": sizes}
    shown |= {name: means[name].round().astype(int).to_numpy() for name in ("n_train", "n_val", "n_test")}
    shares = ("positives_train", "positives_test", "test_on_train_slides", "test_overlapping_train")
    return pd.DataFrame(shown | {name: [f"{100 * share:.1f} %" for share in means[name]] for name in shares})


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


def write(study: Study, results: Path) -> store.Run:
    """Audit the study's splits, and what every scheme would give: ``audit.csv`` and ``schemes.csv``.

    The run's facts have, under ``not_drawn``, the schemes that these data can't be drawn by, and why; under ``networks``,
    where these have splits of their own, what `between` says of them.
    """
    run = store.open_run(results, "audit", study.switches.scheme, _config(study), _inputs(study, results))
    if not run.done:
        labels, _ = patches.load(patches.find(study, results))
        own, networks = (splits.load(splits.find(study, results, networks)) for networks in (False, True))
        store.write_csv(run.path("audit.csv"), audit(study, own, labels))
        schemes, reasons = audit_schemes(study, labels)
        store.write_csv(run.path("schemes.csv"), schemes)
        shared = study.switches.shared_splits
        run.finish(["audit.csv", "schemes.csv"], not_drawn=reasons, networks={} if shared else between(own, networks))
    return run


def between(probes: pd.DataFrame, networks: pd.DataFrame) -> dict[str, float]:
    """How alike two tables of splits are, means over folds with all the data, trained on all domains.

    ``tested_by_both``: share of the probes' test patches that the networks are tested on too; ``trained_on_by_networks``:
    share of them that the networks train on or validate with.
    """
    full = [unit for unit in splits.units(probes) if unit.train_domain == splits.ALL]
    full = [unit for unit in full if unit.size == max(each.size for each in full)]
    pairs = [(splits.select(probes, unit)["test"], splits.select(networks, unit)) for unit in full]
    both = [np.isin(test, theirs["test"]).mean() for test, theirs in pairs]
    seen = [np.isin(test, np.concatenate([theirs["train"], theirs["val"]])).mean() for test, theirs in pairs]
    return {"tested_by_both": float(np.mean(both)), "trained_on_by_networks": float(np.mean(seen))}


def networks_said(run: store.Run) -> str:
    """In a sentence, how the networks' splits relate to the probes', from a finished audit; empty where they are the same."""
    found = run.record["facts"].get("networks", {})
    if not found:
        return ""
    return (
        "Networks have folds of their own: of the patches that a fold tests the probes on, "
        f"{100 * found['tested_by_both']:.0f} % test the networks too, and {100 * found['trained_on_by_networks']:.0f} % train "
        "them: probes and networks are compared on different patches."
    )


def find(study: Study, results: Path) -> store.Run:
    """The finished audit of the study's splits; raises StoreError where there is none."""
    return store.find_run(results, "audit", study.switches.scheme, _config(study), _inputs(study, results))


def _config(study: Study) -> dict:
    return {**splits.config_of(study), "size_px": study.patches.size_px}


def _inputs(study: Study, results: Path) -> dict[str, str]:
    inputs = {"splits": splits.find(study, results).key}
    return inputs if study.switches.shared_splits else inputs | {"networks": splits.find(study, results, networks=True).key}


def load(run: store.Run) -> pd.DataFrame:
    """The audit of the study's own splits, as `audit` returns it."""
    return pd.read_csv(run.path("audit.csv"))


def load_schemes(run: store.Run) -> pd.DataFrame:
    """The audit under every scheme, as `audit_schemes` returns it."""
    return pd.read_csv(run.path("schemes.csv"))
