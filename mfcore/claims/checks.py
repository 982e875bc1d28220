"""Named checks: what a study's labels, networks, settings and runs are, measured for the rows that compare no arms."""

import re
from collections.abc import Sized

import pandas as pd

from mfcore.analysis import scores as analysis_scores
from mfcore.claims import rows
from mfcore.claims.rows import Row
from mfcore.claims.rules import NOT_REPRODUCED, UNCLEAR, Finding
from mfcore.claims.scores import NO_CROSS_DOMAIN, Material, Untestable
from mfcore.encoders.card import EncoderCard, cards
from mfcore.study import predictions as study_predictions
from mfcore.study.config import Network

N_CLASSES = 1000  # of the classifier that the printed size of an ImageNet network may include
UNIT = ["train_domain", "fold", "size"]


def _need(what: Sized, otherwise: str) -> Sized:
    """What is not empty; raises Untestable with ``otherwise``."""
    if not len(what):
        raise Untestable(otherwise)
    return what


# ---- the study's label table ----


def annotations(material: Material, row: Row) -> Finding:
    """The count of one class; ``other`` is what the paper prints for the other class."""
    label, other = row.arguments["label"], row.arguments.get("other")
    n = int((material.labels["label"] == label).sum())
    name = material.study.data.positive if label else material.study.data.negative
    swapped = n == other != row.expected
    why = ["these labels have the paper's two counts the other way round: it prints them swapped"] if swapped else []
    return Finding(f"{n:,} {name}s", value=n, why=why)


def all_annotations(material: Material, row: Row) -> Finding:
    """The annotations of both classes."""
    n = len(material.labels)
    return Finding(f"{n:,} annotations of the two classes", value=n)


def slides(material: Material, row: Row) -> Finding:
    """Slides that hold an annotation."""
    n = material.labels["slide_id"].nunique()
    return Finding(f"{n:,}", value=n)


def domains(material: Material, row: Row) -> Finding:
    """The tumours by name."""
    names, expected = sorted(material.labels["domain"].unique()), row.arguments["domains"]
    return Finding(f"{len(names)}: {', '.join(names)}", value=names == expected, difference=float(len(names) - len(expected)))


def less_than_other(material: Material, row: Row) -> Finding:
    """This data set's annotations and those that the paper prints for the other data set: ``sign`` 1 expects more here."""
    n, printed = len(material.labels), row.arguments.get(material.study.data.source)
    if printed is None:
        return Finding(f"{n:,} annotations")
    difference = n - printed["n"]
    text = f"{n:,}; printed for {printed['other']}: {printed['n']:,}"
    return Finding(text, value=printed["sign"] * difference > 0, difference=float(difference))


def resolution(material: Material, row: Row) -> Finding:
    """Level 0 of every slide in µm/px, within 1 % of 0.25: the released code reads level 0 as it is."""
    study, values = material.study, material.labels.groupby("slide_id")["um_per_px"].first()
    if values.isna().any():
        raise Untestable("the label table does not have the µm/px of every slide")
    off = (values / 0.25 - 1).abs()
    n_near = int((off <= 0.01).sum())
    text = f"level 0 is at {values.min():.4f} to {values.max():.4f} µm/px; {n_near} of {len(values)} slides within 1 % of 0.25"
    stated = study.data.um_per_px is not None or study.data.um_per_px_by_scanner
    why = ["the study states the µm/px of slides that do not state it"] if stated else []
    is_image = not study.source.has_slides
    resampled = study.switches.resolution == "target" and not is_image
    why += [f"this study resamples to {study.patches.um_per_px} µm/px" if resampled else "this study reads patches as scanned"]
    barred = ["its patches do not state their µm/px: 0.25 is taken for them"] if is_image else []
    difference = float(values.loc[off.idxmax()] - 0.25)
    return Finding(text, value=n_near == len(values), difference=difference, why=why, barred=barred)


# ---- networks, from the cards of encoders ----


def _foundation() -> dict[str, EncoderCard]:
    return {name: cards()[name] for name in rows.facts("arms")["foundation"]}


def n_models(material: Material, row: Row) -> Finding:
    """The foundation models of the paper's Tab. 1."""
    return Finding(f"{len(_foundation())}", value=len(_foundation()))


def are_transformers(material: Material, row: Row) -> Finding:
    """Whether every foundation model is a vision transformer."""
    are_vits = [card.architecture.startswith("vit_") for card in _foundation().values()]
    return Finding(f"{sum(are_vits)} of {len(are_vits)}", value=all(are_vits))


def are_ordered(material: Material, row: Row) -> Finding:
    """Whether the foundation models are ordered by size, to three digits."""
    sizes = [float(f"{card.n_parameters:.3g}") for card in _foundation().values()]
    return Finding(", ".join(f"{size / 1e6:,.0f}M" for size in sizes), value=sizes == sorted(sizes, reverse=True))


def parameters(material: Material, row: Row) -> Finding:
    """Parameters of a built architecture; of an ImageNet network with or without its classifier, whichever is nearer."""
    card, kind = cards()[row.arguments["encoder"]], row.arguments.get("type", "")
    counts = {"": card.n_parameters}
    if card.name in rows.facts("arms")["imagenet"]:
        counts[f" with a classifier of {N_CLASSES:,} classes"] = card.n_parameters + (card.n_dims + 1) * N_CLASSES
    nearest = min(counts.values(), key=lambda n: abs(n - row.expected))
    text = f"{card.architecture}: {', '.join(f'{n / 1e6:,.1f}M{what}' for what, n in counts.items())}"
    if not card.architecture.startswith(kind):
        return Finding(text, NOT_REPRODUCED, float(nearest - row.expected), why=[f"not a {kind}"])
    off = f"the built network's size is {100 * (nearest / row.expected - 1):+.1f} % off the printed size"
    return Finding(text, value=nearest, why=[off] if abs(nearest - row.expected) > row.tolerance else [])


def n_patch_tokens(card: EncoderCard) -> int:
    """Patch tokens of a vision transformer at its card's crop, without class and register tokens."""
    named = re.search(r"patch(\d+)", card.architecture)
    side = card.arguments.get("patch_size") or (int(named[1]) if named else 0)
    if not isinstance(side, int) or not side:
        raise ValueError(f"{card.name}: its architecture {card.architecture!r} names no patch size")
    return (card.crop_px // side) ** 2


def patch_tokens(material: Material, row: Row) -> Finding:
    """Patch tokens of Virchow and Virchow2, and whether their cards' mean is over these tokens alone."""
    counts = {name: n_patch_tokens(cards()[name]) for name in ("virchow", "virchow2")}
    n_released = counts["virchow2"] + cards()["virchow2"].n_prefix_tokens - 1
    why = f"the released code's mean for Virchow2 is over {n_released}: it counts the registers in"
    why += ", and so does this study" * (material.study.switches.encoder_input == "released")
    is_right = all(n == 256 and cards()[name].readout == "class+mean" for name, n in counts.items())
    text = ", ".join(f"{name} {n}" for name, n in counts.items())
    return Finding(text, value=is_right, difference=float(max(counts.values()) - 256), why=[why])


def class_tokens(material: Material, row: Row) -> Finding:
    """Whether the other transformers are read out by their class token alone."""
    names = [name for name in (*_foundation(), "vit_huge_in21k") if name not in ("virchow", "virchow2")]
    readouts = {name: cards()[name].readout for name in names}
    text = ", ".join(f"{name} {readout}" for name, readout in readouts.items())
    return Finding(text, value=set(readouts.values()) == {"class"})


# ---- the study's settings and runs ----


def patch_px(material: Material, row: Row) -> Finding:
    """The side of the study's patches."""
    side = material.study.patches.size_px
    barred = [] if side == row.expected else ["this study's patches are of another size by design"]
    return Finding(f"{side}", value=side, barred=barred)


def _end_to_end(material: Material) -> dict[str, Network]:
    return {network.name: network for network in material.study.networks if network.lora is None}


def learning_rate(material: Material, row: Row) -> Finding:
    """Whether the learning rate of end-to-end trainings reached 80 % of ``max_lr`` and never more, by their histories."""
    networks, highest = _end_to_end(material), {}
    for run in material.runs.values():
        name = run.identity["config"].get("network", {}).get("name")
        history = study_predictions.history(run) if name in networks else ()
        if len(history):
            highest[name] = max(highest.get(name, 0.0), float(history["learning_rate"].max()))
    _need(highest, "no end-to-end training has left its history")
    text = ", ".join(f"{name} {rate:.3g} (asked for: {networks[name].max_lr:g})" for name, rate in highest.items())
    published = row.arguments["max_lr"]
    as_published = [rate for name, rate in highest.items() if networks[name].max_lr == published]
    if not as_published:
        return Finding(text, barred=["this study's networks have another learning rate by design"])
    top = max(as_published)
    return Finding(text, value=0.8 * published <= top <= published * (1 + 1e-6), difference=top - published)


def best_epoch(material: Material, row: Row) -> Finding:
    """Whether the study tests the epoch with the lowest validation loss."""
    epoch = material.study.switches.epoch
    _need([network for network in material.study.networks if network.name in material.arms], "no network has scores here")
    return Finding(f"this study tests the {epoch} epoch", value=epoch == "best")


def augmentation(material: Material, row: Row) -> Finding:
    """Which of the four kinds of augmentation the networks' settings have; flips always are on."""
    kinds = {"colour jitter": "colour_probability", "blurring": "blur_probability", "rotations": "rotation_probability"}
    networks = {name: network for name, network in _end_to_end(material).items() if name in material.arms}
    _need(networks, "no network trained end to end has scores here")
    missing = [
        f"{name} without {kind}" for name, one in networks.items() for kind, key in kinds.items() if not getattr(one, key)
    ]
    return Finding("; ".join(missing) or f"all four, in {', '.join(networks)}", value=not missing)


def trainings(material: Material, row: Row) -> Finding:
    """The fewest fits on all domains that any arm has."""
    splits = material.study.splits
    is_designed = list(splits.sizes) == row.arguments["sizes"] and splits.n_folds == row.arguments["n_folds"]
    barred = "" if is_designed else f"this study has {splits.n_folds} folds and {len(splits.sizes)} sizes by design"
    return _fits(material.mixed.drop_duplicates(["arm", "fold", "size"]), row, barred)


def sessions(material: Material, row: Row) -> Finding:
    """The fewest fits on single domains that any arm has."""
    crossed = _need(material.crossed, NO_CROSS_DOMAIN)
    n_domains, n_folds = crossed["train_domain"].nunique(), material.study.splits.n_folds
    is_designed = (n_folds, n_domains) == (row.arguments["n_folds"], row.arguments["n_domains"])
    barred = "" if is_designed else f"this study has {n_folds} folds and {n_domains} domains by design"
    return _fits(crossed.drop_duplicates(["arm", "fold", "train_domain"]), row, barred)


def _fits(fits: pd.DataFrame, row: Row, barred: str) -> Finding:
    counts = _need(fits, "no arm has scores here").groupby("arm").size()
    low, high = int(counts.min()), int(counts.max())
    short = ", ".join(f"{arm} {n}" for arm, n in counts[counts != row.expected].head(4).items())
    return Finding(
        f"{low if low == high else f'{low} to {high}'} for each of {len(counts)} arms",
        value=low,
        why=[f"not complete: {short}"] if short and not barred else [],
        barred=[barred] if barred else [],
    )


def _share(material: Material, shares: pd.Series) -> Finding:
    """The mean of shares, with their range."""
    is_by_slide = material.study.switches.split_by not in ("annotation", "annotation_buffered")
    why = ["whole slides are drawn here, so that shares of annotations vary"] if is_by_slide else []
    lowest, mean, highest = (100 * share for share in (shares.min(), shares.mean(), shares.max()))
    span = f" ({lowest:.1f} to {highest:.1f} %)" if len(shares) > 1 else ""
    return Finding(f"{mean:.1f} %{span}", value=float(shares.mean()), why=why)


def test_share(material: Material, row: Row) -> Finding:
    """Test patches as a share of all annotations, the mean over folds."""
    full = _need(analysis_scores.full_size(material.scores), "no arm has scores here")
    return _share(material, full.groupby("fold")["n_test"].first() / len(material.labels))


def validation_share(material: Material, row: Row) -> Finding:
    """Validation patches among those that train or validate, at the largest size."""
    n = analysis_scores.full_size(material.splits).groupby("role").size()
    return _share(material, n[["val"]] / (n["val"] + n["train"]))


def training_share(material: Material, row: Row) -> Finding:
    """Training patches at 100 % as a share of the data set's annotations."""
    full = material.mixed[material.mixed["size"] == 1.0]
    share = float(_need(full, "no fits at 100 % in the results")["n_train"].mean() / len(material.labels))
    return Finding(f"{100 * share:.1f} % of the annotations train at 100 %", value=share)


def in_domain_share(material: Material, row: Row) -> Finding:
    """In-domain test patches as a share of their domain's annotations, the mean over domains."""
    inside = material.crossed[material.crossed["train_domain"] == material.crossed["domain"]]
    n = _need(inside, NO_CROSS_DOMAIN)["domain"].map(material.labels["domain"].value_counts())
    return _share(material, (inside["n_test"] / n).groupby(inside["domain"]).mean())


def tested_domains(material: Material, row: Row) -> Finding:
    """Whether every fit on one domain is tested on every domain."""
    crossed = _need(material.crossed, NO_CROSS_DOMAIN)
    n_domains = crossed["domain"].nunique()
    tested = crossed.groupby(["arm", "train_domain", "fold"])["domain"].nunique()
    n_all = int((tested == n_domains).sum())
    text = f"{n_all} of {len(tested)} fits tested on each of {n_domains} domains"
    return Finding(text, value=n_all == len(tested), difference=float(n_all - len(tested)))


def same_patches(material: Material, row: Row) -> Finding:
    """Whether arms that share a training were tested on the same patches, and trained on as many."""
    table = material.collected.predictions if material.collected else _need((), "no predictions in the results")
    if table["arm"].nunique() < 2:
        raise Untestable("it takes two arms")
    ordered = table.sort_values("patch_id", kind="stable")
    of_arm = ordered.groupby([*UNIT, "arm"], observed=True, sort=False).agg(
        tested=("patch_id", lambda ids: hash(tuple(ids))), n_train=("n_train", "first")
    )
    distinct = of_arm.groupby(UNIT, observed=True).agg(["size", "nunique"])
    shared = distinct[distinct["tested", "size"] > 1]
    same = int(((shared["tested", "nunique"] == 1) & (shared["n_train", "nunique"] == 1)).sum())
    text = f"the same patches in {same} of {len(shared)} trainings that two or more arms share"
    if shared.empty:
        return Finding(text, UNCLEAR)
    return Finding(text, value=same == len(shared), difference=float(same - len(shared)))
