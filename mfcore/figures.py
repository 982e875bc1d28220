"""Every figure of the compendium, in one style: units on the axes, n, what the bars are, readable in grey.

A function returns a figure; `save` writes it as PNG and PDF with the CSV behind it. Where the data are synthetic the
figure says so.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mfcore import compare, compare_schemes, raters, splits_audit, store
from mfcore.config import Study
from mfcore.rng import generator

STYLE = Path(__file__).resolve().parents[1] / "notebooks" / "mfcore.mplstyle"
MARKERS = "osD^vPX*<>hp"
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1))]
N_ACROSS = 6  # patches of a class in a contact sheet's row
LEGEND_ROW_INCH = 0.175
SHOWN_PX = 96  # of each patch there: the cell and its neighbours


@contextlib.contextmanager
def _drawing(study: Study, n_rows: int, n_columns: int, size_inch: tuple[float, float], **options: object) -> Iterator[tuple]:
    """Yield figure and axes (n_rows, n_columns) in the house style; the figure doesn't stay in pyplot's memory."""
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(n_rows, n_columns, figsize=size_inch, layout="constrained", squeeze=False, **options)
        plt.close(figure)
        if study.synthetic:
            figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.18 / size_inch[1]))  # a strip of its own for the word
            figure.text(0.995, 0.995, "synthetic data", ha="right", va="top", fontsize=8, style="italic", color="0.35")
        yield figure, axes


def save(figure: Figure, table: pd.DataFrame, folder: str | Path, name: str) -> list[Path]:
    """Write ``name``.png, .pdf and, with the table behind the figure, .csv into ``folder``; returns the three paths."""
    folder = Path(folder)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv")]
    for path in paths[:2]:
        with store.replacing(path) as aside:
            metadata = (
                {"Software": None} if path.suffix == ".png" else {"CreationDate": None, "Producer": None, "Creator": None}
            )
            figure.savefig(aside, format=path.suffix[1:], metadata=metadata)
    store.write_csv(paths[2], table)
    return paths


def contact_sheet(study: Study, patches: np.ndarray, labels: pd.DataFrame) -> Figure:
    """Random patches: a row for each class of each domain, N_ACROSS of them, their centre SHOWN_PX wide, with a scale bar.

    patches: uint8 (n_patches, H, W, 3), row for row with ``labels``.
    """
    rows = [(domain, label) for domain in sorted(labels["domain"].unique()) for label in (1, 0)]
    shown_px = min(SHOWN_PX, patches.shape[1])
    start = (patches.shape[1] - shown_px) // 2
    with _drawing(study, len(rows), N_ACROSS, (0.84 * N_ACROSS + 1.7, 0.84 * len(rows) + 0.3)) as (figure, axes):
        for line, (domain, label) in zip(axes, rows, strict=True):
            here = labels.index[(labels["domain"] == domain) & (labels["label"] == label)].to_numpy()
            drawn = generator(study.splits.seed, "contact sheet", domain, label).permutation(here)[:N_ACROSS]
            for axis in line:
                axis.set_axis_off()
            for axis, row in zip(line, drawn, strict=False):
                axis.imshow(patches[row, start : start + shown_px, start : start + shown_px], interpolation="lanczos")
            name = study.data.positive if label else study.data.negative
            line[0].text(-0.08, 0.5, f"{domain}\n{name}", transform=line[0].transAxes, ha="right", va="center", fontsize=7)
        _scale_bar(axes[-1][-1], study, labels, shown_px)
    return figure


def _scale_bar(axis: Axes, study: Study, labels: pd.DataFrame, shown_px: int) -> None:
    """A bar of 10 um in a patch's corner, where the resolution is known and one for all."""
    um_per_px = study.patches.um_per_px if study.switches.resolution == "target" else labels["um_per_px"].median()
    if um_per_px is None or not np.isfinite(um_per_px):
        return
    length = 10 / um_per_px
    axis.plot([shown_px - 6 - length, shown_px - 6], [shown_px - 8] * 2, color="black", linewidth=2.5, solid_capstyle="butt")
    axis.text(shown_px - 6 - length / 2, shown_px - 11, "10 µm", ha="center", va="bottom", fontsize=6, color="black")


def embedding_table(features: np.ndarray, labels: pd.DataFrame) -> pd.DataFrame:
    """First two principal components of features (n, n_dims): ``patch_id, domain, label, pc1, pc2``, and their shares."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variance, directions = np.linalg.eigh(centred.T @ centred / (len(centred) - 1))  # ascending
    directions = directions[:, [-1, -2]]  # (n_dims, 2)
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), [0, 1]])  # of the two signs, one for every machine
    components, share = centred @ directions, variance[::-1] / variance.sum()
    table = labels[["patch_id", "domain", "label"]].reset_index(drop=True)
    return table.assign(pc1=components[:, 0], pc2=components[:, 1], share1=share[0], share2=share[1])


def embedding(study: Study, table: pd.DataFrame, encoder: str) -> Figure:
    """First two principal components of one encoder's embeddings, by domain and by class (``embedding_table``)."""
    with _drawing(study, 1, 2, (7.6, 3.5), sharex=True, sharey=True) as (figure, axes):
        names = {1: study.data.positive, 0: study.data.negative}
        groups = [("domain", sorted(table["domain"].unique()), str), ("label", [0, 1], names.__getitem__)]
        for axis, (column, values, title) in zip(axes[0], groups, strict=True):
            for value, marker in zip(values, MARKERS * 4, strict=False):
                part = table[table[column] == value]
                axis.scatter(part["pc1"], part["pc2"], s=6, marker=marker, alpha=0.55, linewidths=0, label=title(value))
            axis.set_xlabel(f"principal component 1 ({table['share1'].iloc[0]:.0%} of variance)")
            axis.legend(markerscale=2.2, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
            axis.set_title(f"by {'class' if column == 'label' else column}")
        axes[0][0].set_ylabel(f"principal component 2 ({table['share2'].iloc[0]:.0%})")
        figure.suptitle(f"{encoder}, n = {len(table)} patches", fontsize=9, x=0.01, ha="left")
    return figure


def score_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Scores at the largest size, all domains, in 20 bins: ``label, low, high, n``."""
    part = _full_size(predictions)
    edges = np.linspace(0, 1, 21)
    rows = [
        {"label": label, "low": low, "high": high, "n": n}
        for label in (0, 1)
        for low, high, n in zip(
            edges[:-1], edges[1:], np.histogram(part.loc[part["label"] == label, "score"], edges)[0], strict=True
        )
    ]
    return pd.DataFrame(rows)


def _full_size(predictions: pd.DataFrame) -> pd.DataFrame:
    part = predictions[predictions["train_domain"] == compare.ALL]
    return part[part["size"] == part["size"].max()]


def score_histogram(study: Study, table: pd.DataFrame, arm: str) -> Figure:
    """How the scores of the two classes lie (``score_table``)."""
    with _drawing(study, 1, 1, (5.6, 2.7)) as (figure, axes):
        axis = axes[0][0]
        for label, name, hatch in ((0, study.data.negative, ""), (1, study.data.positive, "////")):
            part = table[table["label"] == label]
            share = part["n"] / part["n"].sum()
            face = "0.78" if label == 0 else "none"
            axis.bar(
                part["low"], share, 0.05, align="edge", color=face, edgecolor="0.25", linewidth=0.8, hatch=hatch, label=name
            )
        axis.set(xlabel=f"score: probability of {study.data.positive}", ylabel="share of the class", xlim=(0, 1))
        axis.legend(loc="upper center")
        axis.set_title(f"{arm}, full training set, n = {table['n'].sum()} scores of all folds")
    return figure


def history(study: Study, table: pd.DataFrame, network: str) -> Figure:
    """Training and validation loss by epoch, a panel a unit; a ring marks the epoch that is tested.

    table: as `mfcore.train.load_history` returns it.
    """
    units = list(dict.fromkeys(table["unit"]))
    n_columns = min(4, len(units))
    n_rows = -(-len(units) // n_columns)
    with _drawing(study, n_rows, n_columns, (1.95 * n_columns + 0.4, 1.75 * n_rows + 0.5), sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for axis, unit in zip(axes.flat, units, strict=False):
            part = table[table["unit"] == unit]
            axis.plot(part["epoch"], part["train_loss"], linestyle=DASHES[1], label="training")
            axis.plot(part["epoch"], part["val_loss"], label="validation")
            tested = part.iloc[-1] if study.switches.epoch == "last" else part.loc[part["val_loss"].idxmin()]
            axis.plot(
                tested["epoch"], tested["val_loss"], "o", markersize=9, markerfacecolor="none", color="black", label="tested"
            )
            axis.set_title(unit.replace("_", " ").replace("-fold", "\nfold ").replace("-size", ", size "), fontsize=7)
        for axis in axes.flat[len(units) :]:
            axis.set_axis_off()
        for axis in axes.flat[max(0, len(units) - n_columns) : len(units)]:
            axis.set_xlabel("epoch")
        for line in axes:
            line[0].set_ylabel("cross-entropy")
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(network, fontsize=9, x=0.01, ha="left", fontweight="bold")
    return figure


def data_scaling(study: Study, table: pd.DataFrame, human: pd.DataFrame | None = None) -> Figure:
    """Fig. 1: AUROC against the number of training patches, a line an arm, bars the sample SD over folds.

    With raters' votes (``human``, as `mfcore.raters.table` returns it) a second panel shows balanced accuracy and the raters.
    table: as `mfcore.compare.scaling_table` returns it.
    """
    shown = ["auroc"] + (["balanced_accuracy"] if raters.reference(human, "balanced_accuracy") else [])
    arms = list(dict.fromkeys(table["arm"]))
    size_inch = (8.4 if len(shown) > 1 else 6.6, 3.75 + LEGEND_ROW_INCH * (len(arms) + 2 * len(shown)) / 2)
    with _drawing(study, 1, len(shown), size_inch, sharey=True) as (figure, axes):
        for axis, metric in zip(axes[0], shown, strict=True):
            for index, arm in enumerate(arms):
                part = table[table["arm"] == arm]
                style = {"marker": MARKERS[index % len(MARKERS)], "linestyle": DASHES[index % len(DASHES)]}
                label = f"{arm} ({part['kind'].iloc[0]})"
                nudge = 1.03 ** (index - (len(arms) - 1) / 2)  # so that bars of arms at one size stay apart
                axis.errorbar(
                    part["n_train"] * nudge, part[metric], part[f"{metric}_sd"].fillna(0), capsize=2.5, label=label, **style
                )
            axis.axhline(0.5, color="0.55", linewidth=0.9, linestyle=":", label="chance")
            sizes = table.groupby("size")["n_train"].first()
            axis.set_xscale("log")
            axis.set_xticks(sizes.to_numpy(), [f"{n}\n({100 * size:g} %)" for size, n in sizes.items()])
            axis.minorticks_off()
            axis.margins(x=0.08)
            axis.set(xlabel="training patches (share of what testing leaves)", ylabel=compare.metrics.TITLES[metric])
        if len(shown) > 1:
            ends = axes[0][1].get_xlim()
            _raters(axes[0][1], human, compare.ALL, ends, named=True)
            axes[0][1].set_xlim(ends)
        low = min(np.nanmin(table[metric] - table[f"{metric}_sd"].fillna(0)) for metric in shown)
        axes[0][0].set_ylim(min(0.45, float(low) - 0.02), 1.0)
        _legend_below(figure, axes[0][-1])
        title = f"{study.title}, mean ± SD of {table['n_folds'].max()} folds"
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", fontweight="bold")
    return figure


def _raters(axis: Axes, human: pd.DataFrame, domain: str, ends: tuple[float, float], named: bool) -> None:
    """Balanced accuracy of the raters between two x: one against another, with its interval, and against the consensus."""
    line, upper = raters.reference(human, "balanced_accuracy", domain), raters.against_consensus(human, domain)
    said = {"one": "one rater against another", "consensus": "a rater against the consensus, own vote counted"}
    if named:
        said |= {"one": f"{said['one']}, {line.estimate:.2f}"} if line else {}
        said |= {"consensus": f"{said['consensus']}, {upper:.2f}"} if upper else {}
    if line:
        axis.fill_between(ends, line.low, line.high, color="0.87", linewidth=0, zorder=0.5)
        axis.plot(ends, [line.estimate] * 2, color="black", linewidth=1.3, linestyle=(0, (7, 3)), label=said["one"], zorder=1.5)
    if upper:
        axis.plot(ends, [upper] * 2, color="0.45", linewidth=1.1, linestyle="-.", label=said["consensus"], zorder=1.5)


def cross_domain(
    study: Study,
    table: pd.DataFrame,
    arms: list[str] | None = None,
    tested: pd.DataFrame | None = None,
    human: pd.DataFrame | None = None,
) -> Figure:
    """Fig. 2: mean AUROC by training and test domain, a panel an arm (the end-to-end arms and the best probe unless named).

    With raters' votes (``human``, as `mfcore.raters.table` returns it) a further panel shows balanced accuracy by test
    domain (``tested``, as `mfcore.compare.by_test_domain` returns it) beside the raters. table: as
    `mfcore.compare.domain_matrix` returns it.
    """
    arms = arms or best_arms(table)
    domains = sorted(table["domain"].unique())
    below = tested is not None and any(raters.reference(human, "balanced_accuracy", domain) for domain in domains)
    n_rows, ratios = (2, (3.7, 2.9)) if below else (1, (3.9,))
    size_inch = (3.4 * len(arms) + 1.2, sum(ratios) + LEGEND_ROW_INCH * len(arms) * below)
    turned = {"rotation": 45 if len(domains) < 6 else 90, "ha": "right", "va": "center", "rotation_mode": "anchor"}
    with _drawing(study, n_rows, len(arms), size_inch, sharey="row", height_ratios=ratios) as (figure, axes):
        for axis, arm in zip(axes[0], arms, strict=True):
            matrix = table[table["arm"] == arm].pivot(index="train_domain", columns="domain", values="mean")
            matrix = matrix.reindex(index=domains, columns=domains)
            image = axis.imshow(matrix, cmap="Blues", vmin=0.4, vmax=1.0, aspect="auto")
            for i in range(len(domains)):
                for j in range(len(domains)):
                    value = matrix.iloc[i, j]
                    colour = "white" if np.isfinite(value) and value > 0.78 else "black"
                    text = f"{value:.2f}" if np.isfinite(value) else "–"
                    axis.text(
                        j, i, text, ha="center", va="center", fontsize=8, color=colour, fontweight="bold" if i == j else None
                    )
            axis.set_xticks(range(len(domains)), [_two_lines(d) for d in domains], **turned)
            axis.set_yticks(range(len(domains)), [_two_lines(d) for d in domains])
            axis.grid(False)
            axis.set_title(f"{arm} ({table.loc[table['arm'] == arm, 'kind'].iloc[0]})", fontsize=8, pad=8)
            axis.set_xlabel("tested on")
        axes[0][0].set_ylabel("trained on")
        figure.colorbar(image, ax=axes[0], shrink=0.8, label="AUROC, mean over folds")
        if below:
            for axis in axes[1]:
                axis.remove()
            _by_test_domain(figure, figure.add_subplot(axes[1][0].get_gridspec()[1, :]), tested, arms, domains, human)
    return figure


def _by_test_domain(
    figure: Figure, axis: Axes, tested: pd.DataFrame, arms: list[str], domains: list[str], human: pd.DataFrame
) -> None:
    """Balanced accuracy in (filled) and out of domain (open), with SD, and the raters of each domain."""
    step = 0.8 / (2 * len(arms))
    known = list(dict.fromkeys(tested["arm"]))  # so that an arm looks as it does in Fig. 1
    for place, (index, arm) in enumerate((known.index(arm), arm) for arm in arms):
        for side, where in enumerate((compare.IN_DOMAIN, compare.OUT_OF_DOMAIN)):
            part = tested[(tested["arm"] == arm) & (tested["where"] == where)].set_index("domain").reindex(domains)
            x = np.arange(len(domains)) + (2 * place + side - len(arms) + 0.5) * step
            style = {"marker": MARKERS[index % len(MARKERS)], "color": to_hex(f"C{index}")} | ({"mfc": "white"} if side else {})
            axis.errorbar(
                x, part["mean"], part["sd"].fillna(0), capsize=2.5, linestyle="none", label=f"{arm}, {where}", **style
            )
    for i, domain in enumerate(domains):
        _raters(axis, human, domain, (i - 0.45, i + 0.45), named=False)
    axis.axhline(0.5, color="0.55", linewidth=0.9, linestyle=":", label="chance")
    axis.set_xticks(range(len(domains)), [_two_lines(d) for d in domains])
    axis.grid(axis="x", visible=False)
    axis.set(xlabel="tested on", ylabel="balanced accuracy", xlim=(-0.5, len(domains) - 0.5), ylim=(None, 1.0))
    _legend_below(figure, axis)


def _legend_below(figure: Figure, axis: Axes) -> None:
    """A panel's legend under the figure, where it covers no data: arms first, then lines, each name once."""
    handles, names = axis.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: not isinstance(handles[i], ErrorbarContainer))
    unique = {names[i]: handles[i] for i in order}
    figure.legend(list(unique.values()), list(unique), loc="outside lower center", ncols=2)


def best_arms(table: pd.DataFrame) -> list[str]:
    """The end-to-end arms of a `domain_matrix` and the probe with the highest mean out of domain."""
    end_to_end = list(dict.fromkeys(table.loc[table["kind"] == compare.END_TO_END, "arm"]))
    out = table[(table["kind"] == compare.PROBE) & (table["domain"] != table["train_domain"])]
    return end_to_end + ([str(out.groupby("arm")["mean"].mean().idxmax())] if len(out) else [])


def inflation(study: Study, table: pd.DataFrame) -> Figure:
    """One probe under each way to split, a line a scheme: what it leaks at the largest size, and the AUROC at every size.

    table: as `mfcore.compare_schemes.inflation` returns it.
    """
    schemes = list(dict.fromkeys(table["scheme"]))
    full = table[table["size"] == table["size"].max()].set_index("scheme").loc[schemes]
    places = np.arange(len(schemes))
    with _drawing(study, 1, 2, (7.4, 0.42 * len(schemes) + 1.5), sharey=True, width_ratios=(1, 1.7)) as (figure, axes):
        leaks, scores = axes[0]
        for shift, column, face, name in (
            (-0.18, "test_on_train_slides", "0.82", "lie on a slide that training sees"),
            (0.18, "test_overlapping_train", "0.35", "share pixels with a training patch"),
        ):
            leaks.barh(places + shift, 100 * full[column], 0.34, color=face, edgecolor="0.25", linewidth=0.6, label=name)
        leaks.set(xlabel="test patches, %", xlim=(0, 100), yticks=places, ylim=(len(schemes) - 0.5, -0.5))
        leaks.set_yticklabels([splits_audit.scheme_title(scheme) for scheme in schemes])
        sizes = sorted(table["size"].unique())
        for index, size in enumerate(sizes):
            part = table[table["size"] == size].set_index("scheme").reindex(schemes)
            at = places + 0.22 * (index - (len(sizes) - 1) / 2)
            label = f"{100 * size:g} % of what testing leaves"
            scores.errorbar(
                part["auroc"], at, xerr=part["auroc_sd"].fillna(0), fmt=MARKERS[index], linestyle="none", capsize=2, label=label
            )
        if compare_schemes.BASE in schemes:
            scores.axvline(
                full.loc[compare_schemes.BASE, "auroc"],
                color="0.4",
                linewidth=0.9,
                linestyle=DASHES[1],
                zorder=0,
                label="by slide, with all of it",
            )
        scores.set_xlabel("AUROC, mean ± SD over folds")
        handles = [handle for axis in (leaks, scores) for handle in axis.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        figure.suptitle(f"{study.inflation.encoder} (probe)", fontsize=9, x=0.01, ha="left", fontweight="bold")
    return figure


def _two_lines(name: str) -> str:
    words = name.split()
    return name if len(words) < 3 else " ".join(words[: len(words) // 2]) + "\n" + " ".join(words[len(words) // 2 :])
