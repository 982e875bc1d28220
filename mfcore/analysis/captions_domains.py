"""Captions of the figures and tables across domains."""

import pandas as pd

from mfcore.analysis import captions, compare, figures
from mfcore.measures import raters
from mfcore.study.config import Study


def cross_domain(study: Study, matrix: pd.DataFrame, means: pd.DataFrame, beside: pd.DataFrame) -> str:
    """Caption of Fig. 2; tables as `figures_domains.cross_domain` takes them."""
    drops = "; ".join(f"{row.arm} {row.in_domain:.2f} → {row.out_of_domain:.2f}" for row in means.itertuples(index=False))
    if len(beside):
        end_to_end, best = (beside[beside["arm"].str.contains("end-to-end", case=False) == found] for found in (True, False))
        best = best[best["out_of_domain"] == best["out_of_domain"].max()]
        parts = [f"{row.arm} {row.in_domain:.2f} → {row.out_of_domain:.2f}" for row in end_to_end.itertuples()]
        parts += [f"{captions.listed(best['arm'])} {best['in_domain'].max():.2f} → {best['out_of_domain'].max():.2f}"]
        said = f" Published (Tab. 2, MIDOG 2022, for orientation): {', the best probes '.join(parts)}."
    else:
        said = " The published Tab. 2 is of other classes and not drawn here."
    return (
        f"**Fig. 2. Cross-domain.** Above: mean AUROC ± SD over {compare.folds(means)} of the best arm of each kind, "
        f"by the domain trained on and the domain tested on, one scale for all; framed: in domain, on held-out "
        f"{captions.held_out(study)} ({captions.of_what(study)}). Below (dotted: chance): means over domains, SD over folds, "
        f"of every arm, in domain → out of domain: {drops}.{captions.home_made(study, means['arm'])}{said}{_span(matrix)}"
    )


def _span(matrix: pd.DataFrame) -> str:
    """Between which values the single pairs of domains lie; empty without pairs."""
    out = matrix[matrix["domain"] != matrix["train_domain"]]
    if out["mean"].isna().all():
        return ""
    worst, best = out.loc[out["mean"].idxmin()], out.loc[out["mean"].idxmax()]
    return (
        f" Out of domain the AUROC lies between {worst['mean']:.2f} ({worst['arm']}, {worst['train_domain']} to "
        f"{worst['domain']}) and {best['mean']:.2f} ({best['arm']}, {best['train_domain']} to {best['domain']})."
    )


def left_out(table: pd.DataFrame, value: str) -> str:
    """That a figure shows the best arm of each kind only (`figures.few`); empty where it shows all."""
    n_arms, shown = table["arm"].nunique(), figures.few(table, value)
    return f" Of {n_arms} arms the best of each kind: {captions.listed(shown)}." if len(shown) < n_arms else ""


def by_test_domain(study: Study, tested: pd.DataFrame, human: pd.DataFrame | None = None) -> str:
    """Caption of balanced accuracy by test domain; tables as `compare.by_test_domain` and `raters.table` return them."""
    domains = [] if human is None else [domain for domain in human["domain"] if domain != compare.ALL]
    lines = {domain: raters.reference(human, "balanced_accuracy", domain) for domain in domains}
    said = [f"{domain} {captions.with_interval(line)}" for domain, line in lines.items() if line]
    people = ""
    if said:
        n = human.loc[human["domain"].isin(domains), "n"].sum()
        people = (
            f" Dashed: one rater against another, {captions.whose(study)}, shaded 95 % intervals over {compare.unit(human)} "
            f"({n:,} annotations): {', '.join(said)}. Dash-dotted: a rater against the consensus, own vote counted."
        )
    return (
        f"**By test domain.** Balanced accuracy in domain (filled) and out of domain (open, mean over the other training "
        f"domains); bars: SD over {compare.folds(tested)} ({captions.of_what(study)}).{left_out(tested, 'mean')}"
        f"{people}"
    )


def cross_domain_means(study: Study) -> str:
    """What the columns of Tab. 2 are."""
    return (
        f"**Tab. 2.** AUROC, mean ± sample SD over folds of the mean over training domains (and, out of domain, over the other "
        f"domains), {captions.of_what(study)}. In brackets: the SD over all folds and domains, which the published ± most "
        "likely is."
    )


def asymmetry(study: Study, table: pd.DataFrame) -> str:
    """Caption of the differences there and back; ``table`` as `compare_domains.asymmetry` returns it."""
    found = table[table["difference"].notna()]
    if not len(found):
        return f"**There and back.** Without two domains there is no way back ({captions.of_what(study)})."
    parts = []
    for arm, part in found.groupby("arm", sort=False):
        row = part.loc[part["difference"].abs().idxmax()]
        parts.append(f"{arm} {row['first']} to {row['second']} {row['there']:.2f}, back {row['back']:.2f}")
    n_pairs = found.groupby("arm").size().max()
    return (
        f"**There and back.** AUROC from a first domain to a second, and back ({captions.of_what(study)}). The largest "
        f"difference of {n_pairs} pair{'s' if n_pairs > 1 else ''}, by arm: {'; '.join(parts)}."
        + (" As the largest of several it is larger than a single pair's would be by chance." if n_pairs > 1 else "")
    )


def tumour_against_scanner(study: Study, table: pd.DataFrame) -> str:
    """Caption of what another tumour and another scanner cost; ``table`` as `compare_domains.tumour_against_scanner`."""
    found = table[table["auroc_drop"].notna()]
    parts = [
        f"{arm}: "
        + ", ".join(
            f"{r.comparison} {r.auroc_drop:+.2f}{f' [{span}]' * bool(span)} ({r.n:.0f} pairs)"
            for r in part.itertuples()
            for span in [compare.bounds(r.low, r.high, "+.2f", ", ")]
        )
        for arm, part in found.groupby("arm", sort=False)
    ]
    over = sorted({"folds" if what == "folds" else f"draws of {what}" for what in found["over"]})
    silent = table[table["auroc_drop"].isna()].drop_duplicates("why")
    reasons = [f"{row.comparison} ({row.why})" for row in silent.itertuples()]
    return (
        f"**Tumour or scanner.** AUROC lost by training elsewhere, against training on the tested tumour itself, on the same "
        f"patches, with 95 % intervals over {captions.listed(over or ['folds'])} ({captions.of_what(study)})."
        + (f" {'; '.join(parts)}." if parts else "")
        + (f" Not to be told: {'; '.join(reasons)}." if reasons else "")
    )
