"""Exhibits of the supplement of no experiment: data, arms, provenance."""

import math

import pandas as pd
import yaml

from mfcore import store
from mfcore.analysis import domains, estimators, scores, switches
from mfcore.analysis.encoders import cards, representations
from mfcore.analysis.exhibit import Exhibit, counted, listed, named, of_what
from mfcore.data import patches
from mfcore.data.labels import schema as labels_schema
from mfcore.measures.statistics import LEVEL, MIN_FOLDS, p_value
from mfcore.study.config import as_dict
from mfcore.study.predictions import PROBE
from mfcore.study.study import Study

PROVENANCE = "Provenance"


def save(study: Study) -> None:
    """Save every exhibit of this module, and those of reference, for the supplement."""
    reference = [estimators.conventions(study)] if study.settings.conventions else []
    if not (study.settings.pretraining or study.settings.tasks):  # else notebook 10 has it
        reference.append(representations.rankme(study))
    reference += [switches.worth(study), provenance(study)]
    for exhibit in (
        data(study),
        arms(study),
        cards.encoders(study),
        *estimators.audits(study),
        *reference,
    ):
        study.show(exhibit)


# ---- data ----


def data(study: Study) -> Exhibit:
    """How many slides and patches of each class every domain has, and how the patches were cut."""
    settings, labels = study.settings, study.labels
    total = patches.counts(labels.assign(domain=labels_schema.SUM))
    table = pd.concat([patches.counts(labels), total], ignore_index=True)
    table["positive_share"] = table["positive_share"].map("{:.0%}".format).str.replace("%", " %")
    names = {"n_slides": "slides"}
    names |= {f"n_{name}": getattr(settings.data, name) for name in ("positive", "negative")}
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
        whole = "slide" if settings.source.has_slides else "image"
        notes.append(f"Beyond the border of the {whole}, reached by {over} as stored: {filled}.")
    if others := facts.get("left_out"):
        notes.append(
            f"The study names its slides and leaves out {counted(others['n_slides'], 'slide')}, "
            f"with {others['n_positive']:,} of class {settings.data.positive} and "
            f"{others['n_negative']:,} of class {settings.data.negative}. Chosen slides estimate "
            f"nothing about all of {settings.source.title}."
        )
    if areas := facts.get("scanned_areas"):
        corner = "scanned area" if settings.data.origin == "scanned_area" else "slide"
        notes.append(
            f"The scanned area of {counted(len(areas), 'slide')} begins off the corner; labels "
            f"count from the corner of the {corner}."
        )
    slides = facts["um_per_px_said_by_study"]
    if not settings.source.has_slides:
        notes += _notes_on_images(study.labels, settings.patches.fit, slides)
    elif slides:
        given = [f"{slide['slide_id']} {slide['um_per_px']:g}" for slide in slides[:10]]
        names = ", ".join(given + ["..."] * (len(slides) > 10))
        count = counted(len(slides), "slide")
        notes.append(f"{count} without µm/px in the file, which the study gives: {names}.")
    own = "" if others else settings.source.note(study.labels)  # of the whole data set
    return [note for note in [*notes, own] if note]


def _notes_on_images(labels: pd.DataFrame, fit: str | None, given: list[dict]) -> list[str]:
    """How patch images became patches, and at which resolution."""
    how = {
        "crop": (
            "Each patch is the centre of an image, with white around it where the image is smaller."
        ),
        "resize": (
            "Each patch is a whole image, resized so that its shorter side fits, and its centre."
        ),
    }
    notes = [how[fit]] if fit else []
    if given:
        values = " or ".join(sorted({f"{one['um_per_px']:g}" for one in given}))
        notes.append(f"The images don't state their µm/px; the study says {values}.")
    if labels["x_l0_px"].notna().any() and "downsample" not in labels:
        notes.append("Where images lie on slides: a px of an image is taken for one level-0 px.")
    if n_unknown := int(labels["um_per_px"].isna().sum()):
        images = counted(n_unknown, "image")
        notes.append(f"The resolution of {images} is unknown: encoders see them at any scale.")
    return notes


# ---- arms ----


def arms(study: Study) -> Exhibit:
    """AUROC of every arm at every size, and what was found (`abstract`)."""
    shown = scores.across_sizes(named(scores.by_size(study), study.settings))
    return Exhibit("05_arms", "Arms", abstract(study), shown, section="Arms")


# ---- in words ----


def abstract(study: Study) -> str:
    """What the study found, in two sentences: the best arm with all the data, and other domains.

    A trained network is compared with the best probe, a probe with the best trained network; where
    all arms are of one side, the best with the second. Further sentences count the missing
    runs, and name arms that give all patches one score.
    """
    settings, table = study.settings, scores.by_size(study)
    full, shared = table[table["size"] == table["size"].max()], scores.common(study.scores)
    full = full.assign(auroc=full["arm"].map(shared.groupby("arm")["auroc"].mean()))
    full, n = full.sort_values("auroc", ascending=False), shared["fold"].nunique()
    lacks = bool(n < full["n_folds"].max())  # some arm lacks a fold
    best, *others = full.itertuples(index=False)
    of_other_side = [row for row in others if (row.kind == PROBE) != (best.kind == PROBE)]
    compared, n_lacking = [best, *(of_other_side or others)[:1]], len(study.failures)
    is_usual = settings.mode == "strict" and not settings.switched
    data = ", ".join(filter(None, [settings.caveat, "" if is_usual else settings.mode_title]))
    limits = f" ({data})" if data else ""
    text = (
        f"With about {best.n_train:,} training patches{limits}, {best.arm} ({best.kind}) "
        f"separates the classes {settings.data.positive} and {settings.data.negative}"
        f"{' best' * bool(others)}: its AUROC is {best.auroc:.2f}"
        f"{f' over the {n} folds that all arms have' * lacks}"
    )
    if others:
        place = f"the best {'trained network' if best.kind == PROBE else 'probe'}"
        text += f", {_lead(*compared, place if of_other_side else 'the second', study)}"
    means = (
        domains.means_table(study.scores, settings)
        .dropna(subset=["out_of_domain"])
        .set_index("arm")
    )
    across = means.loc[[row.arm for row in compared if row.arm in means.index]]
    lines = [
        f"{row.Index} has {row.in_domain:.2f} on that domain and {row.out_of_domain:.2f} on others"
        for row in across.itertuples()
    ]
    text += f". Trained on a single domain, {listed(lines)}" if lines else ""
    text += f". {counted(n_lacking, 'run')} failed or missing" * bool(n_lacking)
    for arm, n in scores.constant(study.predictions).items():
        text += f". In {counted(n, 'fold')} {arm} gives all patches one score, and its AUROC there,"
        text += " 0.50, says nothing"
    return f"{text}."


def _lead(best: tuple, other: tuple, place: str, study: Study) -> str:
    """How far the best arm is above another one, and whether the difference is clear of chance."""
    table, both = scores.pairs(study), [best.arm, other.arm]
    row = table[table["first"].isin(both) & table["second"].isin(both)].iloc[0]
    p, n_folds = row["p_holm"], row["n_folds"]
    is_clear = "clear of chance" if p < 1 - LEVEL else "not clear of chance"
    test = f"this difference is {is_clear} ({p_value(p)}, corrected for all pairs of arms)"
    if math.isnan(p):
        test = "nothing tells this difference from chance, for neither folds nor cases spread it"
        if n_folds < MIN_FOLDS:
            test = "too few folds were run to tell this difference from chance"
    above = round(best.auroc, 2) - round(other.auroc, 2)  # of what is printed
    return f"{above:.2f} above {place}, {other.arm} ({other.auroc:.2f}), and {test}"


# ---- provenance ----


def provenance(study: Study) -> Exhibit:
    """What made the numbers: commit, machine, packages, seeds, threads; and every setting."""
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
    rows = {
        "commit": "; ".join(sorted(commits)),
        "machine": f"Python {newest['python']}, {system}",
        "packages": ", ".join(f"{name} {number}" for name, number in newest["packages"].items()),
        "seeds": f"{seeds}splits {study.seed}",
        "runs": f"{len(records)} finished, {minutes:.1f} minutes in all",
        "threads": "; ".join(f"{key} {' or '.join(sorted(n))}" for key, n in threads.items()),
    }
    rows |= _settings(study)
    table = pd.DataFrame(rows.items(), columns=["what", "value"])
    caption = (
        "What made the numbers. The folder of every run has a `run.json` with config, inputs, "
        "commit and checksums."
    )
    title = "Code, machine, seeds"
    return Exhibit("05_provenance", title, caption, table, section=PROVENANCE)


def _settings(study: Study) -> dict[str, str]:
    """Every setting of the study as YAML, by section: a row an entry where it has several."""
    rows = {}
    for section, content in as_dict(study.settings).items():
        is_list = isinstance(content, list) and content and isinstance(content[0], dict)
        parts = (
            {f"{section}: {one['name']}": one for one in content} if is_list else {section: content}
        )
        for name, part in parts.items():
            text = yaml.safe_dump(part, sort_keys=False, default_flow_style=True, width=10**6)
            rows[f"setting {name}"] = text.removesuffix("...\n").strip()
    return rows
