"""Captions: what they say is computed, follows the tables, and says whose data they are."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_figures import (
    BINS,
    HOME,
    MIDOG,
    SYNTHETIC,
    bins,
    by_test_domain,
    calibration,
    human,
    matrix,
    means,
    order,
    scaling,
    strata,
)

from mfcore.analysis import captions, captions_domains, captions_models, compare, figures_domains, figures_scaling
from mfcore.measures import resampling
from mfcore.measures.statistics import Interval
from mfcore.study.config import Data, Pretraining, Switches

INTERVAL = Interval(0.83, 0.8, 0.86, 0.95, 12)
SHOW = "Folds show little."


def agreement():
    rows = [
        ("good", "all", "consensus", 100, 0.8),
        ("good", "all", "one rater", 100, 0.75),
        ("good", "unanimous", "consensus", 80, 0.85),
        ("good", "contested", "consensus", 20, 0.6),
    ]
    table = pd.DataFrame(rows, columns=["arm", "annotations", "against", "n_test", "balanced_accuracy"])
    return table.assign(balanced_accuracy_sd=0.01)


def fits():
    columns = ["arm", "kind", "asymptote", "low", "high", "n_needed", "n_needed_low", "n_needed_high", "why_not"]
    columns += ["per_tenfold", "per_tenfold_low", "per_tenfold_high", "n_straight", "n_straight_low", "n_straight_high"]
    rows = [
        ("net", "end-to-end", 0.95, 0.9, 1.0, 100, 100, 100, "", 0.1, 0, 0.2, 100, 100, 100),
        ("good", "probe", 0.9, 0.85, 0.94, 12345, 2345, np.inf, "", 0.1, 0, 0.2, 200, 100, np.inf),
        ("other", "probe", *[np.nan] * 6, "it rises with no bend", 0.04, -0.01, 0.08, 9.87e6, 1e5, np.inf),
        ("low rank", "LoRA", *[np.nan] * 6, "it rises with no bend", -0.01, -0.05, 0.02, np.inf, np.inf, np.inf),
    ]
    return pd.DataFrame(rows, columns=columns)


def every_caption(study):
    """Each caption of these figures, by its name."""
    return {
        "scaling": captions.data_scaling(study, scaling(), INTERVAL, human(), agreement(), figures_scaling.published(study)),
        "raters": captions.raters_table(study, human()),
        "agreement": captions.by_agreement(study, agreement()),
        "ranking": captions_models.ranking(study, order([]), INTERVAL, SHOW),
        "curves": captions_models.curves(study, fits(), scaling()),
        "reliability": captions_models.reliability(study, bins(), calibration()),
        "strata": captions_models.strata(study, strata()),
        "cross_domain": captions_domains.cross_domain(study, matrix(), means(), figures_domains.published(study)),
        "by_test_domain": captions_domains.by_test_domain(study, by_test_domain(), human()),
        "means": captions_domains.cross_domain_means(study),
        "asymmetry": captions_domains.asymmetry(study, asymmetry()),
    }


def test_every_caption_says_what_departs_from_the_studys_mode():
    study = replace(SYNTHETIC, switches=replace(SYNTHETIC.switches, split_by="annotation"))
    usual, said = every_caption(SYNTHETIC), "synthetic data, strict mode, but split_by: annotation"
    for name, text in every_caption(study).items():
        assert said in text and "strict mode" not in text.replace(said, "") + usual[name], name
    found = captions.abstract(study, scaling(), means().iloc[:0], 0)
    assert f"(study `{study.name}`, {said})" in found
    assert f"(study `{MIDOG.name}`, strict mode)" in captions.abstract(MIDOG, scaling(), means().iloc[:0], 0)


def test_figs_1_and_2_name_the_home_made_encoder_and_what_it_saw():
    said = (
        " other (star) is the home-made foundation model: pretrained here, by DINO from random weights, 125,000 steps of 256 "
        "patches drawn from the study's own slides. The slides that it is tested on are among them, seen without any label."
    )
    fig_1 = captions.data_scaling(HOME, scaling(), INTERVAL)
    fig_2 = captions_domains.cross_domain(HOME, matrix(), means(), figures_domains.published(HOME))
    assert said in fig_1 and said in fig_2
    assert "home-made" not in captions.data_scaling(MIDOG, scaling(), INTERVAL)
    assert "other (probe, pretrained here) 0.83 ± 0.02" in captions.abstract(HOME, scaling(), means().iloc[:0], 0)


def test_an_arm_of_one_size_reached_its_score_and_went_nowhere():
    table = scaling()[lambda rows: (rows["arm"] != "low rank") | (rows["size"] == 1)]
    said = captions.abstract(MIDOG, table, means().iloc[:0], 0)
    assert "The best LoRA arm, low rank, reached 0." in said and "arm, net, went 0." in said


def test_no_score_is_below_zero_by_rounding():
    assert compare.plus_minus(-0.001, 0.002) == "0.00 ± 0.00" and compare.plus_minus(-0.01, np.nan) == "-0.01"


def test_slides_that_are_not_the_study_s_are_not_said_to_be_tested_on():
    elsewhere = Pretraining("other", method="dinov2", start="good", slides="s3://bucket/")
    study = replace(MIDOG, pretraining=(elsewhere, Pretraining("good")))
    one = captions.home_made(study, ["net", "other"])
    assert "by DINOv2 from good" in one and one.endswith("drawn from slides of its own.")
    both = captions.home_made(study, ["good", "other", "good"])
    assert both.startswith(" good and other (star) are home-made foundation models") and "seen without any label" in both


def test_tables_mark_the_home_made_encoder():
    shown = compare.wide(compare.marked(scaling(), HOME)).set_index("arm")["kind"]
    assert shown.to_dict() == {"net": "end-to-end", "low rank": "LoRA", "good": "probe", "other": "probe, pretrained here"}


def asymmetry():
    rows = [("net", "x", "y", 0.8, 0.6, 0.2), ("net", "x", "z", 0.7, 0.8, -0.1), ("good", "x", "y", 0.6, 0.61, -0.01)]
    return pd.DataFrame(rows, columns=["arm", "first", "second", "there", "back", "difference"])


@pytest.mark.parametrize("name", list(every_caption(MIDOG)))
def test_a_caption_of_synthetic_data_says_so_and_none_holds_a_missing_number(name):
    assert "synthetic data" in every_caption(SYNTHETIC)[name]
    assert "synthetic" not in every_caption(MIDOG)[name]
    for study in (MIDOG, SYNTHETIC):
        text = every_caption(study)[name]
        assert "nan" not in text.split() and " inf" not in text and "  " not in text and text.startswith("**")


def test_captions_say_what_the_raters_reach_and_whose_votes_they_are():
    fig_1 = captions.data_scaling(MIDOG, scaling(), INTERVAL, human(), agreement())
    assert "one rater against another, balanced accuracy 0.73 [0.71, 0.76] (95 % bootstrap of 10 slides, shaded)" in fig_1
    assert "on 103 annotations" in fig_1 and "a rater against the consensus, 0.89, flattered" in fig_1
    assert "good with all the data has 0.75 instead of 0.80" in fig_1
    below = captions_domains.by_test_domain(MIDOG, by_test_domain(), human())
    assert "x 0.70 [0.68, 0.73], y 0.71 [0.69, 0.74], z 0.72 [0.70, 0.75]" in below and "(303 annotations)" in below
    table = captions.raters_table(MIDOG, human())
    assert "Cohen's kappa 0.73" in table and "103 annotations" in table and "the 2 raters" in table and "30.0 %" in table
    split = captions.by_agreement(MIDOG, agreement())
    assert "unanimous labels (80 tested a fold) 0.85 ± 0.01, contested labels (20 tested a fold) 0.60 ± 0.01" in split
    for text in (fig_1, below, table, split):
        assert "synthetic" not in text and "the data set's own raters" in text
    for name in ("scaling", "raters", "agreement", "by_test_domain"):
        assert "synthetic raters" in every_caption(SYNTHETIC)[name]


def test_captions_without_votes_say_so_or_say_nothing():
    none = human().iloc[:0]
    assert captions.data_scaling(MIDOG, scaling(), INTERVAL, none, agreement().iloc[:0]) == captions.data_scaling(
        MIDOG, scaling(), INTERVAL
    )
    assert captions_domains.by_test_domain(MIDOG, by_test_domain(), none) == captions_domains.by_test_domain(
        MIDOG, by_test_domain()
    )
    assert "no human reference" in captions.raters_table(MIDOG, none)
    without_interval = human().assign(balanced_accuracy_low=np.nan, balanced_accuracy_high=np.nan)
    assert "nan" not in captions_domains.by_test_domain(MIDOG, by_test_domain(), without_interval)
    assert "can't be told apart" in captions.by_agreement(MIDOG, agreement().iloc[:0])


def test_fig_1_names_what_is_published_where_and_second_hand():
    text = captions.data_scaling(MIDOG, scaling(), INTERVAL, beside=figures_scaling.published(MIDOG))
    assert "end-to-end, CCMCT, AUROC 0.87 (Ganz et al. 2024, section 4)" in text
    assert "LoRA, MIDOG 2022, balanced accuracy 0.80 (Ammeling et al. 2025, second-hand)" in text
    assert "on real data" not in text and "on real data" in every_caption(SYNTHETIC)["scaling"]


def test_fig_1_says_where_networks_have_folds_of_their_own():
    apart = replace(MIDOG, switches=Switches(shared_splits=False))
    assert "the same for every arm" in captions.data_scaling(MIDOG, scaling(), INTERVAL)
    assert "networks and probes on folds of their own" in captions.data_scaling(apart, scaling(), INTERVAL)


def test_arms_on_folds_of_their_own_are_not_said_to_be_paired():
    own = replace(MIDOG, switches=replace(MIDOG.switches, shared_splits=False))
    texts = [captions_models.ranking(study, order([]), INTERVAL, SHOW) for study in (MIDOG, own)]
    assert ["unpaired, as they have folds of their own" in text for text in texts] == [False, True]
    assert "(paired over folds, corrected for their overlap" in texts[0]


def test_which_arms_can_t_be_told_apart_is_read_off_the_ranking():
    told = captions_models.told_apart
    assert told(order([])) == "The 5 folds tell all 4 arms apart."
    some = [{"net", "low rank"}, {"low rank", "good"}, {"net", "good"}, {"good", "other"}]
    assert told(order(some)) == "Not to be told apart by 5 folds: net, low rank and good; good and other."
    names = list(order([])["arm"])
    everyone = [{a, b} for a in names for b in names if a != b]
    assert told(order(everyone)) == "No two of the 4 arms can be told apart by 5 folds."
    two = order([{"net", "low rank"}]).iloc[:2]
    assert told(two) == "The two arms can't be told apart by 5 folds."
    assert told(order([]).iloc[:1]) == "There is one arm only."
    text = captions_models.ranking(MIDOG, order(some), INTERVAL, SHOW)
    assert "over 6 pairs" in text and "12 slides" in text and text.endswith(SHOW)


def test_the_caption_of_the_ranking_says_which_test_was_used():
    by_folds, by_cases = (
        captions_models.ranking(MIDOG, order([]).assign(over=over), INTERVAL, SHOW) for over in ("folds", "31 cases")
    )
    assert "Nadeau and Bengio" in by_folds and "draws" not in by_folds
    assert "all folds being tested on the same 31 cases, over draws of these" in by_cases and "Nadeau" not in by_cases
    assert "draws of 31 cases tell all 4 arms apart." in by_cases


def test_captions_say_how_often_intervals_over_few_slides_hold_the_truth():
    """The number is the one that the simulation holds."""
    known = resampling.COVERAGE[8]
    said = f"In a simulation, 95 % intervals over 8 slides held the true AUROC {100 * known:.0f} times in 100."
    of_cases, many = replace(INTERVAL, unit="case"), replace(INTERVAL, n=300)
    assert said in captions.data_scaling(MIDOG, scaling(), INTERVAL) and said in captions_models.ranking(
        MIDOG, order([]), INTERVAL, SHOW
    )
    assert "over the 12 cases tested (bootstrap of cases)" in captions.data_scaling(MIDOG, scaling(), of_cases)
    assert "simulation" not in captions.data_scaling(MIDOG, scaling(), many)


def test_the_curves_say_how_much_more_data_would_close_the_gap_and_what_isn_t_known():
    table = scaling().assign(auroc=lambda t: t["auroc"] + 0.05 * (t["arm"] == "net"))
    text = captions_models.curves(MIDOG, fits(), table)
    assert "Dashed: net, 0.88 with 100 patches" in text
    assert "net levels off at 0.95 [0.90, 1.00];" in text
    assert "good levels off at 0.90 [0.85, 0.94] and would need 12,000 patches [2,300 to no end] to close the gap" in text
    assert "no curve of other and low rank (it rises with no bend)" in text
    assert "other +0.04 [-0.01, +0.08], at that rate 9.9 million patches [100,000 to no end]" in text
    assert "low rank -0.01 [-0.05, +0.02], at that rate no number of patches." in text


def test_calibration_names_the_best_the_worst_and_the_useless():
    text = captions_models.reliability(MIDOG, bins(), calibration())
    assert "from 0.10 (net) to 0.16 (other)" in text and "0.30 of the patches are of class 1" in text
    assert "4 bins have too few slides" in text and "no better" not in text
    useless = calibration().assign(brier=[0.2, 0.21, 0.3, 0.1])
    assert "The Brier score of low rank and good is no better than that of a constant." in captions_models.reliability(
        MIDOG, bins(), useless
    )
    one = pd.DataFrame(bins().iloc[:1], columns=BINS).assign(low=np.nan)
    assert "1 bin has too few slides" in captions_models.reliability(MIDOG, one, calibration())


def test_strata_say_the_span_whether_it_is_clear_and_what_the_data_can_t_tell():
    text = captions_models.strata(MIDOG, strata())
    assert (
        "By domain: net from 0.70 (human breast cancer, 50 patches) to 0.80 (canine lung cancer, 50), intervals overlap" in text
    )
    assert "By scanner: there is S1 only." in text
    apart = strata().assign(high=lambda t: t["low"] + 0.05)
    assert "intervals apart" in captions_models.strata(MIDOG, apart)
    without = strata()[strata()["stratum"] == "domain"]
    assert "By the raters' agreement: not to be told from these data." in captions_models.strata(MIDOG, without)


def test_fig_2_sets_the_published_means_beside_ours_where_the_classes_are_theirs():
    text = every_caption(MIDOG)["cross_domain"]
    assert "net 0.80 → 0.70" in text and "End-To-End ResNet50 0.87 → 0.74" in text
    assert "the best probes Prov-GigaPath, H-optimus-0, Virchow and Virchow2 0.79 → 0.66" in text
    assert "between 0.60 (other, x to y) and 0.70 (net, x to y)" in text
    amibr = replace(MIDOG, data=Data("amibr"))
    other = captions_domains.cross_domain(amibr, matrix(), means(), figures_domains.published(amibr))
    assert "of other classes and not drawn here" in other and "ResNet50" not in other


def test_the_way_there_and_back_is_the_largest_of_how_many():
    text = every_caption(MIDOG)["asymmetry"]
    assert "difference of 2 pairs, by arm: net x to y 0.80, back 0.60; good x to y 0.60, back 0.61. As the largest" in text
    assert "no way back" in captions_domains.asymmetry(MIDOG, asymmetry().iloc[:0])
    assert "As the largest" not in captions_domains.asymmetry(MIDOG, asymmetry().iloc[2:])


def test_tumour_and_scanner_are_told_apart_only_where_the_data_can():
    rows = [
        ("net", "tumour alone", 0.05, 0.01, 0.09, 2, ""),
        ("net", "scanner alone", np.nan, np.nan, np.nan, 0, "no tumour has two scanners"),
        ("good", "tumour alone", 0.1, 0.02, 0.18, 2, ""),
        ("good", "scanner alone", np.nan, np.nan, np.nan, 0, "no tumour has two scanners"),
    ]
    table = pd.DataFrame(rows, columns=["arm", "comparison", "auroc_drop", "low", "high", "n", "why"]).assign(over="folds")
    text = captions_domains.tumour_against_scanner(SYNTHETIC, table)
    assert "net: tumour alone +0.05 [+0.01, +0.09] (2 pairs); good: tumour alone +0.10" in text and "synthetic data" in text
    assert text.count("scanner alone (no tumour has two scanners)") == 1
    nothing = captions_domains.tumour_against_scanner(MIDOG, table.iloc[[1]].assign(arm=""))
    assert nothing.endswith("Not to be told: scanner alone (no tumour has two scanners).") and "nan" not in nothing


def test_a_caption_says_which_of_many_arms_are_shown():
    many = pd.concat(
        [by_test_domain(), *(by_test_domain().query("arm == 'other'").assign(arm=f"e{i}", mean=0.1) for i in "ab")]
    )
    assert "Of 6 arms the best of each kind: net, low rank and good." in captions_domains.by_test_domain(MIDOG, many)
    assert "the best of each kind" not in captions_domains.by_test_domain(MIDOG, by_test_domain())


def test_the_effects_of_switches_name_those_clear_of_zero():
    rows = [
        ("epoch", "good", 0.01, -0.01, 0.03, True),
        ("split_by", "good", 0.05, 0.02, 0.08, True),
        ("border", "good", np.nan, np.nan, np.nan, False),
    ]
    table = pd.DataFrame(rows, columns=["switch", "arm", "difference", "low", "high", "applies"])
    text = captions_models.effects(SYNTHETIC, table)
    assert "Clear of zero: split_by (good +0.050)." in text and "1 can't be measured" in text and "synthetic" in text
    assert "None of the differences is clear of zero." in captions_models.effects(MIDOG, table.iloc[:1])


def test_where_too_few_slides_give_no_interval_none_is_claimed():
    few = replace(INTERVAL, low=np.nan, high=np.nan, n=3)
    text = captions.data_scaling(MIDOG, scaling(), few)
    assert "nan" not in text and "no 95 % interval over the 3 slides tested, which are too few" in text
    strata_text = captions_models.strata(MIDOG, strata().assign(low=np.nan, high=np.nan))
    assert "apart" not in strata_text and "no intervals to tell whether they differ" in strata_text
    table = pd.DataFrame(
        [("net", "tumour alone", 0.05, np.nan, np.nan, 2, "folds", "")],
        columns=["arm", "comparison", "auroc_drop", "low", "high", "n", "over", "why"],
    )
    assert "net: tumour alone +0.05 (2 pairs)." in captions_domains.tumour_against_scanner(MIDOG, table)


def test_one_fold_and_two_arms_are_spoken_of_as_such():
    alone = order([]).iloc[:2].assign(n_folds=1, tied_with=["low rank", "net"])
    assert captions_models.told_apart(alone) == "The two arms can't be told apart by 1 fold."
    assert captions_models.told_apart(order([]).iloc[:2]) == "The 5 folds tell the two arms apart."


def test_the_lowest_loss_of_one_training_came_in_one_epoch():
    table = pd.DataFrame({"unit": "all-fold0-size1", "epoch": [1, 2, 3], "val_loss": [0.5, 0.3, 0.4], "seconds": 60.0})
    said = captions.history(MIDOG, table, "net")
    assert "of 1 training;" in said and "came in epoch 2 of 3 (" in said
    two = pd.concat([table, table.assign(unit="all-fold1-size1", val_loss=[0.5, 0.4, 0.3])])
    assert "came in epoch 2 to 3 of 3 (" in captions.history(MIDOG, two, "net")


def test_a_way_to_split_that_is_not_drawn_has_its_reason_and_no_advice():
    said = captions.not_drawn({"official": "the data name no official test slides; set switches.split_by: slide"})
    assert said.endswith("(the data name no official test slides).")


def test_two_scores_that_read_alike_are_not_said_to_differ():
    alike = agreement().assign(balanced_accuracy=0.8)
    said = captions.data_scaling(MIDOG, scaling(), INTERVAL, human(), alike)
    assert "instead of the consensus, good with all the data has 0.80 too." in said


def test_a_probe_that_gives_one_score_is_said_to():
    table = scaling()
    full = table["size"] == table["size"].max()
    table.loc[full & table["arm"].isin(["good", "net"]), ["auroc", "auroc_sd"]] = (0.5, 0.0)
    said = captions.data_scaling(replace(MIDOG, probe_audit=("good",)), table, INTERVAL)
    assert " good with all the data gives every patch one score:" in said and "audit of the probe" in said
    assert "audit" not in captions.data_scaling(MIDOG, table, INTERVAL)
    assert "one score" not in captions.data_scaling(MIDOG, scaling(), INTERVAL)


def test_captions_speak_of_cases_where_cases_were_drawn():
    """Every sentence on an interval names what was drawn; with cases, none says slides."""
    over = replace(INTERVAL, unit="case")
    by_case = human().assign(unit="case")
    texts = [
        captions.data_scaling(MIDOG, scaling(), over, by_case),
        captions.data_scaling(MIDOG, scaling(), replace(over, low=np.nan)),
        captions.raters_table(MIDOG, by_case),
        captions_models.ranking(MIDOG, order([]), over, SHOW),
        captions_models.reliability(MIDOG, bins().assign(unit="case"), calibration()),
        captions_models.strata(MIDOG, strata().assign(unit="case")),
        captions_domains.by_test_domain(MIDOG, by_test_domain(), by_case),
    ]
    for text in texts:
        assert "cases" in text and "slides" not in text.replace("held-out slides", ""), text
