"""Every encoder: what its card says, and whether the study has its embeddings."""

import contextlib
import json

import pandas as pd

from mfcore import store
from mfcore.analysis.exhibit import Exhibit
from mfcore.encoders import weights
from mfcore.encoders.card import (
    TABLE_1,
    EncoderCard,
    EncoderError,
    card_table,
    cards,
    unavailable,
)
from mfcore.encoders.readout import READOUTS
from mfcore.study import pretrained
from mfcore.study.study import Study

GROUPS = {
    "anywhere": "With no account and no hub",
    "paper": "Table 1 of Ganz et al. 2024",
    "newer": "Other encoders of pathology",
    "photographs": "Trained on photographs, or on pictures from the web",
    "own": "Of this study alone",
    "variants": "Variants: the same weights, used otherwise",
    "none": "Published, but without a card: embeddings made elsewhere can stand in",
}
EVIDENCE = {
    "stated": "stated",
    "magnification": "from a magnification",
    "convention": "by convention",
}


def encoders(study: Study) -> Exhibit:
    """Every encoder: what its card says, and whether it is embedded here; asks no network."""
    rows = encoders_table(study)
    counts, n_cards = rows["is"].value_counts(), (rows["group"] != "none").sum()
    caption = (
        f"There are {n_cards} cards, {counts.get('embedded', 0)} embedded in this study and "
        f"{counts.get('failed', 0)} failed here; what is here was looked up on the "
        "machine that made this table. Gated: ask for access on the page of the weights, then call "
        "`hf auth login`. “By convention” and “from a magnification”: the "
        "authors printed no µm/px. The precision is that on a GPU; on a CPU all is float32."
    )
    order = rows["group"].map([*GROUPS].index).sort_values(kind="stable").index
    shown = rows.loc[order].drop(columns="is").rename(columns={"state": "here"})
    shown["group"] = shown["group"].map(GROUPS)
    return Exhibit("05_encoders", "Encoders", caption, shown, section="Encoders")


def encoders_table(study: Study) -> pd.DataFrame:
    """A row an encoder: all that have a card, the study's others, and those that can't have one.

    Columns: group (of GROUPS), encoder, weights, the facts of `mfcore.encoders.card.card_table`,
    page (its address, "" where it has none), revision, departs, is ("embedded", "failed", "here",
    "not here"), state in words.
    """
    records = [store.read_json(file) for file in study.folder.glob("failures/02_*.json")]
    failures = {record["parameters"]["encoder"]: record["reason"] for record in records}
    rows = []
    for name in dict.fromkeys([*cards(), *study.settings.encoders, *unavailable()]):
        card, problem, run = _card(study, name)
        row = {"group": _group(name, card), "encoder": name} | (_facts(study, card) if card else {})
        if run:
            commit = run.record["facts"].get("weights", "")[:12]
            row |= {"is": "embedded", "state": "embedded in this study"}
            row["state"] += f" (weights {commit})" * bool(commit)
        elif name in failures:
            reason = failures[name].removeprefix("EncoderError: ")
            row |= {"is": "failed", "state": f"failed here: {reason}"}
        else:
            waits = "not embedded yet; " * (name in study.settings.encoders)
            why = problem if waits else unavailable().get(name, problem)
            is_here, words = weights.state(card) if card else (False, why)
            row |= {"is": "here" if is_here else "not here", "state": waits + words}
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _card(study: Study, name: str) -> tuple[EncoderCard | None, str, store.Run | None]:
    """An encoder's card or why it can't be shown, and the current run of its embeddings.

    No network is asked: one named by where it is has the card of its run.
    """
    run = None
    with contextlib.suppress(store.StoreError, EncoderError):
        run = study.embeddings(name)
    try:
        if name in cards() or not name.startswith(("timm:", "hf-hub:", "random:")):
            card = study.card(name)
            made = json.loads(json.dumps(card.identity()))
            return card, "", run if run and run.record["config"]["card"] == made else None
        if run is None:
            return None, "its card is read when it is embedded", None
        facts = {"name": name, "licence": "see its page", "facts": "as embedded in this study"}
        return EncoderCard(**run.record["config"]["card"], **facts), "", run
    except (EncoderError, TypeError, ValueError) as error:
        return None, str(error), None


def _group(name: str, card: EncoderCard | None) -> str:
    if card is None and name in unavailable():
        return "none"
    if name not in cards() or card is None:
        return "own"
    if card.variant_of:
        return "variants"
    if card.source in ("package", "random"):
        return "anywhere"
    if name in TABLE_1:
        return "paper"
    return "newer" if card.learnt_from_slides else "photographs"


def _facts(study: Study, card: EncoderCard) -> dict[str, str]:
    """What a card says, in the words of the table."""
    facts = card_table(card).set_index("fact")["value"].drop("encoder").to_dict()
    evidence = f" ({EVIDENCE[card.evidence]})" if card.evidence else ""
    name = "random weights" if card.source == "random" else card.identifier
    if card.source == "features":
        name = "made elsewhere; no canary: nobody can check whether the encoder is still the same"
    if pretrained.is_of(study.settings, card.name):  # where its results lie is no fact of it
        name = "pretrained by this study"
    return facts | {
        "weights": name,
        "page": weights.page(card.identifier) if card.source.startswith("hub") else "",
        "revision": card.revision,
        "embedding": f"{card.n_dims:,} dimensions: {READOUTS[card.readout].title}",
        "trained at": f"{facts['trained at']}{evidence}",
        "departs": f"of {card.variant_of}; {card.departs}" if card.variant_of else "",
    }
