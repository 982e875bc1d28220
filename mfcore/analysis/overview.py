"""Exhibits of the supplement that belong to no experiment: data, arms, audit of the splits, conventions, provenance."""

import contextlib
from collections.abc import Iterator

import pandas as pd
import yaml

from mfcore import store
from mfcore.analysis import domains, estimators as of_estimators, overview_encoders, representations, scores, switches
from mfcore.analysis.captions import not_drawn
from mfcore.analysis.exhibit import Exhibit, bounds, counted, folds, in_full, listed, marked, of_what, plus_minus
from mfcore.data import patches, splits, splits_audit
from mfcore.data.labels import schema as labels_schema
from mfcore.study.config import SCHEMES, as_dict
from mfcore.study.study import Study

AUDIT, PROBES, PROVENANCE = "Audit of the splits", "Audit of the probe", "Provenance"


def save(study: Study) -> None:
    """Save every exhibit of this module but the audit, for the supplement."""
    reference = [of_estimators.conventions(study)] if study.settings.conventions else []
    if not (study.settings.pretraining or study.settings.tasks):  # else notebook 10 has it
        reference.append(representations.rankme(study))
    reference += [switches.worth(study), provenance(study)]
    for exhibit in (data(study), arms(study), overview_encoders.encoders(study), *estimators(study), *reference):
        study.show(exhibit)


def save_audit(study: Study) -> None:
    """Save the exhibits on the splits, for the supplement."""
    for exhibit in audit(study):
        study.show(exhibit)


# ---- data ----


def data(study: Study) -> Exhibit:
    """How many slides and patches of each class every domain has, and how the patches were cut."""
    settings, labels = study.settings, study.labels
    total = {
        "domain": labels_schema.SUM,
        "n_slides": labels["slide_id"].nunique(),
        "n_positive": int(labels["label"].sum()),
        "n_negative": int((labels["label"] == 0).sum()),
        "positive_share": labels["label"].mean(),
    }
    table = pd.concat([patches.counts(labels), pd.DataFrame([total])], ignore_index=True)
    table["positive_share"] = [f"{100 * share:.0f} %" for share in table["positive_share"]]
    names = {"n_slides": "slides"}
    names |= {f"n_{name}": f"{getattr(settings.data, name)}s" for name in ("positive", "negative")}
    caption = f"Slides and patches of each domain ({of_what(settings)}). {' '.join(_notes(study))}"
    return Exhibit("05_data", "Data", caption.strip(), table.rename(columns=names), section="Data")


def _notes(study: Study) -> list[str]:
    """What a reader must know of the patches: side, resolution, borders, slides without µm/px, and the source's own note."""
    settings, run = study.settings, study.patches
    facts, config = run.record["facts"], run.record["config"]
    um_per_px = settings.patches.um_per_px  # None for patches that come as images
    resolution = f" at {um_per_px:g} µm/px" if um_per_px else ""
    resolution = " at each slide's own µm/px" if config["resolution"] == "native" else resolution
    notes = [f"Patches of {settings.patches.size_px} px{resolution}, stored with {settings.stored_px} px."]
    if n_shifted := facts["n_patches_shifted"]:
        notes.append(f"{counted(n_shifted, 'patch', 'patches')} near a border, moved inward.")
    if n_over := facts["n_patches_over_edge"]:
        over = counted(n_over, "patch", "patches")
        notes.append(f"Beyond the border of the slide, reached by {over} as stored: {config.get('border', 'white')}.")
    if areas := facts.get("scanned_areas"):
        corner = "scanned area" if settings.data.origin == "scanned_area" else "slide"
        slides = counted(len(areas), "slide")
        notes.append(f"The scanned area of {slides} begins off the corner; labels count from the corner of the {corner}.")
    said: dict[tuple[str, float], list[str]] = {}
    for slide in facts["um_per_px_said_by_study"]:
        said.setdefault((slide["scanner"], slide["um_per_px"]), []).append(slide["slide_id"])
    for (scanner, um_per_px), slides in said.items():
        of = f" of {scanner}" if scanner else ""
        names = f"{', '.join(slides[:10])}{', ...' if len(slides) > 10 else ''}"
        notes.append(f"{counted(len(slides), 'slide')}{of} without µm/px in the file: the study's {um_per_px} ({names}).")
    return [note for note in [*notes, settings.source.note(study.labels)] if note]


# ---- arms ----


def arms(study: Study) -> Exhibit:
    """AUROC of every arm at every size, and in two sentences what was found."""
    settings = study.settings
    table = scores.scaling_table(study.scores, settings)
    crossed = domains.means_table(study.scores, settings)
    full = table[table["size"] == table["size"].max()].sort_values("auroc", ascending=False)
    best = full.drop_duplicates("kind")
    found = [f"{plus_minus(r.auroc, r.auroc_sd)} ({r.kind}: {r.arm})" for r in best.itertuples()]
    caption = (
        f"With all the data, about {full['n_train'].max():,} training patches, the best AUROC of each kind of arm is "
        f"{listed(found)} (mean ± SD of {folds(full)}, {in_full(settings)})."
    )
    rows = crossed[crossed["arm"].isin(best["arm"])] if len(crossed) else crossed
    if drops := [f"{row.in_domain:.2f} to {row.out_of_domain:.2f} ({row.arm})" for row in rows.itertuples()]:
        caption += f" Trained on one domain and tested on the others, the AUROC goes from {listed(drops)}."
    shown = scores.wide(marked(table, settings))
    return Exhibit("05_arms", "Arms", caption, shown, section="Arms")


# ---- audit of the splits ----


def audit(study: Study) -> list[Exhibit]:
    """What each way to split shares between training and test: means, fold by fold, and twins."""
    run, of = study.audit, of_what(study.settings)
    schemes, own, twins = (f(run) for f in (splits_audit.load_schemes, splits_audit.load, splits_audit.load_twins))
    facts = run.record["facts"]
    caption = (
        f"The same patches split in every way, trained on all domains, means over folds ({of}); this study splits "
        f"{splits_audit.scheme_title(study.settings.switches.scheme)}. Shares are of the test patches: of a case or slide "
        "that training has seen, whose square overlaps a training patch, or that has a twin in training."
    )
    more = [splits_audit.networks_sentence(run), not_drawn(facts["not_drawn"]), *facts["remarks"]]
    by_fold = schemes.assign(scheme=pd.Categorical(schemes["scheme"], [s for s in SCHEMES if s in set(schemes["scheme"])]))
    by_fold = by_fold.sort_values("scheme", kind="stable").astype({"scheme": str})
    found = [
        Exhibit("01_audit", "Every way to split", " ".join([caption, *more]), splits_audit.summary(schemes)),
        Exhibit("01_audit_folds", "Fold by fold", f"Every way to split ({of}).", _by_fold(by_fold)),
        Exhibit("01_audit_own", "This study's splits", f"Every training of the study ({of}).", _by_fold(own)),
    ]
    contradict = twins[twins["contradicts"].astype(bool)].drop(columns="contradicts")
    told = f"{splits_audit.twins_sentence(twins, own)} The table has those with contradicting labels."
    found.append(Exhibit("01_twins", "Twins", told, contradict))
    return [Exhibit(one.name, one.title, one.caption, one.table, section=AUDIT) for one in found]


def _by_fold(audit: pd.DataFrame) -> pd.DataFrame:
    """An audit a fold at a time, shares in per cent."""
    shown = audit.assign(size=[f"{splits.percent(size)} %" for size in audit["size"]])
    if "scheme" in shown:
        shown["scheme"] = shown["scheme"].map(splits_audit.scheme_title)
    for name in ("positives_train", "positives_val", "positives_test", *splits_audit.LEAKS):
        shown[name] = splits_audit.per_cent(shown[name])
    return shown.rename(columns={"train_domain": "trained on"})


# ---- one encoder, several ways ----


def estimators(study: Study) -> Iterator[Exhibit]:
    """The estimators of the probe audit, and the AUROC of each on every encoder audited; nothing without an audit."""
    settings, runs = study.settings, {}
    for encoder in settings.probe_audit:
        with contextlib.suppress(store.StoreError):
            runs[encoder] = of_estimators.find(study, encoder)
    if runs:
        yield _definitions(next(iter(runs.values())))
    for encoder, run in runs.items():
        titles, fits = of_estimators.titles_of(run), of_estimators.scores(run)
        shown = of_estimators.by_size(of_estimators.table(fits), titles, "auroc")
        against = of_estimators.differences(fits, of_estimators.folds(run, study.seed)).to_dict("records")
        told = {titles[row["estimator"]]: f"{row['difference']:+.3f} ({_bounds(row)})" for row in against}
        shown["less this study's probe"] = shown["estimator"].map(told).fillna("–")
        caption = (
            f"AUROC of each estimator on the embeddings of {encoder} by size, mean ± SD over folds, and with all the data "
            f"less that of this study's own probe, with its 95 % interval ({of_what(settings)})."
        )
        name, title = f"03_estimators_{store.file_name(encoder)}", f"Estimators by size: {encoder}"
        yield Exhibit(name, title, caption, shown, section=PROBES)
    if runs and "amibr_probes.csv" in settings.source.published:
        caption = (
            "Published on AMi-Br, for orientation: Banerjee et al. 2025 (arXiv 2506.21444), from the outputs of their public "
            "notebooks, on its held-out 826 figures. These are other slides and splits than this study's."
        )
        yield Exhibit("03_published_probes", "Published", caption, of_estimators.published(), section=PROBES)


def _bounds(row: dict) -> str:
    return bounds(row["low"], row["high"]) or "no interval"


def _definitions(run: store.Run) -> Exhibit:
    """What each estimator is, as the record of an audit describes it."""
    shown = pd.DataFrame(list(run.identity["config"]["estimators"].values()))
    shown["weighs_classes"] = shown["weighs_classes"].map({True: "both alike", False: "no"})
    used = {True: "training, and validation for stopping", False: "training only"}
    shown["uses_validation"] = shown["uses_validation"].map(used)
    order = ["title", "objective", "features", "optimiser", "weighs_classes", "uses_validation", "source"]
    names = {"title": "estimator", "uses_validation": "patches used", "source": "after"}
    caption = (
        "What published work calls a linear probe, and one control, given the same embeddings and splits. D: dimensions of "
        "the embedding, K: classes, W: weights of K rows, w: their difference. An estimator that doesn't weigh the classes "
        "scores the rarer class low, which AUROC doesn't see."
    )
    return Exhibit("03_estimators", "The estimators", caption, shown[order].rename(columns=names), section=PROBES)


# ---- provenance ----


def provenance(study: Study) -> Exhibit:
    """What made the numbers: commit, machine, packages, seeds, threads, and every setting of the study."""
    settings = study.settings
    records = [store.read_json(path) for path in sorted(study.folder.glob("*/run.json"))]
    environments = [record["environment"] for record in records]
    changed = {True: " with uncommitted changes", False: ""}
    commits = {f"{e['commit'] or 'unknown'}{changed[bool(e['uncommitted_changes'])]}" for e in environments}
    newest = max(records, key=lambda record: record["finished"])["environment"]
    threads: dict[str, set[str]] = {}
    for record in records:
        n_threads = record["environment"].get("n_threads")  # lacks in records of an older version
        threads.setdefault(record["stage"], set()).add(str(n_threads or "not recorded"))
    seeds = f"data {settings.data.seed}, " if settings.synthetic else ""
    minutes = sum(record["seconds"] for record in records) / 60
    rows = {
        "commit": "; ".join(sorted(commits)),
        "machine": f"Python {newest['python']}, {newest['system']} {newest['machine']}, {newest['n_cores']} cores",
        "packages": ", ".join(f"{name} {version}" for name, version in newest["packages"].items()),
        "seeds": f"{seeds}splits {study.seed}",
        "runs": f"{len(records)} finished, {minutes:.1f} minutes in all",
        "threads": "; ".join(f"{stage} {' or '.join(sorted(n))}" for stage, n in threads.items()),
        "every setting": yaml.safe_dump(as_dict(settings), sort_keys=False, default_flow_style=True, width=10**6).strip(),
    }
    table = pd.DataFrame({"what": [*rows], "value": [*rows.values()]})
    caption = "What made the numbers. The folder of every run has a `run.json` with config, inputs, commit and checksums."
    return Exhibit("05_provenance", "Code, machine, seeds", caption, table, section=PROVENANCE)
