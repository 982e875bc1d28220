"""Every encoder card of the registry and of the study, and what is with each on this machine and in this study."""

import contextlib
import json

import pandas as pd

from mfcore import store
from mfcore.analysis import exhibit
from mfcore.analysis.exhibit import Exhibit
from mfcore.encoders import weights
from mfcore.encoders.card import TABLE_1, EncoderCard, EncoderError, cards
from mfcore.encoders.readout import READOUTS
from mfcore.study import pretrained
from mfcore.study.study import Study

GROUPS = {
    "anywhere": "With no account and no hub",
    "paper": "Table 1 of Ganz et al. 2024",
    "newer": "Other encoders of pathology",
    "photographs": "Trained on photographs",
    "own": "Of this study alone",
    "variants": "Variants: the same weights, used otherwise",
}
EVIDENCE = {"stated": "stated by its authors", "magnification": "from a magnification", "convention": "by convention"}
STATISTICS = {
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "ImageNet's",
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "0.5, 0.5",
}


def encoders(study: Study) -> Exhibit:
    """Every encoder: weights, terms, input, embedding, resolution, and whether it is embedded here; asks no network."""
    rows = table(study)
    counts = rows["is"].value_counts()
    told = {"embedded": "embedded in this study", "failed": "failed here", "here": "could be used at once"}
    parts = [f"There are {len(rows)} cards", *(f"{counts[key]} {words}" for key, words in told.items() if key in counts)]
    caption = (
        f"{', '.join(parts)}; what is here was looked up on the machine that made this table. Statistics are mean and standard "
        "deviation; “by convention” and “from a magnification”: the authors printed no µm/px. The precision is that on a GPU; "
        "on a CPU all is float32."
    )
    rows = rows.sort_values("group", key=lambda groups: groups.map([*GROUPS].index), kind="stable")
    shown = rows.assign(group=rows["group"].map(GROUPS)).drop(columns="is").rename(columns={"state": "here"})
    return Exhibit("05_encoders", "Encoders", caption, shown, section="Encoders")


def table(study: Study) -> pd.DataFrame:
    """A row an encoder: all of the registry, and the study's others.

    Columns: group (of GROUPS), encoder, weights, page (its address, "" where it has none), terms, input, statistics,
    embedding, size, um_per_px, departs, facts, is ("embedded", "failed", "here", "not here"), state in words.
    """
    runs, failures, settings = _runs(study), _failures(study), study.settings
    rows = []
    for name in [*cards(), *(name for name in settings.encoders if name not in cards())]:
        card, problem = _card(study, name, runs)
        what, words = _state(study, name, card or problem, runs, failures)
        known = _facts(card) if card else {}
        if known and pretrained.is_of(settings, name):
            known["weights"] = "pretrained by this study"  # where its results lie is no fact of it
        rows.append({"group": _group(name, card), "encoder": name, **known, "is": what, "state": words})
    return pd.DataFrame(rows).fillna("")


def _card(study: Study, name: str, runs: dict[str, store.Run]) -> tuple[EncoderCard | None, str]:
    """The card of an encoder without asking a network, or why it can't be shown; one named by where it is has its run's."""
    try:
        if name in cards() or not name.startswith(("timm:", "hf-hub:", "random:")):
            return study.card(name), ""
        if name not in runs:
            return None, "its card is read when it is embedded"
        content = runs[name].record["config"]["card"]
        return EncoderCard(**content, name=name, licence="see its page", facts="as embedded in this study"), ""
    except (EncoderError, TypeError, ValueError) as error:
        return None, str(error)


def _group(name: str, card: EncoderCard | None) -> str:
    if name not in cards() or card is None:
        return "own"
    if card.variant_of:
        return "variants"
    if card.source in ("package", "random"):
        return "anywhere"
    if name in TABLE_1:
        return "paper"
    return "newer" if card.learnt_from_slides else "photographs"


def _facts(card: EncoderCard) -> dict[str, str]:
    """What a card says, in the words of the table."""
    is_hub = card.source.startswith("hub")
    mean, std = tuple(card.mean), tuple(card.std)
    numbers = " / ".join(", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    crop = f"centre {card.crop_px} of {card.resize_px}" if card.crop_px != card.resize_px else card.crop_px
    resolution = " / ".join(f"{value:g}" for value in card.um_per_px)
    evidence = f", {EVIDENCE[card.evidence]}" if card.evidence else ""
    revision = (card.revision or "not pinned")[:10] if is_hub else card.revision
    terms = [revision, "" if card.source == "random" else card.licence, "gated" if card.gated else ""]
    return {
        "weights": "random weights" if card.source == "random" else card.identifier,
        "page": weights.page(card.identifier) if is_hub else "",
        "terms": ", ".join(filter(None, terms)),
        "input": f"{crop} px, {card.interpolation}",
        "statistics": STATISTICS.get((mean, std), numbers),
        "embedding": f"{card.n_dims:,} dimensions: {READOUTS[card.readout].title}",
        "size": f"{card.n_parameters / 1e6:,.1f} million parameters, {card.precision}",
        "um_per_px": f"{resolution} µm/px{evidence}" if resolution else _no_resolution(card),
        "departs": f"of {card.variant_of}; {card.departs}" if card.variant_of else "",
        "facts": f"{card.architecture}; {card.n_parameters:,} parameters, "
        f"{exhibit.counted(card.n_prefix_tokens, 'prefix token')}; mean / std {numbers}; "
        f"revision {card.revision or 'not pinned'}. {card.facts}",
    }


def _no_resolution(card: EncoderCard) -> str:
    """Why a card names no resolution of its training images."""
    if card.source == "random":
        return "untrained"
    return "not slides" if card.learnt_from else "not known"


def _state(
    study: Study, name: str, card: EncoderCard | str, runs: dict[str, store.Run], failures: dict[str, str]
) -> tuple[str, str]:
    """What is with an encoder, as `table` says it; ``card`` is in words why there is none where there is none."""
    has_card, differing = isinstance(card, EncoderCard), []
    if name in runs:
        record = runs[name].record
        today = json.loads(json.dumps(card.identity())) if has_card else record["config"]["card"]
        differing = store.differences(record["config"]["card"], today)
        if not differing:
            commit = record["facts"].get("weights", "")
            return "embedded", f"embedded in this study{f' (weights {commit[:12]})' if commit else ''}"
    if name in failures:
        return "failed", f"failed here: {failures[name]}"
    is_here, words = weights.state(card) if has_card else (False, card)
    words = words.replace(weights.page(card.identifier), "its page") if has_card else words
    if differing:
        words = f"embedded by another contract (differing: {', '.join(differing)}), to be embedded again; {words}"
    elif name in study.settings.encoders:
        words = f"not embedded yet; {words}"
    return "here" if is_here else "not here", words


def _runs(study: Study) -> dict[str, store.Run]:
    """The current embeddings of the study's patches, by encoder; where there are none by today's card, others."""
    try:
        key = study.patches.key
    except store.StoreError:
        return {}
    runs = [run for run in store.runs(study.folder, "embeddings") if run.identity["inputs"].get("patches") == key]
    found = {run.identity["name"]: run for run in runs}
    for name in found:
        with contextlib.suppress(store.StoreError, EncoderError):
            found[name] = study.embeddings(name)
    return found


def _failures(study: Study) -> dict[str, str]:
    """Why an encoder's patches weren't embedded, by encoder, on one line each without the error's class."""
    records = [store.read_json(file) for file in sorted(study.folder.glob("failures/02_*.json"))]
    return {record["parameters"]["encoder"]: record["reason"].removeprefix("EncoderError: ") for record in records}
