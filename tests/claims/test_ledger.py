"""The ledger: the paper's own words, its truth where it was planted, and what other data, arms and designs can't say."""

import json
import re
from dataclasses import replace
from pathlib import Path

import made_claims
import numpy as np
import pandas as pd
import pytest

from mfcore.analysis.scores import published
from mfcore.claims import checks, kaiko, ledger as claims, reasons
from mfcore.claims.arms import GROUPS
from mfcore.claims.ledger import GANZ
from mfcore.claims.material import Material
from mfcore.claims.rows import DIRECTION, Row, facts, load
from mfcore.claims.rules import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, RULES, UNCLEAR, VERDICTS
from mfcore.encoders.card import TABLE_1, cards
from mfcore.study import predictions as study_predictions
from mfcore.study.config import SOURCES, Data, Network, Splits, Switches

PAPER = Path(__file__).parents[2].parent / "shared" / "papers" / "ganz-2024-is-self-supervision-enough.md"
needs_paper = pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text of ../shared/papers is not here")
RESULTS = ("data scaling", "domain shift")
CLAIMS = [row for row in load() if row.evidence != claims.PRETRAINING]
TABLE_2 = [row.quote for row in CLAIMS if row.place == "Tab. 2"]
FIRST = "the end-to-end-trained baseline outperformed all FM-based classifiers, regardless of the amount of data provided"
BOTH = "In both experiments, the end-to-end-trained ResNet50 baseline outperformed the FM-based classifiers."


def ledger(study, scores, *quotes: str) -> pd.DataFrame:
    """The ledger of a study without a results folder, by claim: of every claim, or of those with these quotes."""
    some = tuple(row for row in CLAIMS if not quotes or row.quote in quotes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "load", lambda: some)
        patch.setattr(Material, "drawn", made_claims.drawn)
        return claims.judge(made_claims.opened(study, scores)).set_index("claim", drop=False)


def verdicts(rows: pd.DataFrame, subjects=RESULTS) -> pd.Series:
    """Verdicts of the paper's claims on results."""
    return rows[rows["subject"].isin(subjects)]["verdict"]


@pytest.fixture(scope="module")
def planted():
    """The paper's data set and arms, and scores for which what it says of MIDOG holds."""
    study = made_claims.study()
    return ledger(study, made_claims.scores(study))


@pytest.fixture(scope="module")
def synthetic():
    """The same scores in a study of synthetic slides."""
    study = made_claims.study("synthetic")
    return ledger(study, made_claims.scores(study))


# ---- quotes ----


def words_of_paper() -> str:
    text = PAPER.read_text(encoding="utf-8")
    for old, new in ((r"\pm", "±"), (r"\times", "×"), ("$", ""), ("**", ""), ("10^{-4}", "10⁻⁴"), (r"\%", "%")):
        text = text.replace(old, new)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))


@needs_paper
def test_every_quote_stands_in_the_paper_word_for_word():
    text = words_of_paper()
    own = [row for row in CLAIMS if row.paper == GANZ]
    of_tables = {*TABLE_2, *(row.quote for row in own if row.check == "parameters" and row.place == "Tab. 1")}
    missing = [c.quote for c in own if c.quote not in of_tables and c.quote.strip(". ") not in text and " | " not in c.quote]
    baselines = {"ViT-H 632M parameters", "ResNet50 with 25M"}  # "(ResNet50 with 25M and ViT-H 632M parameters)"
    assert set(missing) <= baselines and all(part in text for part in baselines)
    assert len({c.quote for c in own}) == len(own)


def test_a_quote_has_at_most_thirty_words_and_a_test():
    for row in load():
        assert len(row.quote.split()) <= 30, row.quote
        assert row.test and row.place and row.about and (row.rule or row.barred)


def test_the_numbers_of_the_rows_are_those_of_the_published_tables():
    encoders = published("ganz_2024_models.csv").set_index("arm")
    units = {"M": 1e6, "B": 1e9}
    printed, rows_of = {}, {row.quote: row for row in load()}
    for arm, one in published("ganz_2024.csv").set_index("arm").iterrows():
        for column, at, title in (("in_domain", "inside", "In Domain"), ("out_of_domain", "outside", "Out of Domain")):
            quote = f"{arm}: AUROC {title} {one[column]:.2f} ± {one[f'{column}_sd']:.2f}"
            encoder = encoders["encoder"].get(arm, "network")
            printed[quote] = {"first": encoder, "at": at, "expected": one[column], "printed_sd": one[f"{column}_sd"]}
    for arm, one in encoders[encoders["where"] == "Tab. 1"].iterrows():
        quote, size = f"{arm}: Model Type {one['type']}, Model Size {one['size']}", one["size"]
        number, digits = float(size[:-1]) * units[size[-1]], len(size[:-1].partition(".")[2])
        printed[quote] = {"expected": number, "tolerance": units[size[-1]] / 10**digits}
        assert rows_of[quote].arguments["encoder"] == one["encoder"]
    for one in published("ammeling_2025.csv").to_dict("records"):
        (quote,) = [
            quote
            for quote, row in rows_of.items()
            if quote.startswith(f"{one['arm']} on {SOURCES[one['data_set']].title}: ")
            and row.metric == one["metric"]
            and row.at == (one["size"] if one["quantity"] == "mixed" else one["quantity"])
        ]
        sd = None if pd.isna(one["sd"]) else one["sd"]
        printed[quote] = {"expected": one["value"], "printed_sd": sd, "about": [one["data_set"]]}
    assert len(printed) == 18 + 6 + 12
    for quote, fields in printed.items():
        found = {key: getattr(rows_of[quote], key) for key in fields}
        assert {k: v for k, v in found.items() if isinstance(v, float | int)} == pytest.approx(
            {k: v for k, v in fields.items() if isinstance(v, float | int)}
        ), quote
        assert all(found[key] == value for key, value in fields.items() if not isinstance(value, float | int)), quote


def test_the_papers_arms_are_those_of_its_table_1():
    arms = facts("arms")
    assert (*arms["foundation"], *arms["imagenet"]) == TABLE_1
    assert arms["foundation"] == arms["strong"] + arms["weak"]


def test_models_are_called_similar_within_the_largest_printed_sd():
    table = published("ganz_2024.csv").set_index("arm").iloc[:6]
    both, inside = (made_claims.row(start).tolerance for start in ("given the standard", "the in-domain results"))
    assert (both, inside) == (max(table["in_domain_sd"].max(), table["out_of_domain_sd"].max()), table["in_domain_sd"].max())


@needs_paper
def test_the_tables_rows_are_the_papers():
    lines = [re.sub(r"\s+", " ", line) for line in PAPER.read_text(encoding="utf-8").splitlines()]
    plain = [re.sub(r" ?\[\d\]|<[^>]+>|\$", "", line).replace(r"\pm", "±") for line in lines]
    rows = [[cell.strip() for cell in line.split("|")] for line in plain]
    table_2 = set(TABLE_2)
    assert len(table_2) == 18
    cells = {row[1]: row[2:-1] for row in rows if len(row) == 5 and "±" in row[2]}
    assert len(cells) == 9
    for name, (inside, outside) in cells.items():
        assert {f"{name}: AUROC In Domain {inside}", f"{name}: AUROC Out of Domain {outside}"} <= table_2
    models = published("ganz_2024_models.csv").astype(str)
    first = {row[1]: row[2:-1] for row in rows if len(row) == 8}
    for row in models[models["where"] == "Tab. 1"].itertuples():
        assert first[row.arm] == [row.algorithm, row.slides, row.tiles, row.type, row.size]


# ---- the truth, planted ----


def test_what_the_paper_says_of_midog_is_found_where_it_is_so(planted):
    """CCMCT's claims are other data's; ± 0.03 of another's 0.81 for Virchow2 isn't the paper's."""
    found = verdicts(planted)
    about_ccmct = found.index.str.contains("CCMCT") & ~found.index.str.contains("both datasets")
    assert set(found[about_ccmct]) == {NOT_TESTABLE} and about_ccmct.sum() == 4
    others = found[~about_ccmct]
    assert others[others != REPRODUCED].empty, others[others != REPRODUCED]
    assert len(others) == 41


def test_what_the_paper_says_of_ccmct_is_found_where_it_is_so():
    study = made_claims.study("ccmct", splits=Splits(by_domain=False))
    alike = dict.fromkeys(TABLE_1[:6], 0.80) | {"virchow2": 0.815, "net": 0.87}
    scores = made_claims.scores(study, full=alike, gain={"net": 0.06})
    found = verdicts(ledger(study, scores), ["data scaling"])
    about_midog = found.index.str.contains("MIDOG")
    assert set(found[about_midog]) == {NOT_TESTABLE}
    rest = found[~about_midog].drop(BOTH)
    assert set(rest) == {REPRODUCED}, rest
    row = ledger(study, scores, BOTH).loc[BOTH]
    assert row["verdict"] == NOT_TESTABLE and "no cross-domain fits" in row["why"]


REVERSED = {
    FIRST: {"full": {"phikon": 0.95}},
    "for all models, performance improved significantly as the size of the available training data increased": {
        "gain": {"uni": -0.05}
    },
    "on the MIDOG dataset, classifiers using embeddings from Phikon and UNI lagged behind the other FM-based approaches": {
        "full": {"uni": 0.81}
    },
    "The two ImageNet baselines were significantly outperformed by both the end-to-end trained ResNet50 and the FM-based "
    "classifiers on both datasets.": {"full": {"resnet50": 0.83}},
    "Across data set sizes, the end-to-end trained baseline model outperformed all other models across both datasets.": {
        "full": {"resnet50": 0.95}
    },
    "0.89 ± 0.01 on the MIDOG dataset": {"full": {"net": 0.93}},
    "the H-optimus-0, Prov-GigaPath, Virchow, and Virchow2 models demonstrated similar performance": {
        "full": {"virchow": 0.70}
    },
    "on the MIDOG dataset, H-optimus-0 embeddings delivered the best performance among the FMs": {"full": {"gigapath": 0.85}},
    BOTH: {"across": {"virchow": (0.79, 0.80)}},
    "better results might be achievable if the FMs were fine-tuned for the specific task": {"full": {"adapted": 0.70}},
    "the ViT-H based classifier, which, despite having a comparable number of parameters, achieved lower performance": {
        "full": {"vit_huge_in21k": 0.83}
    },
    "The FM-based classifiers didn't turn out to be more data-efficient in comparison to our end-to-end trained ResNet50 "
    "model.": {"gain": {"uni": -0.1}},
    "the performance on both datasets in Fig. 1 does not seem to have converged yet": {"gain": {"net": -0.02}},
    "the Uni and Phikon-based models performed slightly worse on the MIDOG dataset compared to the other FMs": {
        "full": {"phikon": 0.81}
    },
    "we did not observe the FM-based classifiers to be more robust against domain shifts": {"across": {"uni": (0.76, 0.74)}},
    "the end-to-end baseline clearly outperforms all other models, both in terms of in-domain performance but also in terms "
    "of out-of-domain performance": {"across": {"uni": (0.76, 0.78)}},
    "better than those using the UNI and Phikon embeddings": {"across": {"uni": (0.76, 0.68)}},
    "given the standard deviations, the performance were relatively similar": {"across": {"uni": (0.76, 0.5)}},
    "Virchow: AUROC In Domain 0.79 ± 0.04": {"across": {"virchow": (0.70, 0.66)}},
    "UNI: AUROC Out of Domain 0.64 ± 0.05": {"across": {"uni": (0.76, 0.70)}},
    "End-To-End ResNet50: AUROC Out of Domain 0.74 ± 0.07": {"across": {"net": (0.87, 0.80)}},
    "Both the FM-based classifiers and the end-to-end baseline experienced substantial performance drops when the in-domain "
    "trained models were applied to different domains": {"across": {"uni": (0.60, 0.64)}},
    "this drop in performance was not evenly distributed across the external domains": {"tilt": 0.0},
    "domain shift is not a symmetrical phenomena": {"tilt": 0.0},
    "We also did not find the FM-based classifiers to be more robust to domain shifts than one of our baselines.": {
        "across": {"phikon": (0.70, 0.69)}
    },
    "the in-domain results of the FM-based classifiers in Table 2 show that all models performed quite similarly": {
        "across": {"uni": (0.70, 0.64)}
    },
}


@pytest.mark.parametrize("quote", REVERSED, ids=lambda quote: quote[:40])
def test_a_claim_is_refuted_where_the_opposite_was_planted(quote, planted, monkeypatch):
    monkeypatch.setattr(Material, "drawn", made_claims.drawn)
    assert planted.loc[quote, "verdict"] == REPRODUCED
    study = made_claims.study()
    made = made_claims.material(study, **REVERSED[quote])
    assert claims.measure(made_claims.row(quote), made).outcome == NOT_REPRODUCED


def test_a_clear_drop_is_not_yet_a_substantial_one(planted, monkeypatch):
    monkeypatch.setattr(Material, "drawn", made_claims.drawn)
    quote = next(quote for quote in REVERSED if "substantial performance drops" in quote)
    study = made_claims.study()
    finding = claims.measure(made_claims.row(quote), made_claims.material(study, across={"uni": (0.60, 0.59)}))
    assert finding.outcome == UNCLEAR and 0 < finding.difference < 0.02


def test_every_claim_on_results_has_its_opposite_among_these_tests(planted):
    """But the cells of Tab. 2, which are one function, and CCMCT's."""
    own = planted[planted["subject"].isin(RESULTS) & (planted["where"] != "Tab. 2") & (planted["verdict"] != NOT_TESTABLE)]
    assert set(own.index) <= set(REVERSED)


def test_folds_that_scatter_leave_comparisons_open():
    study = made_claims.study()
    found = verdicts(ledger(study, made_claims.scores(study, noise=0.1)))
    judged = found[found != NOT_TESTABLE]
    assert (judged == UNCLEAR).sum() > len(judged) / 2


# ---- what a study can't say ----


def test_synthetic_data_settle_no_result_but_show_what_was_found(synthetic):
    rows = synthetic
    of_results = rows[rows["subject"].isin([*RESULTS, "data", "later work"])]
    assert set(of_results["verdict"]) == {NOT_TESTABLE}
    assert of_results["why"].str.startswith("synthetic data cannot settle it").all()
    first = rows.loc[FIRST]
    assert first["here"] == "as stated" and "clearly above zero" in first["found"] and np.isfinite(first["difference"])
    number = rows.loc["0.89 ± 0.01 on the MIDOG dataset"]
    assert number["here"] == "" and np.isnan(number["difference"]) and number["found"].startswith("net 0.89 ±")
    assert set(rows["data"]) == {"study made, synthetic data, paper mode"}
    models = rows[rows["subject"] == "networks"]["verdict"]
    assert (models != NOT_TESTABLE).sum() == 14, "what networks are doesn't depend on the data"


def test_another_question_is_shown_and_not_judged():
    study = replace(made_claims.study("amibr"), data=Data("amibr", "atypical", "normal"))
    rows = ledger(study, made_claims.scores(study, full={"net": 0.5}))
    assert set(verdicts(rows)) == {NOT_TESTABLE}
    row = rows.loc[FIRST]
    assert row["here"] == "not as stated" and row["why"].startswith("another question: atypical against normal")


def test_some_of_the_models_can_refute_and_not_confirm():
    study = made_claims.study(encoders=("virchow2", "uni", "resnet50", "vit_huge_in21k"))
    row = ledger(study, made_claims.scores(study), FIRST).loc[FIRST]
    assert row["verdict"] == UNCLEAR and "without gigapath (not in this study), h_optimus_0" in row["why"]
    assert ledger(study, made_claims.scores(study, full={"uni": 0.95}), FIRST).loc[FIRST, "verdict"] == NOT_REPRODUCED
    trained = made_claims.study(
        encoders=("virchow2", "resnet50", "vit_huge_in21k"), networks=(*made_claims.NETWORKS, Network("uni", "resnet50"))
    )
    row = ledger(trained, made_claims.scores(trained, full={"uni": 0.95}), FIRST).loc[FIRST]
    assert "uni (not in this study)" in row["why"], "a network of that name was taken for the foundation model"


def test_where_none_of_the_models_is_there_others_stand_in_and_settle_nothing():
    study = made_claims.study(
        encoders=("efficientnet_lite0", "vit_tiny_random"), networks=(Network("small", "efficientnet_lite0"),)
    )
    levels = {"full": {"efficientnet_lite0": 0.7, "vit_tiny_random": 0.95, "small": 0.9}}
    levels |= {"across": dict.fromkeys(("efficientnet_lite0", "vit_tiny_random", "small"), (0.7, 0.6))}
    rows = ledger(study, made_claims.scores(study, **levels))
    row = rows.loc[FIRST]
    assert row["verdict"] == NOT_TESTABLE and row["here"] == "as stated", "the random control was taken for a model"
    assert "no ResNet50 trained end to end here (small instead)" in row["why"]
    assert "virchow2, uni, phikon has scores here (efficientnet_lite0 instead)" in row["why"]
    assert set(verdicts(rows)) == {NOT_TESTABLE}


def test_an_arm_that_failed_is_missing_for_its_reason():
    study = made_claims.study()
    failed = pd.DataFrame([{"arm": "uni", "stage": "probe", "reason": "the licence has to be accepted first"}])
    lost = study_predictions.Collected(pd.DataFrame({"arm": []}), failed)
    scores = made_claims.scores(study)
    made = made_claims.material(study, scores[scores["arm"] != "uni"], {"_collected": lost})
    row = claims.answer(made_claims.row("UNI: AUROC In Domain"), made)
    assert (row["verdict"], row["why"]) == (NOT_TESTABLE, "uni: the licence has to be accepted first")


def test_a_number_that_is_not_the_printed_one_comes_with_the_studys_departures():
    strict = replace(made_claims.study(), mode="strict", switches=Switches())
    quote = "0.89 ± 0.01 on the MIDOG dataset"
    official = replace(strict, switches=replace(strict.switches, split_by="official"))
    row = ledger(official, made_claims.scores(official, full={"net": 0.80}), quote).loc[quote]
    assert row["data"].endswith("strict mode, but split_by: official")
    assert row["why"].startswith("not as the released code: strict mode, but split_by: official")
    row = ledger(strict, made_claims.scores(strict, full={"net": 0.80}), quote).loc[quote]
    assert row["verdict"] == NOT_REPRODUCED and "not as the released code: strict mode" in row["why"]
    assert ledger(strict, made_claims.scores(strict), quote).loc[quote, "why"] == "", "there is nothing to explain"
    shorter = made_claims.study(networks=(Network("net", "resnet50", n_epochs=3, input_px=64), made_claims.NETWORKS[1]))
    why = ledger(shorter, made_claims.scores(shorter, full={"net": 0.80}), quote).loc[quote, "why"]
    assert why == "not as published: input_px 64 for 224, n_epochs 3 for 100"


def test_a_network_trained_at_some_sizes_can_lose_and_not_win_at_all():
    study = made_claims.study()
    efficient = next(quote for quote in REVERSED if "data-efficient" in quote)
    for levels, expected in (({}, UNCLEAR), ({"full": {"uni": 0.95}}, NOT_REPRODUCED)):
        scores = made_claims.scores(study, **levels)
        rows = ledger(study, scores[(scores["arm"] != "net") | (scores["size"] > 0.05)], FIRST, efficient)
        assert rows.loc[[FIRST, efficient], "verdict"].tolist() == [expected] * 2
        assert "net not trained at 0.1 %, 1 %" in rows.loc[FIRST, "why"]


def test_one_fold_one_size_or_no_domains_are_said_to_be_missing():
    study = made_claims.study(splits=Splits(n_folds=1, sizes=(1.0,), by_domain=False))
    rows = ledger(study, made_claims.scores(study))
    found = rows[rows["subject"].isin(RESULTS)]
    assert set(found["verdict"]) == {NOT_TESTABLE} and (found["why"] != "").all()
    assert "fewer than three folds" in rows.loc[FIRST, "why"]
    assert rows.loc["domain shift is not a symmetrical phenomena", "why"].startswith("the study has no cross-domain fits")
    two = made_claims.study(splits=Splits(sizes=(1.0,)))
    quote = "the performance on both datasets in Fig. 1 does not seem to have converged yet"
    assert "one size only" in ledger(two, made_claims.scores(two), quote).loc[quote, "why"]


# ---- the ledger as a whole ----


def test_every_row_has_a_verdict_and_a_reason_where_there_is_none(planted, synthetic):
    for rows in (planted, synthetic):
        assert len(rows) == len(CLAIMS)
        assert set(rows["verdict"]) <= set(VERDICTS)
        assert (rows.loc[rows["verdict"] == NOT_TESTABLE, "why"] != "").all()
        assert not rows["found"].str.contains("nan").any() and not rows["why"].str.contains("nan").any()
        why = rows["why"].str.replace("; run the notebook", ", run the notebook")
        assert (why.str.split("; ").str.len() <= 2).all(), "a reason is at most two sentences"


def test_directions_are_what_stands_by_itself():
    """A claim that names a data set is judged on that one."""
    for claim in CLAIMS:
        names = {name for name in ("CCMCT dataset", "MIDOG dataset") if name in claim.quote}
        assert not (names and claim.about == (DIRECTION,)), claim.quote


def test_the_ledger_is_kept_and_a_notebook_shows_what_was_judged_or_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(Material, "drawn", made_claims.drawn)
    study = made_claims.opened(made_claims.study("synthetic"))
    study.folder = tmp_path
    short = claims.exhibit(study).table
    rows = pd.read_csv(study.figures / "claims.csv", keep_default_na=False)
    stored = json.loads((study.figures / "claims.json").read_text(encoding="utf-8"))
    assert len(stored) == len(rows) == len(CLAIMS) and {row["difference"] for row in stored} >= {None}
    assert [row["verdict"] for row in stored] == rows["verdict"].tolist() and list(stored[0]) == list(rows)
    rule = json.loads((study.figures / "claims_rule.json").read_text(encoding="utf-8"))
    assert rule == [*claims.RULE, claims.PRETRAINING_RULE]
    assert list(short.columns) == ["claim", "where", "verdict", "here", "found"]
    assert ((short["verdict"] != NOT_TESTABLE) | (short["here"] != "")).all() and 0 < len(short) < len(rows) / 2


def test_every_name_in_the_rows_is_known():
    groups = {*GROUPS, *facts("arms"), "own probe", *cards(), ""}
    for row in load():
        module = kaiko if row.evidence == claims.PRETRAINING else checks
        assert not row.check or callable(getattr(module, row.check)), row.quote
        assert row.rule in {*RULES, "within", "equals", "holds", ""} and hasattr(reasons, row.explain or "protocol"), row.quote
        names = [name for arm in (row.first, row.second) for name in (arm if isinstance(arm, list) else [arm])]
        assert {name.removesuffix(" adapted") for name in names} <= groups, row.quote
    with pytest.raises(TypeError, match="marign"):
        Row("p", "data", "q", "here", "t", marign=0.02)
