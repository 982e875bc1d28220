"""Counts, resolutions and networks: against the authors' own label files, and against labels and cards that are changed."""

import dataclasses
import functools
from pathlib import Path

import made_claims
import numpy as np
import pandas as pd
import pytest

from mfcore.claims import checks, ledger as claims
from mfcore.claims.rows import load
from mfcore.claims.rules import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Finding
from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.encoders.card import cards
from mfcore.study.config import MODES, Settings

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "labels"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real labels of ../shared/data are not here")
BY_SCANNER = {"Hamamatsu XR": 0.2263, "Hamamatsu S360": 0.2294, "Aperio CS2": 0.2528, "3DHistech": 0.2483}
SWAPPED = "the authors' own label files have the two counts the other way round"


RESOLUTION = "at a resolution of 0.25 microns"


def ask(start: str, study: Settings | None = None, scores: pd.DataFrame | None = None, **known) -> Finding:
    """What the claim whose quote begins so finds; ``known``: what would be read from files."""
    study = study or made_claims.study()
    return claims.measure(made_claims.row(start), made_claims.material(study, scores, known))


@functools.cache
def real(source: str) -> pd.DataFrame:
    """The authors' label file, with um/px as a study would fill it in."""
    table = labels.load(SOURCES[source], REAL, check_files=False)
    return table.assign(um_per_px=table["scanner"].map(BY_SCANNER).fillna(0.2533))


def check(study: Settings, table: pd.DataFrame) -> pd.DataFrame:
    """The ledger of a study that has extracted its patches and predicted nothing, by claim."""
    return claims.judge(made_claims.opened(study, made_claims.scores(study).iloc[:0], {"labels": table})).set_index("claim")


def said(rows: pd.DataFrame, quote: str) -> tuple:
    row = rows.loc[quote]
    return row["verdict"], row["found"], row["difference"]


@needs_real
def test_midog22s_own_labels_have_the_papers_two_counts_swapped():
    rows = check(made_claims.study(), real("midog22"))
    assert said(rows, "which consists of 11,051 MFs") == (NOT_REPRODUCED, "9,501", -1_550)
    assert said(rows, "9,501 MF look-alikes") == (NOT_REPRODUCED, "11,051", 1_550)
    assert rows.loc["which consists of 11,051 MFs", "why"] == rows.loc["9,501 MF look-alikes", "why"] == SWAPPED
    assert said(rows, "on 354 regions of interests") == (REPRODUCED, "354", 0)
    domains = (
        "from five different domains, including human breast cancer (domain 1), canine lung cancer (domain 2), canine lymphoma"
    )
    assert rows.loc[domains, "verdict"] == REPRODUCED and rows.loc[domains, "found"].startswith("5: canine cutaneous")
    less = rows.index[rows.index.str.startswith("substantially less data was available")]
    assert said(rows, less[0]) == (REPRODUCED, "20,552; printed for ccmct: 72,845", 20_552 - 72_845)
    resolution = rows.loc["at a resolution of 0.25 microns per pixel"]
    assert resolution["verdict"] == NOT_REPRODUCED
    assert resolution["found"] == "level 0 is at 0.2263 to 0.2528 µm/px; 99 of 354 slides within 1 % of 0.25"
    later = {"9,501 mitotic figures": REPRODUCED, "11,051 hard negatives": REPRODUCED, "405 images": NOT_REPRODUCED}
    assert rows.loc[list(later), "verdict"].to_dict() == later and rows.loc["405 images", "difference"] == -51
    assert rows.loc["we only used 44,880 annotations representing MFs", "verdict"] == NOT_TESTABLE


@needs_real
def test_ccmcts_own_labels_have_the_papers_counts():
    rows = check(made_claims.study("ccmct"), real("ccmct"))
    assert said(rows, "we only used 44,880 annotations representing MFs") == (REPRODUCED, "44,880", 0)
    assert said(rows, "27,965 annotations belonging to MF look-alikes") == (REPRODUCED, "27,965", 0)
    assert said(rows, "The second dataset comprises 32 whole slide images (WSIs)") == (REPRODUCED, "32", 0)
    row = rows.loc["originally contains 262,481 annotations of different cell types"]
    assert row["verdict"] == NOT_TESTABLE and "only the two classes" in row["why"] and row["found"].startswith("72,845")
    assert rows.loc["which consists of 11,051 MFs", "verdict"] == NOT_TESTABLE
    resolution = rows.loc["at a resolution of 0.25 microns per pixel"]
    assert resolution["verdict"] == NOT_REPRODUCED and "0 of 32 slides within 1 %" in resolution["found"]


@needs_real
@pytest.mark.parametrize("source", ["midog22", "ccmct"])
def test_other_labels_give_other_verdicts(source):
    """One class, one slide and one domain fewer: no verdict stays as it was."""
    table = real(source)
    kept = table[table["slide_id"] != table["slide_id"].mode()[0]].assign(um_per_px=0.25)
    kept = kept.assign(domain=kept["domain"].replace({"canine lymphoma": "another"}))
    study = made_claims.study(source)
    before, after = check(study, table), check(study, kept)
    of_data = after[(after["subject"] == "data") & (after["verdict"] != NOT_TESTABLE)]
    changed = of_data["verdict"] != before.loc[of_data.index, "verdict"]
    stay = {q for q in of_data.index[~changed] if "substantially" not in q}
    assert stay <= {"which consists of 11,051 MFs", "9,501 MF look-alikes"}, "these were wrong before"


def test_without_patches_there_is_nothing_to_count():
    finding = ask("which consists of 11,051 MFs", made_claims.study())
    assert finding.outcome == NOT_TESTABLE and "no finished 'patches' run" in finding.barred[0]


def test_how_a_slide_is_read_is_said_beside_its_resolution():
    table = pd.DataFrame({"slide_id": ["a", "b"], "um_per_px": [0.25, 0.2514]})
    finding = ask(RESOLUTION, made_claims.study(), labels=table)
    assert finding.outcome == REPRODUCED and finding.why == ["this study reads patches as scanned"]
    strict = dataclasses.replace(made_claims.study(), switches=MODES["strict"])
    finding = ask(RESOLUTION, strict, labels=table.assign(um_per_px=[0.25, 0.2533]))
    assert finding.outcome == NOT_REPRODUCED and finding.difference == pytest.approx(0.0033)
    assert finding.why == ["this study resamples to 0.25 µm/px"]


# ---- networks ----


def size_of(encoder: str, expected: float, tolerance: float, **arguments) -> Finding:
    row = made_claims.row("Phikon: Model Type")
    row = dataclasses.replace(row, expected=expected, tolerance=tolerance, arguments={"encoder": encoder, **arguments})
    return claims.measure(row, made_claims.material(made_claims.study()))


def test_printed_sizes_are_judged_by_one_unit_of_their_last_digit():
    found = {row.arguments["encoder"]: ask(row.quote).outcome for row in load() if row.check == "parameters"}
    assert found.pop("uni") == NOT_REPRODUCED, "307M is printed, the built network has 303.4M"
    assert set(found.values()) == {REPRODUCED} and len(found) == 7


def test_a_network_of_another_size_or_type_is_not_the_printed_one():
    assert size_of("phikon", 86e6, 1e6, architecture="vit_base").outcome == REPRODUCED
    assert size_of("phikon", 86e6, 1e6, architecture="vit_large").outcome == NOT_REPRODUCED
    assert size_of("phikon", 88e6, 1e6, architecture="vit_base").outcome == NOT_REPRODUCED
    head = size_of("resnet50", 25e6, 1e6, n_classes=1000)
    assert head.found == "resnet50: 25.6M with a classifier of 1,000 classes" and head.outcome == REPRODUCED
    assert size_of("resnet50", 25e6, 1e6).found == "resnet50: 23.5M"
    assert size_of("resnet50", 25e6, 1e6).outcome == NOT_REPRODUCED


@pytest.mark.parametrize(("name", "n"), [("virchow", 256), ("uni", 196), ("kaiko_vits8", 784)])
def test_patch_tokens_are_those_of_the_input(name, n):
    finding = checks.patch_tokens(made_claims.material(made_claims.study()), [name])
    assert finding.found == f"{name} {n}" and finding.value == (name == "virchow")


CHANGES = {  # claim: the card to change, and how
    "All of the models are Vision Transformers (ViTs) of varying sizes.": ("phikon", {"architecture": "swin_tiny"}),
    "Foundation models compared in this study, ordered by the size of the respective model.": (
        "uni",
        {"n_parameters": 700_000_000},
    ),
    "concatenating the class token and the mean across all 256 patch tokens": ("virchow2", {"readout": "class"}),
    "For all other models, only the class token was used": ("phikon", {"readout": "class+mean"}),
    "UNI: Model Type ViT-L, Model Size 307M": ("uni", {"n_parameters": 307_100_000}),
}


@pytest.mark.parametrize("quote", CHANGES)
def test_a_claim_on_networks_follows_the_cards(quote, monkeypatch):
    study = made_claims.study("synthetic")
    before = ask(quote, study).outcome
    name, change = CHANGES[quote]
    monkeypatch.setitem(cards(), name, dataclasses.replace(cards()[name], **change))
    assert {before, ask(quote, study).outcome} == {REPRODUCED, NOT_REPRODUCED}


def test_the_abstracts_five_models_are_six_in_its_table():
    five, six = ask("we compared linear probing of five"), ask("We compared six different")
    assert (five.outcome, five.difference) == (NOT_REPRODUCED, 1) and "have six" in five.why[0]
    assert six.outcome == REPRODUCED


def test_the_registers_are_said_to_be_in_the_released_codes_mean():
    finding = ask("concatenating the class token", made_claims.study("synthetic"))
    assert finding.outcome == REPRODUCED and np.isclose(finding.difference, 0) and "is over 260" in finding.why[0]
