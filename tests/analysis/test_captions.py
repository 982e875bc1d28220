"""Captions: what they say is computed, follows the tables, and says whose data they are."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_figures import (
    HOME,
    INTERVAL,
    MIDOG,
    SYNTHETIC,
    bins,
    by_test_domain,
    calibration,
    human,
    intervals,
    matrix,
    means,
    order,
    scaling,
    scores,
    strata,
)

from mfcore.analysis import arms, captions, compare, domains as of_domains, scaling as of_scaling
from mfcore.measures import binary, resampling
from mfcore.study.config import Data, Pretraining, Switches


def agreement():
    rows = [
        ("good", "all", "consensus", 100, 0.8),
        ("good", "all", "one rater", 100, 0.75),
        ("good", "unanimous", "consensus", 80, 0.85),
        ("good", "contested", "consensus", 20, 0.6),
    ]
    table = pd.DataFrame(rows, columns=["arm", "annotations", "against", "n_test", "balanced_accuracy"])
    return table.assign(balanced_accuracy_sd=0.01)


def whole_agreement():
    """`agreement` with every metric, as `compare_strata.by_agreement` has it."""
    columns = {f"{name}{end}": 0.5 for name in binary.METRICS for end in ("", "_sd")}
    return pd.DataFrame([columns | row for row in agreement().to_dict("records")])


def fig_1(study, table=None, interval=INTERVAL, human=None):
    return of_scaling.figure_1(study, scores(table), interval, human).text


STUDIES = {"real": MIDOG, "synthetic": SYNTHETIC}
STUDIES["switched"] = replace(SYNTHETIC, switches=replace(SYNTHETIC.switches, split_by="annotation"))


@functools.cache  # an exhibit is drawn as its caption is written
def every_caption(which):
    """Each caption of these figures, by its name."""
    study = STUDIES[which]
    return {
        "scaling": of_scaling.figure_1(study, scores(), INTERVAL, human()).text,
        "raters": arms.raters_table(study, human()).text,
        "agreement": arms.by_agreement(study, whole_agreement()).text,
        "ranking": arms.ranking(study, order([]), intervals()).text,
        "curves": of_scaling.learning_curves(study, scores()).text,
        "patches_needed": of_scaling.patches_needed(study, scores()).text,
        "reliability": arms.reliability(study, bins(), calibration()).text,
        "strata": arms.strata(study, strata()).text,
        "cross_domain": of_domains.cross_domain(study, matrix(), means()).text,
        "by_test_domain": of_domains.by_test_domain(study, by_test_domain(), human()).text,
        "means": of_domains.means(study, means()).text,
        "asymmetry": of_domains.asymmetry(study, asymmetry()).text,
    }


def test_every_caption_says_what_departs_from_the_studys_mode():
    study = STUDIES["switched"]
    usual, said = every_caption("synthetic"), "synthetic data, strict mode, but split_by: annotation"
    for name, text in every_caption("switched").items():
        assert said in text and "strict mode" not in text.replace(said, "") + usual[name], name
    found = captions.abstract(study, scaling(), means().iloc[:0], 0)
    assert f"(study `{study.name}`, {said})" in found
    assert f"(study `{MIDOG.name}`, strict mode)" in captions.abstract(MIDOG, scaling(), means().iloc[:0], 0)


def test_figs_1_and_2_say_what_the_star_of_the_home_made_encoder_is():
    for of_study in (fig_1, lambda study: of_domains.cross_domain(study, matrix(), means()).text):
        assert "; stars: pretrained here, also on the slides tested, without labels." in of_study(HOME)
        assert "star" not in of_study(MIDOG)
    assert "other (probe, pretrained here) 0.83 ± 0.02" in captions.abstract(HOME, scaling(), means().iloc[:0], 0)
    elsewhere = replace(MIDOG, pretraining=(Pretraining("other", slides="s3://bucket/"),))
    assert "; stars: pretrained here." in fig_1(elsewhere), "slides that are not the study's are not tested on"


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


@pytest.mark.parametrize("name", list(every_caption("real")))
def test_a_caption_of_synthetic_data_says_so_and_none_holds_a_missing_number(name):
    assert "synthetic data" in every_caption("synthetic")[name]
    assert "synthetic" not in every_caption("real")[name]
    for study in ("real", "synthetic"):
        text = every_caption(study)[name]
        assert "nan" not in text.split() and " inf" not in text and "  " not in text and text.startswith("**")


def test_captions_say_what_the_raters_reach_and_whose_votes_they_are():
    of_fig_1 = fig_1(MIDOG, human=human())
    assert "shaded: 95 % interval over 10 slides of one rater against another (the data set's own raters)" in of_fig_1
    below = of_domains.by_test_domain(MIDOG, by_test_domain(), human()).text
    assert "lines: the data set's own raters, one against another (shaded: 95 % interval over slides)" in below
    table = arms.raters_table(MIDOG, human()).text
    assert "On 103 annotations, 20.0 % of them contested" in table and "balanced accuracy of 0.73 [0.71, 0.76]" in table
    split = arms.by_agreement(MIDOG, whole_agreement()).text
    assert "good has a balanced accuracy of 0.85 ± 0.01 on unanimous labels and 0.60 ± 0.01 on contested ones." in split
    for text in (of_fig_1, below, table, split):
        assert "synthetic" not in text and "the data set's own raters" in text
    for name in ("scaling", "raters", "agreement", "by_test_domain"):
        assert "synthetic raters" in every_caption("synthetic")[name]


def test_captions_without_votes_say_so_or_say_nothing():
    none = human().iloc[:0]
    assert fig_1(MIDOG, human=none) == fig_1(MIDOG)
    assert (
        of_domains.by_test_domain(MIDOG, by_test_domain(), none).text == of_domains.by_test_domain(MIDOG, by_test_domain()).text
    )
    assert "no human reference" in arms.raters_table(MIDOG, none).text
    assert "can't be told apart" in arms.by_agreement(MIDOG, agreement().iloc[:0]).text


def test_fig_1_says_whose_values_are_published_and_where_networks_have_folds_of_their_own():
    apart = replace(MIDOG, switches=Switches(shared_splits=False))
    assert "Ganz et al. 2024 and Ammeling et al. 2025, second-hand" in fig_1(MIDOG) and "the same for every arm" in fig_1(MIDOG)
    assert "networks and probes on folds of their own" in fig_1(apart)


def test_arms_on_folds_of_their_own_are_not_said_to_be_paired():
    own = replace(MIDOG, switches=replace(MIDOG.switches, shared_splits=False))
    texts = [arms.ranking(study, order([]), intervals()).text for study in (MIDOG, own)]
    assert ["unpaired, as they have folds of their own" in text for text in texts] == [False, True]
    assert "(paired over folds, corrected for their overlap" in texts[0]


def test_the_caption_of_the_ranking_names_the_arms_that_tie_with_the_first():
    def said(ranked):
        return arms.ranking(MIDOG, ranked, intervals()).caption.rsplit(". ", 1)[1]

    assert said(order([])) == "net is first; every other arm is clearly below it."
    assert said(order([{"net", "low rank"}, {"net", "good"}])) == "net is first; low rank and good can't be told from it."
    assert said(order([]).iloc[:1]) == "net is first, and the only arm."
    assert "over 6 pairs after Holm" in arms.ranking(MIDOG, order([]), intervals()).caption


def test_the_caption_of_the_ranking_says_which_test_was_used():
    by_folds, by_cases = (arms.ranking(MIDOG, order([]).assign(over=over), intervals()).text for over in ("folds", "31 cases"))
    assert "Nadeau and Bengio" in by_folds and "draws" not in by_folds
    assert "over draws of the 31 cases that all folds test, after Obuchowski" in by_cases and "Nadeau" not in by_cases


def test_captions_say_how_often_intervals_over_few_slides_hold_the_truth():
    """The number is the one that the simulation holds."""
    known = resampling.COVERAGE[8]
    said = f", which in a simulation, over 8 slides, held the true AUROC {100 * known:.0f} times in 100."
    assert said in arms.ranking(MIDOG, order([]), intervals()).text
    assert "simulation" not in arms.ranking(MIDOG, order([]), intervals().assign(n=300)).text
    assert "[0.80, 0.86] over the 12 cases tested." in fig_1(MIDOG, interval=replace(INTERVAL, unit="case"))


def test_calibration_names_the_best_and_the_worst():
    text = arms.reliability(MIDOG, bins(), calibration()).text
    assert "between 0.10 (net) and 0.16 (other)" in text


def test_fig_2_sets_the_published_means_beside_ours_where_the_classes_are_theirs():
    text = every_caption("real")["cross_domain"]
    assert "published: Tab. 2, on MIDOG 2022" in text and text.endswith("net is highest: 0.70, against 0.80 in domain.")
    other = of_domains.cross_domain(replace(MIDOG, data=Data("amibr")), matrix(), means())
    assert "of other classes" in other.text
    names = [label.get_text() for label in other.figure.axes[-1].get_yticklabels()]
    assert not any("ResNet50" in name for name in names)


def test_the_way_there_and_back_is_the_largest_of_how_many():
    assert "The largest of 3 differences is net, x to y 0.80, back 0.60" in every_caption("real")["asymmetry"]
    assert "no way back" in of_domains.asymmetry(MIDOG, asymmetry().iloc[:0]).text


def test_the_loss_by_tumour_and_scanner_says_over_what_its_intervals_are():
    rows = [
        ("net", "tumour alone", 0.05, 0.01, 0.09, 2, "", "31 cases"),
        ("net", "scanner alone", np.nan, np.nan, np.nan, 0, "no tumour has two scanners", ""),
    ]
    table = pd.DataFrame(rows, columns=["arm", "comparison", "auroc_drop", "low", "high", "n", "why", "over"])
    found = of_domains.tumour_against_scanner(SYNTHETIC, table)
    assert "95 % intervals over draws of 31 cases;" in found.text and "synthetic data" in found.text
    assert found.readable["why"].tolist() == ["", "no tumour has two scanners"]
    nothing = of_domains.tumour_against_scanner(MIDOG, table.iloc[[1]].assign(arm="")).text
    assert "intervals over folds;" in nothing and "nan" not in nothing


def test_a_caption_says_which_of_many_arms_are_shown():
    many = pd.concat(
        [by_test_domain(), *(by_test_domain().query("arm == 'other'").assign(arm=f"e{i}", mean=0.1) for i in "ab")]
    )
    assert "of the best arm of each kind (of 6) in domain" in of_domains.by_test_domain(MIDOG, many).text
    assert "of every arm in domain" in of_domains.by_test_domain(MIDOG, by_test_domain()).text


def test_where_too_few_slides_give_no_interval_none_is_claimed():
    few = replace(INTERVAL, low=np.nan, high=np.nan, n=3)
    text = fig_1(MIDOG, interval=few)
    assert "nan" not in text and "95 % interval none, of 3 slides tested only." in text


def test_the_lowest_loss_of_one_training_came_in_one_epoch():
    table = pd.DataFrame({"unit": "all-fold0-size1", "epoch": [1, 2, 3], "val_loss": [0.5, 0.3, 0.4], "seconds": 60.0})
    said = captions.history(MIDOG, table, "net")
    assert "of 1 training;" in said and "came in epoch 2 of 3 (" in said
    two = pd.concat([table, table.assign(unit="all-fold1-size1", val_loss=[0.5, 0.4, 0.3])])
    assert "came in epoch 2 to 3 of 3 (" in captions.history(MIDOG, two, "net")


def test_a_way_to_split_that_is_not_drawn_has_its_reason_and_no_advice():
    said = captions.not_drawn({"official": "the data name no official test slides; set switches.split_by: slide"})
    assert said.endswith("(the data name no official test slides).")


def test_captions_speak_of_cases_where_cases_were_drawn():
    """Every sentence on an interval names what was drawn; with cases, none says slides."""
    over = replace(INTERVAL, unit="case")
    by_case = human().assign(unit="case")
    texts = [
        fig_1(MIDOG, interval=over, human=by_case),
        fig_1(MIDOG, interval=replace(over, low=np.nan)),
        arms.raters_table(MIDOG, by_case).text,
        arms.ranking(MIDOG, order([]), intervals().assign(unit="case")).text,
        arms.reliability(MIDOG, bins().assign(unit="case"), calibration()).text,
        arms.strata(MIDOG, strata().assign(unit="case")).text,
        of_domains.by_test_domain(MIDOG, by_test_domain(), by_case).text,
    ]
    for text in texts:
        assert "cases" in text and "slides" not in text.replace("held-out slides", ""), text
