"""Named checks: what a study's labels, networks, settings and runs are, measured for the rows that
compare no arms.

Each returns a `Finding` with the value that a rule judges. Its arguments are those of the row.
"""

import re

import pandas as pd

from mfcore.analysis.scores import full_size
from mfcore.claims.arms import networks
from mfcore.claims.material import Material, Untestable
from mfcore.claims.rules import Finding
from mfcore.encoders.card import cards
from mfcore.study.predictions import history

FIT = ["arm", "train_domain", "fold", "size"]


# ---- the study's label table ----


def annotations(material: Material, label: int | None = None) -> Finding:
    """Annotations of one class, or of both."""
    labels = material.study.labels["label"]
    return Finding(value=len(labels) if label is None else int((labels == label).sum()))


def slides(material: Material) -> Finding:
    """Slides that hold an annotation."""
    return Finding(value=material.study.labels["slide_id"].nunique())


def domains(material: Material, names: list[str]) -> Finding:
    """The tumours by name."""
    present = sorted(material.study.labels["domain"].unique())
    return Finding(
        f"{len(present)}: {', '.join(present)}",
        value=present == names,
        difference=float(len(present) - len(names)),
    )


def less_than_other(material: Material, smaller: str, printed: dict[str, int]) -> Finding:
    """This data set's annotations and those that the paper prints for the other data set."""
    n, source = len(material.study.labels), material.settings.data.source
    other = next(name for name in printed if name != source)
    difference, text = n - printed[other], f"{n:,}; printed for {other}: {printed[other]:,}"
    is_met = difference < 0 if source == smaller else difference > 0
    return Finding(text, value=is_met, difference=float(difference))


def resolution(material: Material) -> Finding:
    """Level 0 of every slide in µm/px, within 1 % of 0.25: the released code reads level 0 as it
    is.
    """
    settings = material.settings
    values = material.study.labels.groupby("slide_id")["um_per_px"].first()
    if values.isna().any():
        raise Untestable("the label table does not have the µm/px of every slide")
    off = (values / 0.25 - 1).abs()
    n_near, has_slides = int((off <= 0.01).sum()), settings.source.has_slides
    text = (
        f"level 0 is at {values.min():.4f} to {values.max():.4f} µm/px; "
        f"{n_near} of {len(values)} slides within 1 % of 0.25"
    )
    is_resampled = has_slides and settings.switches.resolution == "target"
    target = f"resamples to {settings.patches.um_per_px} µm/px"
    return Finding(
        text,
        value=n_near == len(values),
        difference=float(values[off.idxmax()] - 0.25),
        why=[f"this study {target if is_resampled else 'reads patches as scanned'}"],
        barred=(
            [] if has_slides else ["its patches do not state their µm/px: 0.25 is taken for them"]
        ),
    )


# ---- networks, from the cards of encoders ----


def n_models(material: Material, encoders: list[str]) -> Finding:
    """The encoders of a table."""
    return Finding(value=len(encoders))


def are_ordered(material: Material, encoders: list[str]) -> Finding:
    """Whether encoders are ordered by size, to three digits."""
    sizes = [float(f"{cards()[name].n_parameters:.3g}") for name in encoders]
    return Finding(
        ", ".join(f"{size / 1e6:,.0f}M" for size in sizes),
        value=sizes == sorted(sizes, reverse=True),
    )


def cards_say(material: Material, encoders: list[str], field: str, pattern: str) -> Finding:
    """Whether a field of each encoder's card has a pattern."""
    fields = {name: getattr(cards()[name], field) for name in encoders}
    is_met = all(re.fullmatch(pattern, value) for value in fields.values())
    return Finding(", ".join(f"{name} {value}" for name, value in fields.items()), value=is_met)


def parameters(
    material: Material, encoder: str, architecture: str = "", n_classes: int = 0
) -> Finding:
    """Parameters of a built architecture, with a classifier's; 0 where it is of another type."""
    card = cards()[encoder]
    n = card.n_parameters + n_classes * (card.n_dims + 1)
    text = (
        f"{card.architecture}: {n / 1e6:,.1f}M"
        + f" with a classifier of {n_classes:,} classes" * (n_classes > 0)
    )
    return Finding(text, value=n if card.architecture.startswith(architecture) else 0)


def patch_tokens(material: Material, encoders: list[str]) -> Finding:
    """Patch tokens at the cards' crop, and whether their mean is read with the class token."""
    counts, readouts = {}, set()
    for name in encoders:
        card = cards()[name]
        side_px = int(re.search(r"patch(\d+)", card.architecture)[1])
        counts[name] = (card.crop_px // side_px) ** 2
        readouts.add(card.readout)
    return Finding(
        ", ".join(f"{name} {n}" for name, n in counts.items()),
        value=set(counts.values()) == {256} and readouts == {"class+mean"},
        difference=float(max(counts.values()) - 256),
    )


# ---- the study's settings and runs ----


def patch_px(material: Material, designed: int) -> Finding:
    """The side of the study's patches."""
    side = material.settings.patches.size_px
    return Finding(
        value=side,
        barred=[] if side == designed else ["this study's patches are of another size by design"],
    )


def learning_rate(material: Material, max_lr: float) -> Finding:
    """Whether the histories of end-to-end trainings reach 80 % of ``max_lr``, and never more."""
    networks = material.settings.networks
    names = [one.name for one in networks if not one.lora and one.max_lr == max_lr]
    rates = [
        rate
        for name, run in material.study.runs.items()
        if name.rpartition("-fold")[0] in names
        for rate in history(run).get("learning_rate", [])
    ]
    if not rates:
        raise Untestable(
            f"no network trained end to end at {max_lr:g} by design has left its history"
        )
    highest = max(rates)
    return Finding(
        f"{highest:.3g}",
        value=0.8 * max_lr <= highest <= max_lr * (1 + 1e-6),
        difference=highest - max_lr,
    )


def best_epoch(material: Material) -> Finding:
    """Whether the study tests the epoch with the lowest validation loss."""
    epoch = material.settings.switches.epoch
    barred = [] if material.networks.keys() & material.scored else ["no network has scores here"]
    return Finding(f"this study tests the {epoch} epoch", value=epoch == "best", barred=barred)


def augmentation(material: Material, kinds: list[str]) -> Finding:
    """Whether networks trained end to end have each kind of augmentation; flips always are on."""
    choice = networks(material)
    missing = [
        f"{name} without {kind}"
        for name in choice.names
        for kind in kinds
        if not getattr(material.networks[name], f"{kind}_probability")
    ]
    text = "; ".join(missing) or f"all four, in {', '.join(choice.names)}"
    return Finding(text, value=not missing, barred=choice.barred)


def fits(material: Material, **design: object) -> Finding:
    """The fewest fits of any arm: on single domains for a design of ``n_domains``, else on all."""
    splits = material.settings.splits
    scores = material.crossed if "n_domains" in design else material.mixed
    ours = {"n_folds": splits.n_folds, "sizes": list(splits.sizes)}
    ours["n_domains"] = scores["train_domain"].nunique()
    other = [f"{k} {ours[k]} by design, not {v}" for k, v in design.items() if ours[k] != v]
    counts = scores.drop_duplicates(FIT).groupby("arm").size()
    if counts.empty:
        raise Untestable("no arm has scores here")
    text = f"{counts.min()} ({counts.idxmin()}) to {counts.max()} for each of {len(counts)} arms"
    return Finding(text, value=int(counts.min()), barred=other)


def _share(shares: pd.Series) -> Finding:
    """The mean of shares, with their range."""
    return Finding(
        f"{shares.mean():.1%} ({shares.min():.1%} to {shares.max():.1%})",
        value=float(shares.mean()),
    )


def test_share(material: Material) -> Finding:
    """Test patches as a share of all annotations, the mean over folds."""
    n_test = full_size(material.study.scores).groupby("fold")["n_test"].first()
    return _share(n_test / len(material.study.labels))


def validation_share(material: Material) -> Finding:
    """Validation patches among those that train or validate, at the largest size."""
    n = full_size(material.study.splits).groupby("role").size()
    return Finding(value=float(n["val"] / (n["val"] + n["train"])))


def training_share(material: Material) -> Finding:
    """Training patches at 100 % as a share of the data set's annotations."""
    n_train = material.mixed.loc[material.mixed["size"] == 1.0, "n_train"].mean()
    return Finding(value=float(n_train / len(material.study.labels)))


def in_domain_share(material: Material) -> Finding:
    """In-domain test patches as a share of their domain's annotations, the mean over domains."""
    inside = material.crossed.query("train_domain == domain")
    n = inside["domain"].map(material.study.labels["domain"].value_counts())
    return _share((inside["n_test"] / n).groupby(inside["domain"]).mean())


def tested_domains(material: Material) -> Finding:
    """Whether every fit on one domain is tested on every domain."""
    n_domains = material.crossed["domain"].nunique()
    tested = material.crossed.groupby(FIT)["domain"].nunique()
    n_all = int((tested == n_domains).sum())
    text = f"{n_all} of {len(tested)} fits tested on each of {n_domains} domains"
    return Finding(text, value=n_all == len(tested), difference=float(n_all - len(tested)))


def same_patches(material: Material) -> Finding:
    """Whether arms that share a training were tested on the same patches and trained on as many."""
    fits = material.study.scores.groupby(FIT, sort=False)
    trainings = fits.agg({"tested": "sum", "n_train": "first"}).groupby(FIT[1:])
    shared = trainings.nunique()[trainings.size() > 1]
    same = int((shared == 1).all(axis=1).sum())
    if shared.empty:
        raise Untestable("it takes two arms")
    text = f"the same patches in {same} of {len(shared)} trainings that arms share"
    return Finding(text, value=same == len(shared), difference=float(same - len(shared)))
