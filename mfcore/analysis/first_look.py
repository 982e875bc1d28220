"""What one run left, as notebooks 01, 02 and 04 show it: patches, splits, embeddings, training."""

import textwrap
from collections.abc import Iterator

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from seaborn import FacetGrid

from mfcore import store
from mfcore.analysis import scores
from mfcore.analysis.exhibit import (
    Exhibit,
    counted,
    finished,
    image_rows,
    in_panels,
    in_style,
    of_what,
)
from mfcore.data import patches, splits, splits_audit
from mfcore.encoders.card import card_table
from mfcore.streams import generator
from mfcore.study import predictions
from mfcore.study.config import SCHEMES, Settings, as_dict
from mfcore.study.study import Study

N_ACROSS = 6  # patches of a class in a contact sheet's row
SHOWN_PX = 96  # of each patch there: the cell and its neighbours
AUDIT = "Audit of the splits"  # a page of the supplement


# ---- patches ----


@in_style
def contact_sheet(study: Study) -> Exhibit:
    """Random patches, a row for each class of each domain; the table counts all."""
    labels, images = patches.load(study.patches)
    start = max(0, images.shape[1] - SHOWN_PX) // 2
    seen = slice(start, start + SHOWN_PX)
    rows = {}
    for domain in sorted(labels["domain"].unique()):
        for label, name in classes(study.settings).items():
            members = labels.index[(labels["domain"] == domain) & (labels["label"] == label)]
            order = generator(study.seed, "contact sheet", domain, label).permutation(members)
            rows[f"{domain}\n{name}"] = images[order[:N_ACROSS], seen, seen]
    counts = patches.counts(labels)
    caption = (
        f"Random patches of each class and domain, their central {SHOWN_PX} px "
        f"({of_what(study.settings)}; {labels['slide_id'].nunique()} slides, "
        f"{labels['label'].sum():,} of class {study.settings.data.positive}, "
        f"{(labels['label'] == 0).sum():,} of class {study.settings.data.negative})."
    )
    figure = finished(study, image_rows(rows, N_ACROSS))
    return Exhibit("01_contact_sheet", "Patches", caption, counts, figure, "", counts.round(2))


def classes(settings: Settings) -> dict[int, str]:
    """What the study calls each label."""
    return {1: settings.data.positive, 0: settings.data.negative}


def class_colours(settings: Settings) -> dict[str, str]:
    """The colour of each class, the same in every figure."""
    return {settings.data.negative: "C0", settings.data.positive: "C1"}


# ---- splits ----

OTHER_FOLDS = (
    "Networks have folds of their own: probes and networks are compared on different patches."
)


def audit(study: Study) -> Iterator[Exhibit]:
    """What each way to split shares between training and test: means, fold by fold, and twins."""
    run, of = study.audit, of_what(study.settings)
    schemes, own, twins = (
        splits_audit.load(run, name) for name in ("schemes.csv", "audit.csv", "twins.csv")
    )
    caption = (
        f"The same patches split in every way, trained on all domains, means over folds ({of}); "
        f"this study splits {splits_audit.scheme_title(study.settings.switches.scheme)}. Shares "
        "are of the test patches: of a case or slide that training has seen, whose square overlaps "
        "a training patch, or that has a twin in training."
    )
    facts = run.record["facts"]
    words = [
        caption,
        splits_audit.tests_sentence(study.splits),
        "" if study.settings.switches.shared_splits else OTHER_FOLDS,
    ]
    words = filter(None, [*words, not_drawn(facts["not_drawn"]), *facts["remarks"]])
    caption, summary = " ".join(words), splits_audit.summary(schemes)
    yield Exhibit("01_audit", "Every way to split", caption, summary, section=AUDIT)
    order = schemes["scheme"].map([*SCHEMES].index).sort_values(kind="stable").index
    table, caption = _by_fold(schemes.loc[order]), f"Every way to split ({of})."
    yield Exhibit("01_audit_folds", "Fold by fold", caption, table, section=AUDIT)
    caption = f"Every training of the study ({of})."
    yield Exhibit("01_audit_own", "This study's splits", caption, _by_fold(own), section=AUDIT)
    caption = f"{splits_audit.twins_sentence(twins)} The table has those of contradicting labels."
    table = twins[twins["contradicts"].astype(bool)].drop(columns="contradicts")
    yield Exhibit("01_twins", "Twins", caption, table, section=AUDIT)


def not_drawn(reasons: dict[str, str]) -> str:
    """The ways to split that the data don't allow; ``reasons``: errors, without the remedy."""
    lines = [
        f"Not drawn: {splits_audit.scheme_title(name)} ({why.partition(';')[0]})."
        for name, why in reasons.items()
    ]
    return " ".join(lines) or "These data can be split in every way."


def _by_fold(table: pd.DataFrame) -> pd.DataFrame:
    """An audit a fold at a time, shares in per cent."""
    shown = table.assign(size=[f"{splits.percent(size)} %" for size in table["size"]])
    if "scheme" in shown:
        shown["scheme"] = shown["scheme"].map(splits_audit.scheme_title)
    shares = ["positives_train", "positives_val", "positives_test", *splits_audit.LEAKS]
    shown[shares] = shown[shares].apply(splits_audit.per_cent)
    return shown.rename(columns={"train_domain": "trained on"})


# ---- embeddings ----


def card(study: Study, encoder: str) -> Exhibit:
    """By which card the study has an encoder."""
    table = card_table(study.card(encoder))
    caption = f"How {encoder} is used ({of_what(study.settings)})."
    return Exhibit(f"02_card_{store.file_name(encoder)}", "Card", caption, table)


def components(features: np.ndarray, labels: pd.DataFrame) -> pd.DataFrame:
    """First two principal components of features (n, n_dims), a row a patch.

    Columns: ``patch_id, domain, label, pc1, pc2`` and the components' shares of the variance.
    """
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="arpack", random_state=0).fit(features.astype(np.float64))
    points, (share1, share2) = pca.transform(features), pca.explained_variance_ratio_
    table = labels[["patch_id", "domain", "label"]].reset_index(drop=True)
    return table.assign(pc1=points[:, 0], pc2=points[:, 1], share1=share1, share2=share2)


@in_style
def embedding(study: Study, encoder: str, features: np.ndarray) -> Exhibit:
    """First two principal components of an encoder's embeddings (n, n_dims)."""
    table = components(features, study.labels)
    shares = 100 * table[["share1", "share2"]].iloc[0]
    grid = by_group(study, table, "pc1", "pc2")
    grid.set_axis_labels(
        f"principal component 1 ({shares['share1']:.0f} % of variance)",
        f"principal component 2 ({shares['share2']:.0f} %)",
    )
    points = table[["pc1", "pc2"]]
    # R squared of a one-way analysis of variance
    between = {
        column: points.groupby(table[column]).transform("mean").var().sum() / points.var().sum()
        for column in ("domain", "label")
    }
    caption = (
        f"First two principal components, {shares.sum():.0f} % of the variance "
        f"({of_what(study.settings)}, n = {len(table):,}). In this plane the domain explains "
        f"{100 * between['domain']:.0f} % of the variance, the class "
        f"{100 * between['label']:.1f} %."
    )
    figure = finished(study, grid.figure, f"{encoder}, n = {len(table):,} patches", 3)
    name = f"02_{study.embeddings(encoder).folder.name}"
    return Exhibit(name, f"Embeddings of {encoder}", caption, table, figure)


def by_group(study: Study, table: pd.DataFrame, x: str, y: str) -> FacetGrid:
    """Points in two panels, coloured by domain and by class.

    table: with ``domain, label`` and the columns ``x`` and ``y``.
    """
    names = table["label"].map(classes(study.settings))
    shown = pd.concat(
        [table.assign(by="domain", group=table["domain"]), table.assign(by="class", group=names)]
    )
    domains = sorted(table["domain"].unique())
    palette = class_colours(study.settings) | {name: f"C{i + 2}" for i, name in enumerate(domains)}
    grid = sns.relplot(
        shown.sort_values(["by", "group"], ascending=[False, True]), x=x, y=y, hue="group",
        style="group", col="by", s=16, alpha=0.6, linewidth=0, height=3.6, palette=palette,
    )  # fmt: skip
    return grid.set_titles("by {col_name}")


# ---- a training ----


def network(study: Study, name: str) -> Exhibit:
    """The settings of one of the study's networks."""
    settings = as_dict(study.settings.network(name))
    row = pd.json_normalize(settings).iloc[0]  # "lora.rank" for what lies in lora
    table = row.rename_axis("setting").reset_index(name="value")
    caption = f"How {name} is trained ({of_what(study.settings)})."
    return Exhibit(f"04_network_{store.file_name(name)}", "Network", caption, table)


def training(study: Study, network: str, run: store.Run) -> Exhibit:
    """Training and validation loss of a network's run by epoch; AUROC by size below."""
    settings, history = study.settings, predictions.history(run)
    best = history.loc[history.groupby("unit")["val_loss"].idxmin(), "epoch"]
    is_last = settings.switches.epoch == "last"
    tested = "the last epoch" if is_last else "the epoch with the lowest validation loss"
    epochs = " to ".join(map(str, dict.fromkeys([best.min(), best.max()])))
    caption = (
        f"Loss by epoch of {counted(history['unit'].nunique(), 'training')} "
        f"({of_what(settings)}; {history['seconds'].sum() / 60:.1f} minutes of training); tested "
        f"is {tested} (ring). The lowest validation loss came in epoch {epochs} of "
        f"{history['epoch'].max()}."
    )
    kind = predictions.kind_of(settings.network(network))
    fits = predictions.scores(predictions.load_arm(run, network, kind))
    return Exhibit(
        f"04_{run.folder.name}",
        f"Training of {network}",
        caption,
        history,
        draw_history(study, network, history),
        readable=scores.across_sizes(scores.scaling_table(fits, settings)),
    )


@in_style
def draw_history(study: Study, network: str, history: pd.DataFrame) -> Figure:
    """Losses by epoch, a panel a unit; a ring marks the epoch that is tested.

    history: of as many epochs as there are, as `mfcore.study.predictions.history`.
    """
    names = {"train_loss": "training", "val_loss": "validation"}
    table = history.rename(columns=names)
    loss = table.melt(["unit", "epoch"], list(names.values()), "loss", "cross-entropy")
    grid = sns.relplot(
        loss, kind="line", errorbar=None, x="epoch", y="cross-entropy", hue="loss", style="loss",
        dashes=[(5, 1.6), ""], col="unit", col_wrap=min(4, loss["unit"].nunique()), height=1.9,
    )  # fmt: skip
    in_panels(grid, "epoch", "cross-entropy")
    for unit, part in table.groupby("unit", sort=False):
        is_last = study.settings.switches.epoch == "last"
        tested = part.iloc[-1] if is_last else part.loc[part["validation"].idxmin()]
        axis = grid.axes_dict[unit]
        axis.plot(tested["epoch"], tested["validation"], "ko", ms=9, mfc="none", label="tested")
        axis.set_title(_panel(unit), fontsize=7)
    return finished(study, grid.figure, network, 3)


def _panel(unit: str) -> str:
    """What a unit such as "all-fold0-size0.1" learnt from: the domain, fold and size."""
    domain, _, rest = unit.rpartition("-fold")
    fold, _, size = rest.partition("-size")
    domain = textwrap.fill(domain.translate(splits.BLANKS), 22)
    return f"{domain}\nfold {fold}, {splits.percent(float(size))} %"
