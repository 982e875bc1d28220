"""Exhibits of the supplement of no experiment: data, arms, encoders, probes, provenance."""

import contextlib
import json
from collections.abc import Iterator

import pandas as pd
import yaml

from mfcore import store
from mfcore.analysis import domains, estimators as of_estimators, scores, switches
from mfcore.analysis.encoders import representations
from mfcore.analysis.exhibit import (
    Exhibit,
    bounds,
    counted,
    named,
    of_what,
)
from mfcore.data import patches
from mfcore.data.labels import schema as labels_schema
from mfcore.encoders import weights
from mfcore.encoders.card import TABLE_1, EncoderCard, EncoderError, card_table, cards
from mfcore.encoders.readout import READOUTS
from mfcore.study import pretrained
from mfcore.study.config import as_dict
from mfcore.study.study import Study

PROBES, PROVENANCE = "Audit of the probe", "Provenance"
GROUPS = {
    "anywhere": "With no account and no hub",
    "paper": "Table 1 of Ganz et al. 2024",
    "newer": "Other encoders of pathology",
    "photographs": "Trained on photographs",
    "own": "Of this study alone",
    "variants": "Variants: the same weights, used otherwise",
}
EVIDENCE = {
    "stated": "stated",
    "magnification": "from a magnification",
    "convention": "by convention",
}


def save(study: Study) -> None:
    """Save every exhibit of this module, and those of reference, for the supplement."""
    reference = [of_estimators.conventions(study)] if study.settings.conventions else []
    if not (study.settings.pretraining or study.settings.tasks):  # else notebook 10 has it
        reference.append(representations.rankme(study))
    reference += [switches.worth(study), provenance(study)]
    for exhibit in (data(study), arms(study), encoders(study), *estimators(study), *reference):
        study.show(exhibit)


# ---- data ----


def data(study: Study) -> Exhibit:
    """How many slides and patches of each class every domain has, and how the patches were cut."""
    settings, labels = study.settings, study.labels
    total = patches.counts(labels.assign(domain=labels_schema.SUM))
    table = pd.concat([patches.counts(labels), total], ignore_index=True)
    table["positive_share"] = table["positive_share"].map("{:.0%}".format).str.replace("%", " %")
    names = {"n_slides": "slides"}
    names |= {f"n_{name}": f"{getattr(settings.data, name)}s" for name in ("positive", "negative")}
    caption = f"Slides and patches of each domain ({of_what(settings)}). {' '.join(_notes(study))}"
    table = table.rename(columns=names)
    return Exhibit("05_data", "Data", caption.strip(), table, section="Data")


def _notes(study: Study) -> list[str]:
    """What a reader must know of the patches: side, resolution, borders, the source's own note."""
    settings, record = study.settings, study.patches.record
    facts, config = record["facts"], record["config"]
    um_per_px = settings.patches.um_per_px  # None for patches that come as images
    resolution = f" at {um_per_px:g} µm/px" if um_per_px else ""
    if config["resolution"] == "native":
        resolution = " at each slide's own µm/px"
    side = f"{settings.patches.size_px} px{resolution}"
    notes = [f"Patches of {side}, stored with {settings.stored_px} px."]
    if n_shifted := facts["n_patches_shifted"]:
        notes.append(f"{counted(n_shifted, 'patch', 'patches')} near a border, moved inward.")
    if n_over := facts["n_patches_over_edge"]:
        over, filled = counted(n_over, "patch", "patches"), config.get("border", "white")
        notes.append(f"Beyond the border of the slide, reached by {over} as stored: {filled}.")
    if areas := facts.get("scanned_areas"):
        corner = "scanned area" if settings.data.origin == "scanned_area" else "slide"
        notes.append(
            f"The scanned area of {counted(len(areas), 'slide')} begins off the corner; labels "
            f"count from the corner of the {corner}."
        )
    if slides := facts["um_per_px_said_by_study"]:
        given = [f"{slide['slide_id']} {slide['um_per_px']:g}" for slide in slides[:10]]
        names = ", ".join(given + ["..."] * (len(slides) > 10))
        count = counted(len(slides), "slide")
        notes.append(f"{count} without µm/px in the file, which the study gives: {names}.")
    return [note for note in [*notes, settings.source.note(study.labels)] if note]


# ---- arms ----


def arms(study: Study) -> Exhibit:
    """AUROC of every arm at every size, and what was found (`domains.abstract`)."""
    shown = scores.wide(named(scores.by_size(study), study.settings))
    return Exhibit("05_arms", "Arms", domains.abstract(study), shown, section="Arms")


# ---- encoders ----


def encoders(study: Study) -> Exhibit:
    """Every encoder: what its card says, and whether it is embedded here; asks no network."""
    rows = encoders_table(study)
    counts = rows["is"].value_counts()
    states = {
        "embedded": "embedded in this study",
        "failed": "failed here",
        "here": "could be used at once",
    }
    parts = [f"{counts[key]} {words}" for key, words in states.items() if key in counts]
    caption = (
        f"{', '.join([f'There are {len(rows)} cards', *parts])}; what is here was looked up on the "
        "machine that made this table. “By convention” and “from a magnification”: the "
        "authors printed no µm/px. The precision is that on a GPU; on a CPU all is float32."
    )
    rows = rows.sort_values("group", key=lambda groups: groups.map([*GROUPS].index), kind="stable")
    shown = (
        rows.assign(group=rows["group"].map(GROUPS))
        .drop(columns="is")
        .rename(columns={"state": "here"})
    )
    return Exhibit("05_encoders", "Encoders", caption, shown, section="Encoders")


def encoders_table(study: Study) -> pd.DataFrame:
    """A row an encoder: all of the registry, and the study's others.

    Columns: group (of GROUPS), encoder, weights, the facts of `mfcore.encoders.card.card_table`,
    page (its address, "" where it has none), revision, departs, is ("embedded", "failed", "here",
    "not here"), state in words.
    """
    records = [store.read_json(file) for file in study.folder.glob("failures/02_*.json")]
    failures = {record["parameters"]["encoder"]: record["reason"] for record in records}
    rows = []
    for name in dict.fromkeys([*cards(), *study.settings.encoders]):
        card, problem, run = _card(study, name)
        row = {"group": _group(name, card), "encoder": name} | (_facts(study, card) if card else {})
        if run:
            commit = run.record["facts"].get("weights", "")[:12]
            state = "embedded", "embedded in this study" + f" (weights {commit})" * bool(commit)
        elif name in failures:
            state = "failed", f"failed here: {failures[name].removeprefix('EncoderError: ')}"
        else:
            is_here, words = weights.state(card) if card else (False, problem)
            waits = "not embedded yet; " * (name in study.settings.encoders)
            state = ("here" if is_here else "not here"), waits + words
        rows.append(row | {"is": state[0], "state": state[1]})
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


# ---- one encoder, several ways ----


def estimators(study: Study) -> Iterator[Exhibit]:
    """The estimators of the probe audit, and the AUROC of each on every encoder audited."""
    settings, runs = study.settings, {}
    for encoder in settings.probe_audit:
        with contextlib.suppress(store.StoreError):
            runs[encoder] = of_estimators.find(study, encoder)
    if runs:
        yield _definitions(next(iter(runs.values())))
    for encoder, run in runs.items():
        titles, fits = of_estimators.titles_of(run), of_estimators.scores(run)
        shown = of_estimators.by_size(of_estimators.table(fits), titles)
        against = of_estimators.differences(fits, of_estimators.folds(run, study.seed))
        words = {
            titles[
                row.estimator
            ]: f"{row.difference:+.3f} ({bounds(row.low, row.high) or 'no interval'})"
            for row in against.itertuples()
        }
        shown["less this study's probe"] = shown["estimator"].map(words).fillna("–")
        caption = (
            f"AUROC of each estimator on the embeddings of {encoder} by size, mean ± SD over "
            "folds, and with all the data less that of this study's own probe, with its 95 % "
            f"interval ({of_what(settings)})."
        )
        name, title = f"03_estimators_{store.file_name(encoder)}", f"Estimators by size: {encoder}"
        yield Exhibit(name, title, caption, shown, section=PROBES)
    if runs and "amibr_probes.csv" in settings.source.published:
        caption = (
            "Published on AMi-Br, for orientation: Banerjee et al. 2025 (arXiv 2506.21444), from "
            "the outputs of their public notebooks, on its held-out 826 figures. These are other "
            "slides and splits than this study's."
        )
        table = scores.published("amibr_probes.csv")
        yield Exhibit("03_published_probes", "Published", caption, table, section=PROBES)


def _definitions(run: store.Run) -> Exhibit:
    """What each estimator is, as the record of an audit describes it."""
    shown = pd.DataFrame(run.identity["config"]["estimators"].values())
    words = {
        "weighs_classes": {True: "both alike", False: "no"},
        "uses_validation": {True: "training, and validation for stopping", False: "training only"},
    }
    shown = shown.assign(**{name: shown[name].map(each) for name, each in words.items()})
    names = {"title": "estimator", "uses_validation": "patches used", "source": "after"}
    columns = [
        "title",
        "objective",
        "features",
        "optimiser",
        "weighs_classes",
        "uses_validation",
        "source",
    ]
    caption = (
        "What published work calls a linear probe, and one control, given the same embeddings and "
        "splits. D: dimensions of the embedding, K: classes, W: weights of K rows, w: their "
        "difference. An estimator that doesn't weigh the classes scores the rarer class low, which "
        "AUROC doesn't see."
    )
    table = shown[columns].rename(columns=names)
    return Exhibit("03_estimators", "The estimators", caption, table, section=PROBES)


# ---- provenance ----


def provenance(study: Study) -> Exhibit:
    """What made the numbers: commit, machine, packages, seeds, threads, and every setting."""
    records = [store.read_json(path) for path in sorted(study.folder.glob("*/run.json"))]
    newest = max(records, key=lambda record: record["finished"])["environment"]
    commits, threads = set(), {}
    for record in records:
        made = record["environment"]
        changes = " with uncommitted changes" * bool(made["uncommitted_changes"])
        commits.add(f"{made['commit'] or 'unknown'}{changes}")
        n_threads = made.get("n_threads")  # lacks in records of an older version
        threads.setdefault(record["stage"], set()).add(str(n_threads or "not recorded"))
    system = f"{newest['system']} {newest['machine']}, {newest['n_cores']} cores"
    seeds = f"data {study.settings.data.seed}, " * study.settings.synthetic
    minutes = sum(record["seconds"] for record in records) / 60
    text = yaml.safe_dump(
        as_dict(study.settings), sort_keys=False, default_flow_style=True, width=10**6
    )
    rows = {
        "commit": "; ".join(sorted(commits)),
        "machine": f"Python {newest['python']}, {system}",
        "packages": ", ".join(f"{name} {number}" for name, number in newest["packages"].items()),
        "seeds": f"{seeds}splits {study.seed}",
        "runs": f"{len(records)} finished, {minutes:.1f} minutes in all",
        "threads": "; ".join(f"{key} {' or '.join(sorted(n))}" for key, n in threads.items()),
        "every setting": text.strip(),
    }
    table = pd.DataFrame(rows.items(), columns=["what", "value"])
    caption = (
        "What made the numbers. The folder of every run has a `run.json` with config, inputs, "
        "commit and checksums."
    )
    title = "Code, machine, seeds"
    return Exhibit("05_provenance", title, caption, table, section=PROVENANCE)
