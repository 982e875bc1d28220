"""What later work says of LoRA and of AMi-Br: confirmed and refuted by made scores, and why a network falls short."""

import re
from dataclasses import replace
from pathlib import Path

import made_claims
import numpy as np
import pandas as pd
import pytest

from mfcore.claims import ledger as claims
from mfcore.claims.ledger import GANZ
from mfcore.claims.material import Material
from mfcore.claims.rows import Row, load
from mfcore.claims.rules import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, UNCLEAR, Finding
from mfcore.study import predictions as study_predictions
from mfcore.study.config import Data, Lora, Network, Settings, Splits


@pytest.fixture(autouse=True)
def _drawn(monkeypatch):
    monkeypatch.setattr(Material, "drawn", made_claims.drawn)


TENTH, GAP, CLASSIC = "LoRA with 10 % data", "LoRA almost closes", "full fine-tuning of classic"
SUCCESSOR, BENCHMARK = ([row for row in load() if row.paper.startswith(name)] for name in ("Ammeling", "Banerjee"))


def ask(start: str, study: Settings, **made) -> Finding:
    return claims.measure(made_claims.row(start), made_claims.material(study, **made))


def asked(study: Settings, scores: pd.DataFrame, some: list[Row]) -> pd.DataFrame:
    """The ledger of some claims alone, by claim."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "load", lambda: some)
        return claims.judge(made_claims.opened(study, scores)).set_index("claim")


# ---- the successor ----


@pytest.mark.parametrize(
    ("claim", "holds", "fails"),
    [
        (TENTH, {"gain": {"adapted": 0.01}}, {"gain": {"adapted": 0.06}}),
        (GAP, {"across": {"adapted": (0.86, 0.85)}}, {"across": {"adapted": (0.86, 0.80)}}),
        (CLASSIC, {"full": {"adapted": 0.90}}, {"full": {"adapted": 0.95}}),
    ],
)
def test_what_is_said_of_lora_follows_the_scores(claim, holds, fails):
    study = made_claims.study()
    assert ask(claim, study, **holds).outcome == REPRODUCED
    assert ask(claim, study, **fails).outcome == NOT_REPRODUCED
    assert ask(claim, study, noise=0.1).outcome == UNCLEAR
    without = made_claims.study(networks=made_claims.NETWORKS[:1])
    assert ask(claim, without).barred == ["no network adapted by LoRA has scores here"]


def test_lora_that_was_not_trained_at_ten_percent_or_on_single_domains_is_no_test():
    study = made_claims.study(splits=Splits(sizes=(0.2, 1.0), by_domain=False))
    assert ask(TENTH, study).found == "no network was adapted at 10 %"
    assert ask(GAP, study).barred == ["the study has no cross-domain fits"]
    probes_only = made_claims.scores(made_claims.study())
    kept = probes_only[(probes_only["arm"] != "adapted") | (probes_only["train_domain"] == "all")]
    assert ask(GAP, made_claims.study(), scored=kept).found == "no network was adapted on single domains"


def test_the_successors_numbers_are_asked_of_the_arm_that_they_name():
    study = made_claims.study(networks=(*made_claims.NETWORKS, Network("v2", "virchow2", lora=Lora())))
    scores = made_claims.scores(study, full={"v2": 0.81, "uni": 0.83}, across={"v2": (0.9, 0.9), "adapted": (0.86, 0.80)})
    rows = asked(study, scores, SUCCESSOR)
    expected = {
        "Virchow2-LoRA on MIDOG 2022: weighted F1 0.81 ± 0.014, 100 % of the data": REPRODUCED,
        "Virchow2-LoRA on MIDOG 2022: AUROC 0.89 ± 0.011, 100 % of the data": NOT_REPRODUCED,
        "UNI linear probe on MIDOG 2022: AUROC 0.83 ± 0.00, 100 % of the data": REPRODUCED,
        "UNI linear probe on CCMCT: AUROC 0.83 ± 0.00, 100 % of the data": NOT_TESTABLE,
        "UNI-LoRA on MIDOG 2022: AUROC 0.85 ± 0.07, 100 % of the data": REPRODUCED,
        "UNI-LoRA on MIDOG 2022: AUROC 0.86 ± 0.05, in domain": REPRODUCED,
        "UNI-LoRA on MIDOG 2022: AUROC 0.80 ± 0.06, out of domain": REPRODUCED,
        "Virchow2 linear probe on MIDOG 2022: weighted F1 0.72 ± 0.00, 10 % of the data": REPRODUCED,
        "E2E ResNet50 on MIDOG 2022: weighted F1 0.78 ± 0.01, 100 % of the data": NOT_REPRODUCED,
    }
    assert rows.loc[list(expected), "verdict"].to_dict() == expected
    assert rows.loc[list(expected), "paper"].str.endswith("second-hand").all()


# ---- single numbers of 2025 and 2026 ----

LATER = [row for row in load() if row.paper.startswith("Later work")]
FACTS = Path(__file__).parents[2].parent / "shared" / "facts" / "published-2026.md"


def test_later_numbers_have_a_source_and_are_marked_where_they_are_second_hand():
    assert all("arXiv" in row.place or "repository" in row.place or "Enda" in row.place for row in LATER)
    noted = [row for row in LATER if "note" in row.place]
    assert noted == [row for row in LATER if row.paper.endswith("second-hand")] and 0 < len(noted) < len(LATER)
    assert {row.evidence for row in LATER} == {"later work"} and len({row.quote for row in LATER}) == len(LATER)


@pytest.mark.skipif(not FACTS.is_file(), reason="the numbers of ../shared/facts are not here")
def test_later_numbers_are_those_that_were_noted():
    """Each number of a row but counts in words; 0.908 is .908 there, 88.2 % a share."""
    text = FACTS.read_text(encoding="utf-8")
    for row in LATER:
        for number in re.findall(r"(?<![\w.])0(\.\d{2,})", row.quote):
            assert number in text, (row.quote, number)
        for share in re.findall(r"[\d.]+(?= %)", row.quote):
            assert f"{share} %" in text, (row.quote, share)
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", row.place):
            assert number in text or number == "2506.21444"  # the benchmark's
        if isinstance(row.expected, float):
            assert f"{row.expected:g}" in row.quote


@pytest.mark.parametrize("source", ["midog22", "midogpp", "ccmct", "synthetic"])
def test_later_numbers_are_judged_on_no_data_that_they_are_not_about(source):
    study = made_claims.study(source)
    rows = asked(study, made_claims.scores(study), LATER)
    assert set(rows["verdict"]) == {NOT_TESTABLE} and (rows["why"] != "").all()
    assert rows["difference"].isna().sum() >= len(LATER) - 2, "a number has no distance from other data's number"
    shown = rows[rows["here"] != ""]
    assert shown["test"].str.startswith("none").sum() == 0 and len(shown) == 2
    assert shown["why"].str.contains("it is about detectors in whole images").all()
    number = rows.loc["MIDOG 2025: atypical against normal reaches balanced accuracy 0.908 on the final test set"]
    assert number["expected"] == "0.908" and "test sets are not public" in number["why"]


# ---- AMi-Br ----

STUDY = replace(
    made_claims.study(
        "amibr", encoders=("efficientnet_lite0", "vit_tiny_random"), splits=Splits(sizes=(0.1, 1.0), by_domain=False)
    ),
    data=Data("amibr", "atypical", "normal"),
    networks=(
        Network("net", "efficientnet_lite0", input_px=84, n_epochs=8, patches_per_epoch=320),
        Network("adapted", "efficientnet_lite0", lora=Lora()),
    ),
    patches=replace(made_claims.study().patches, size_px=128),
)
LEVELS = {"net": 0.75, "efficientnet_lite0": 0.67, "vit_tiny_random": 0.9, "adapted": 0.80}
ACROSS = dict.fromkeys(LEVELS, (0.7, 0.6))
E2E = "end to end: EfficientNetV2-M reaches balanced accuracy 0.747 ± 0.017"


def amibr(**full) -> pd.DataFrame:
    """The benchmark's claims asked of STUDY with these AUROCs, by claim."""
    return asked(STUDY, made_claims.scores(STUDY, full=LEVELS | full, across=ACROSS), BENCHMARK)


def test_end_to_end_on_amibr_is_within_three_hundredths_or_the_ledger_says_why_not():
    near = amibr().loc[E2E]
    assert near["verdict"] == REPRODUCED and near["why"] == "" and near["found"].startswith("net 0.75")
    short = amibr(net=0.63).loc[E2E]
    assert short["verdict"] == NOT_REPRODUCED and short["difference"] == pytest.approx(-0.12, abs=0.005)
    for reason in (
        "efficientnet_lite0 stands for EfficientNetV2-M",
        "13,153 training patches for 2,894",
        "8 epochs, 2,560 patches seen",
        "84 of 128 px",
    ):
        assert reason in short["why"]
    assert amibr(net=0.85).loc[E2E, "verdict"] == NOT_REPRODUCED, "far above is not the published number either"


def predictions(threshold: float) -> pd.DataFrame:
    """Ten patches a fold, ranked without fault, that ``threshold`` parts."""
    scores = threshold + np.array([-0.1] * 8 + [0.1] * 2)
    rows = [{"fold": fold, "label": int(i > 7), "score": s} for fold in range(5) for i, s in enumerate(scores)]
    table = pd.DataFrame(rows).assign(size=1.0, train_domain=study_predictions.ALL, domain="a")
    return table.assign(patch_id=table.index, slide_id=table.index.astype(str))


NONE = pd.DataFrame({"arm": [], "reason": []})


def test_a_probe_that_does_not_weigh_classes_is_asked_at_their_share():
    """At 0.5 it calls nothing positive; at the share of class 1, a fifth, it is right throughout."""
    known = {"_collected": study_predictions.Collected(predictions(0.2).assign(arm="efficientnet_lite0"), NONE)}
    known["labels"] = pd.DataFrame({"label": [1, 0, 0, 0, 0]})
    made = made_claims.material(STUDY, known=known, full=LEVELS, across=ACROSS)
    assert made.at_share("efficientnet_lite0", 1.0).values.tolist() == [1.0] * 5
    finding = claims.measure(made_claims.row("linear probes reach balanced"), made)
    assert finding.why[0] == "the benchmark's probe weighs the classes: at 0.5, efficientnet_lite0 would score 0.67"
    del vars(made.study)["labels"]
    finding = claims.measure(made_claims.row("linear probes reach balanced"), made)
    assert "no finished 'patches' run" in finding.barred[0]


def test_published_ranges_and_who_is_above_whom():
    quotes = {
        "linear probes reach AUROCs of 0.652 to 0.695": {"efficientnet_lite0": 0.80},
        "foundation models adapted by LoRA reach balanced accuracies of 0.714 to 0.814": {"adapted": 0.60},
        "foundation models adapted by LoRA reach AUROCs of 0.815 to 0.903": {"adapted": 0.60},
        "every network trained end to end is above every linear probe": {"net": 0.60},
        "every foundation model is better adapted by LoRA than probed": {"adapted": 0.60},
    }
    rows = amibr(adapted=0.82)
    for quote, opposite in quotes.items():
        assert rows.loc[quote, "verdict"] == REPRODUCED, quote
        assert amibr(**opposite).loc[quote, "verdict"] == NOT_REPRODUCED, quote
    assert rows.loc["linear probes reach balanced accuracies of 0.594 to 0.634", "verdict"] == NOT_TESTABLE, "no predictions"


def test_the_best_on_amibr_is_asked_of_networks_and_lora_alike():
    quote = "AMi-Br benchmark: balanced accuracy of up to 0.8135 on AMi-Br"
    for full, verdict in (({}, REPRODUCED), ({"adapted": 0.6}, NOT_REPRODUCED), ({"net": 0.95}, NOT_REPRODUCED)):
        rows = asked(STUDY, made_claims.scores(STUDY, full=LEVELS | full, across=ACROSS), LATER)
        assert rows.loc[quote, "verdict"] == verdict
        assert set(rows["verdict"].drop(quote)) == {NOT_TESTABLE}


def test_one_probe_outside_the_published_range_is_enough():
    study = replace(STUDY, encoders=("efficientnet_lite0", "uni"))
    made = made_claims.scores(study, full=LEVELS | {"uni": 0.95}, across=ACROSS)
    row = asked(study, made, BENCHMARK).loc["linear probes reach AUROCs of 0.652 to 0.695"]
    assert row["verdict"] == NOT_REPRODUCED and "uni 0.95" in row["found"] and row["difference"] > 0.25


def test_other_data_say_nothing_of_amibr_and_it_nothing_of_the_paper():
    study = made_claims.study()
    assert set(asked(study, made_claims.scores(study), BENCHMARK)["verdict"]) == {NOT_TESTABLE}
    own = claims.judge(made_claims.opened(STUDY, full=LEVELS, across=ACROSS))
    results = own[(own["paper"] == GANZ) & own["subject"].isin(["data scaling", "domain shift", "data"])]
    assert set(results["verdict"]) == {NOT_TESTABLE}


@pytest.mark.parametrize("claim", [TENTH, GAP, CLASSIC])
def test_lora_of_a_network_of_photographs_stands_in_and_settles_nothing(claim):
    own = (made_claims.NETWORKS[0], Network("adapted", "vit_huge_in21k", lora=Lora()))
    finding = ask(claim, made_claims.study(networks=own))
    assert finding.barred == ["no foundation model was adapted here (adapted instead)"] and finding.is_comparison
    both = (*made_claims.NETWORKS, Network("other", "vit_huge_in21k", lora=Lora()))
    made = {"full": {"other": 0.5}, "across": {"other": (0.9, 0.5)}}
    assert "other" not in ask(claim, made_claims.study(networks=both), **made).found


def test_a_range_leaves_no_more_open_than_a_number():
    wide = np.array([-0.05, -0.025, 0, 0.025, 0.05])
    made = made_claims.scores(STUDY, full=LEVELS, across=ACROSS, noise=0)
    of = (made["arm"] == "adapted") & (made["train_domain"] == "all") & (made["size"] == made["size"].max())
    made.loc[of, "auroc"] = 0.86 + wide
    row = asked(STUDY, made, BENCHMARK).loc["foundation models adapted by LoRA reach AUROCs of 0.815 to 0.903"]
    assert row["verdict"] == UNCLEAR


def test_tolerances_of_shares_are_in_percentage_points():
    study = made_claims.study(encoders=(), networks=())
    rows = claims.judge(made_claims.opened(study, made_claims.scores(made_claims.study()).iloc[:0]), ["method"])
    shares = rows[rows["expected"].isin(["20 %", "100 %"])]
    assert len(shares) == 4 and shares["tolerance"].str.endswith("percentage points").all()
