"""Exhibits: each is drawn from an opened study, says whose data they are, and keeps its words and marks within its edges."""

import functools
import itertools
import re
import types
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from made_scores import DOMAINS, KINDS, MIDOG, SYNTHETIC, labels, opened, predictions
from matplotlib.figure import Figure

from mfcore import store
from mfcore.analysis import arms, domains, exhibit, overview, scaling, scores as of_scores
from mfcore.claims import ledger
from mfcore.measures import binary, curves, raters, resampling
from mfcore.study.config import Data, Network, Pretraining, Splits
from mfcore.study.predictions import Collected, scores

MADE = {
    "scores": scaling.scores,
    "raters": scaling.raters,
    "published": scaling.published_values,
    "figure_1": scaling.figure_1,
    "learning_curves": scaling.learning_curves,
    "patches_needed": scaling.patches_needed,
    "missing": arms.missing,
    "differences": arms.differences,
    "least_difference": arms.least_difference,
    "ranking": arms.ranking,
    "calibration": arms.calibration,
    "strata": arms.strata,
    "by_agreement": arms.by_agreement,
    "means": domains.means,
    "cross_domain": domains.cross_domain,
    "by_test_domain": domains.by_test_domain,
    "tumour_against_scanner": domains.tumour_against_scanner,
}
DRAWN = ["figure_1", "learning_curves", "ranking", "calibration", "strata", "means", "cross_domain", "by_test_domain"]
SETTINGS = {"real": MIDOG, "synthetic": SYNTHETIC}


@functools.cache
def study(which):
    return opened(SETTINGS[which])


@functools.cache
def made(name, which="synthetic"):
    """An exhibit with its figure's layout settled, made once for all tests that only look."""
    found = MADE[name](study(which))
    if found.figure is not None:
        found.figure.draw_without_rendering()
    return found


@pytest.mark.parametrize("name", MADE)
def test_a_caption_has_three_sentences_at_most_and_says_whose_data_they_are(name):
    text = made(name).caption
    assert len(re.findall(r"(?<!al)\. (?=[A-Z\"])|\.$", text)) <= 3, text
    assert ("synthetic data" in text) == (name not in ("missing", "published")), text
    assert "nan" not in text.split() and "  " not in text and made(name).text.startswith(f"**{made(name).title}.** ")


@pytest.mark.parametrize("name", ["raters", "differences", "patches_needed"])
def test_real_data_are_not_called_synthetic_and_what_departs_from_the_mode_is_said(name):
    assert "synthetic" not in made(name, "real").caption
    switched = replace(MIDOG, switches=replace(MIDOG.switches, split_by="annotation"))
    other = MADE[name](opened(switched)).caption
    assert "(study `t`, strict mode, but split_by: annotation" in other and "mode" not in made(name, "real").caption


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_says_synthetic_and_nothing_is_tiny_or_cut_off(name):
    figure = made(name).figure
    assert figure.get_suptitle().startswith(f"{SYNTHETIC.title}, synthetic data")
    box, (width, height) = figure.get_tightbbox().extents * figure.dpi, figure.bbox.size
    assert max(-box[0], -box[1], box[2] - width, box[3] - height) < 1
    texts = [t for t in figure.findobj(match=lambda a: hasattr(a, "get_fontsize")) if t.get_visible() and t.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 6


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_as_wide_as_the_page_and_their_labels_lie_within_their_axes_length(name):
    figure = made(name).figure
    assert figure.get_figwidth() == exhibit.WIDTH_INCH
    for axis in figure.axes:
        assert axis.yaxis.label.get_window_extent().height <= axis.get_window_extent().height
    titles = [axis.title if axis.get_title() else axis._left_title for axis in figure.axes]
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), "a title runs into the next panel's"


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "cross_domain"])
def test_no_legend_covers_data(name):
    figure = made(name).figure
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names and len(names) == len(set(names)), "each name once"
    assert all(legend.get_window_extent().y1 < axis.get_window_extent().y0 for axis in figure.axes)
    assert all(axis.get_legend() is None for axis in figure.axes)


def test_negative_numbers_begin_with_a_minus_sign_and_names_keep_their_hyphens(tmp_path):
    minus, table = "\N{MINUS SIGN}", pd.DataFrame({"arm": ["end-to-end 2-3"], "difference": ["-0.02 (-0.1 to +0.2)"]})
    figure, axis = plt.subplots()
    axis.set_title("ρ = -0.60, end-to-end")
    figure = exhibit.finished(study("real"), figure)
    assert axis.get_title("left") + axis.get_title() == f"ρ = {minus}0.60, end-to-end"
    saved = exhibit.Exhibit("a", "A", "It lost -0.02 (-1 %) in 2024-11.", table, figure, readable=table).save(tmp_path)
    read = store.read_json(tmp_path / "a.json")
    assert read["caption"] == f"It lost {minus}0.02 ({minus}1 %) in 2024-11." == saved.text.removeprefix("**A.** ")
    assert read["readable"] == [{"arm": "end-to-end 2-3", "difference": f"{minus}0.02 ({minus}0.1 to +0.2)"}]
    assert "-0.02" in (tmp_path / "a.csv").read_text(), "a file for programs has hyphens"


def test_a_line_s_name_stands_at_its_end_and_names_lie_apart():
    figure, axis = plt.subplots()
    long = pd.DataFrame({"x": [0, 1] * 3, "y": [0, 1, 0, 0.99, 0, 0.2], "line": list("aabbcc")})
    sns.lineplot(long, x="x", y="y", hue="line", ax=axis)
    exhibit.label_ends(axis)
    places = {text.get_text(): text.xyann[1] for text in axis.texts}
    assert places["c"] < places["b"] < places["a"] and places["a"] - places["b"] >= exhibit.LABEL_GAP - 1e-9
    assert exhibit.finished(study("real"), figure).legends == []


def test_drawing_leaves_nothing_open_in_pyplot_and_real_data_bear_no_word():
    import matplotlib.pyplot as plt

    assert made("ranking", "real").figure.get_suptitle().startswith(f"{MIDOG.title}\n")
    assert plt.get_fignums() == []


def test_an_exhibit_is_saved_whole_the_same_twice_and_its_words_are_read_back(tmp_path):
    for folder in ("a", "b"):
        made("ranking").save(tmp_path / folder)
    first, second = (sorted((tmp_path / folder).iterdir()) for folder in ("a", "b"))
    assert [path.name for path in first] == [f"05_ranking.{suffix}" for suffix in ("csv", "json", "pdf", "png")]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    read = store.read_json(tmp_path / "a" / "05_ranking.json")
    assert read == {"title": "Ranking", "caption": made("ranking").caption, "section": "Arms", "readable": None}
    made("raters").save(tmp_path)
    assert (tmp_path / "05_raters.csv").is_file() and not (tmp_path / "05_raters.png").is_file()


def test_an_exhibit_shows_its_figure_or_its_table_and_then_its_caption(monkeypatch):
    import IPython.display

    shown, styles = [], []
    monkeypatch.setattr(IPython.display, "display", lambda one: shown.append(one) or styles.append(plt.rcParams["font.size"]))
    for name in ("ranking", "raters", "missing"):
        made(name)._ipython_display_()
    assert [type(one).__name__ for one in shown] == ["Figure", "Markdown", "HTML", "Markdown", "Markdown"]
    assert shown[1].data.startswith("**Ranking.** AUROC of every arm")
    assert set(styles) == {8.5}, "colours are found when a figure is drawn: in another style they would be others"
    figure = exhibit.image_rows({"a": np.random.default_rng(1).integers(0, 255, (3, 64, 64, 3), np.uint8)}, 3)
    exhibit.Exhibit("a", "A", "b", pd.DataFrame(), figure, "c")._ipython_display_()
    plt.close(figure)
    assert shown[-2].format == "jpeg" and shown[-2].data[:2] == b"\xff\xd8", "tissue as PNG makes a notebook too large"


def test_the_claims_are_an_exhibit_and_the_whole_ledger_is_kept(tmp_path):
    study = opened(MIDOG, folder=tmp_path, labels=labels().assign(um_per_px=0.25))
    found = ledger.exhibit(study).save(tmp_path / "figures")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["05_claims.csv", "05_claims.json", "claims.csv", "claims.json", "claims_rule.json"]
    assert found.table.columns.tolist() == ["claim", "where", "verdict", "here", "found"] and len(found.table)
    assert len(pd.read_csv(tmp_path / "figures" / "claims.csv")) > len(found.table)


# ---- data scaling ----


def lines(axis, name):
    return [line for line in axis.lines if str(line.get_label()).startswith(name)]


def legend_names(name):
    return [text.get_text() for text in made(name).figure.legends[0].get_texts()]


def test_the_table_and_the_bars_of_fig_1_are_mean_and_sample_sd_over_folds():
    table, axis = made("figure_1").table, made("figure_1").figure.axes[0]
    fits = study("synthetic").scores.query("arm == 'net' and train_domain == 'all'").groupby("size")["auroc"]
    row = table[table["arm"] == "net"]
    assert row["auroc"].tolist() == pytest.approx(fits.mean().tolist())
    assert row["auroc_sd"].tolist() == pytest.approx(fits.std().tolist())
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axis.lines]
    assert any(len(y) == 2 and np.allclose(y, fits.mean()) for y in drawn), "the means of the two sizes"
    for mean, sd in zip(fits.mean(), fits.std(), strict=True):
        assert any(np.allclose([np.nanmin(y), np.nanmax(y)], [mean - sd, mean + sd]) for y in drawn if len(y))


def test_fig_1_has_the_raters_where_the_metric_allows():
    auroc, accuracy = made("figure_1").figure.axes
    human = raters.table(labels(), 0)
    one = raters.reference(human)
    (line,) = lines(accuracy, "one rater against another")
    assert line.get_ydata()[0] == pytest.approx(one.estimate, abs=0.01)
    (upper,) = lines(accuracy, "a rater against the consensus")
    assert upper.get_ydata()[0] == pytest.approx(raters.against_consensus(human))
    assert not lines(auroc, "one rater") and not lines(auroc, "a rater")


def test_published_values_are_open_markers_right_of_what_was_measured_here():
    axis = made("figure_1", "real").figure.axes[0]
    found = lines(axis, "published")
    assert {line.get_label() for line in found} == {f"published: {kind}" for kind in ("end-to-end", "probe", "LoRA")}
    assert all(line.get_markerfacecolor() == "white" and min(line.get_xdata()) > 200 for line in found)
    assert lines(axis, "published: end-to-end")[0].get_ydata().tolist() == [0.89]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["10\n(10 %)", "100\n(100 %)", "MIDOG\n2022"]


def test_published_values_are_not_on_the_axes_of_a_synthetic_study_and_the_caption_says_where_they_are():
    axis = made("figure_1").figure.axes[0]
    assert not lines(axis, "published") and not [name for name in legend_names("figure_1") if "published" in name]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["10\n(10 %)", "100\n(100 %)"]
    assert "published values are of real images and stand in a table of their own" in made("figure_1").caption
    assert len(made("published").table)


def test_beyond_nine_arms_the_lower_ones_are_pale_and_share_a_name():
    found = predictions(labels())
    low = [found[found["arm"] == "other"].assign(arm=f"other{i}") for i in range(8)]
    figure = scaling.figure_1(opened(MIDOG, pd.concat([found, *low]))).figure
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    arms_shown = [name for name in names if "(" in name]
    assert len(arms_shown) == exhibit.MAX_LINES and names.count("other arms") == 1 and arms_shown[0] == "net (end-to-end)"
    drawn = [line for line in figure.axes[0].lines if line.get_color() == exhibit.PALE["color"] and len(line.get_xdata())]
    assert len({tuple(line.get_ydata()) for line in drawn}) >= 12 - exhibit.MAX_LINES


def test_published_values_are_those_of_the_study_s_own_data_set():
    by_source = {name: scaling.published(replace(MIDOG, data=Data(name))) for name in ("midog22", "ccmct", "amibr")}
    for name, data_set, value in (("midog22", "MIDOG 2022", 0.89), ("ccmct", "CCMCT", 0.87)):
        table = by_source[name]
        assert set(table["data_set"]) == {data_set}
        own = table[(table["kind"] == "end-to-end") & (table["metric"] == "auroc")]
        assert list(own["value"]) == [value] and "section 4" in own["where"].iloc[0]
        assert table.loc[table["kind"] == "LoRA", "where"].str.contains("second-hand").all()
    assert set(by_source["amibr"]["data_set"]) == {"AMi-Br"}
    assert set(by_source["amibr"]["kind"]) == {"end-to-end", "probe", "LoRA"}
    assert set(scaling.published(SYNTHETIC)["data_set"]) == {"MIDOG 2022", "CCMCT"}
    assert not len(domains.published(replace(MIDOG, data=Data("amibr")))), "Tab. 2 is of other classes"


def test_arms_differ_by_shape_and_line_and_the_one_pretrained_here_has_a_star():
    names = legend_names("figure_1")[:4]
    assert names == ["net (end-to-end)", "low rank (LoRA)", "good (probe)", "other (probe, pretrained here)"]
    handles = made("figure_1").figure.legends[0].legend_handles[:4]
    assert len({str(handle.get_marker()) for handle in handles}) == 4
    assert [str(handle.get_marker()) for handle in handles].index("*") == 3
    assert len({exhibit.look(MIDOG, arm, kind)["linestyle"] for arm, kind in KINDS.items()}) == 3, "a line for each kind"


def test_pretrained_encoders_and_their_snapshots_differ_by_shape_from_all_others():
    names = [f"p{i}" for i in range(4)]
    settings = replace(MIDOG, encoders=("good", "p0"), pretraining=tuple(Pretraining(name) for name in names))
    shapes = [str(exhibit.look(settings, name, "probe")["marker"].get_marker()) for name in names]
    assert len(set(shapes)) == 4 and not set(shapes) & set(exhibit.MARKERS)
    assert exhibit.look(settings, "p1@100", "probe")["marker"].get_marker() == exhibit.HOME_MARKERS[1]
    assert len({exhibit.look(settings, name, "probe")["color"] for name in names}) == 4
    assert exhibit.look(settings, "good", "probe") == exhibit.look(MIDOG, "good", "probe")


def test_a_curve_drawn_on_stays_within_the_range_of_a_score():
    steep = scores(predictions(labels())).assign(auroc=lambda table: 0.5 + 0.49 * table["size"] + 0.002 * table["fold"])
    found = curves.ahead(steep, 0)
    assert found["expected"].max() == found["high"].max() == 1 and found["low"].min() >= 0
    panel = made("learning_curves").figure.axes[0]
    assert panel.get_title("left") == "net\n(end-to-end)" and panel.get_ylim()[1] == 1


def test_patches_needed_says_why_there_is_no_curve():
    found = made("patches_needed").readable
    assert found["arm"].tolist() == list(KINDS)
    assert set(found["AUROC levels off at"]) == {"no curve: 2 sizes; three parameters need three or more"}
    assert found["per tenfold patches"].str.match(r"[+-]\d\.\d\d \[").all()
    row = {"n": 12345, "n_low": 2345, "n_high": np.inf} | dict.fromkeys(("m", "m_low", "m_high"), np.nan)
    assert scaling._span(row, "n", ",.0f") == "12,000 [2,300, ∞]" and scaling._span(row, "m", ".2f") == "–"


def test_one_size_draws_no_curve():
    one = opened(MIDOG, predictions(labels()).query("size == 1"))
    assert not len(scaling.learning_curves(one).table)


def test_one_arm_and_one_size_are_drawn():
    found = predictions(labels())
    one = opened(MIDOG, found[(found["arm"] == found["arm"].iloc[0]) & (found["size"] == 1)])
    assert scaling.figure_1(one).figure is not None


# ---- arms ----


def test_the_ranking_names_the_places_and_the_ties_and_what_its_intervals_draw():
    found = made("ranking")
    (axis,) = found.figure.axes
    places = [label.get_text().split("   ")[1] for label in axis.get_yticklabels()]
    low, high = found.table["rank_low"], found.table["rank_high"]
    assert places == [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(low, high, strict=True)]
    assert "5 folds" in axis.get_xlabel() and "30 slides" in axis.get_xlabel()
    best = found.table.iloc[0]
    assert found.caption.endswith(f"{best['arm']} is first and ties with {best['tied_with'] or 'no arm'}.")
    often = f"{100 * resampling.COVERAGE[30]:.0f}" if 30 in resampling.COVERAGE else ""
    assert often in found.caption, "how often intervals over few slides hold the truth"


def test_where_cases_were_drawn_exhibits_say_cases():
    cases = labels().assign(case_id=lambda table: (table["slide_id"].astype(int) // 2).astype(str))
    by_case = opened(MIDOG, labels=cases)
    texts = [arms.ranking(by_case).caption, arms.calibration(by_case).caption, arms.strata(by_case).caption]
    assert all(" cases" in text and "slides" not in text for text in texts), texts
    assert "15 cases" in scaling.raters(by_case).caption


def test_differences_are_computed_once_for_a_study(monkeypatch):
    calls = []
    whole = of_scores.differences_table
    monkeypatch.setattr(of_scores, "differences_table", lambda *a: calls.append(1) or whole(*a))
    one = opened()
    for make in (arms.ranking, arms.differences, arms.least_difference):
        make(one)
    assert len(calls) == 1


def test_strata_have_a_panel_each_and_one_stratum_sets_nothing_apart():
    names = [axis.get_title("left") for axis in made("strata").figure.axes]
    assert len(names) == len(DOMAINS) + 2 + 2 and names[0].startswith("domain: canine cutaneous\nmast cell tumor\nn = ")
    plain = labels().assign(domain="a", scanner="", votes=[np.zeros(0, np.int8)] * 240)
    alone = opened(MIDOG, predictions(labels()).assign(domain="a"), labels=plain)
    assert arms.strata(alone).figure is None and not len(arms.strata(alone).table)
    assert "no label is known to be contested" in arms.by_agreement(alone).caption
    assert "No votes" in scaling.raters(alone).caption


def test_the_table_by_agreement_has_a_column_a_metric():
    columns = made("by_agreement").readable.columns.tolist()
    assert columns == ["arm", "kind", "annotations", "against", "n_test", "n_folds", *binary.METRICS]


# ---- domains ----


def test_the_cells_of_fig_2_are_on_one_scale_and_their_numbers_read_on_every_shade():
    panels = made("cross_domain").figure.axes[:4]
    assert {axis.collections[0].get_clim() for axis in panels} == {domains.SCALE}
    row = made("cross_domain").table.iloc[0]
    assert panels[0].texts[0].get_text() == f"{row['mean']:.2f}\n±{row['sd']:.2f}"
    assert {text.get_color() for text in panels[0].texts} == {"black"}
    rgb = np.array(domains.SHADES(1.0)[:3])
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    assert (light + 0.05) / 0.05 > 4.5, "black text on it, contrast as WCAG 2 asks"
    assert panels[3].get_title("left") == "other\n(probe, pretrained here)"


def test_tab_2_has_the_published_means_beside_ours_where_the_classes_are_theirs():
    ours, theirs = made("means").figure.axes
    assert [text.get_text() for text in ours.get_yticklabels()][:2] == ["net (end-to-end)", "low rank (LoRA)"]
    names = [text.get_text() for text in theirs.get_yticklabels()]
    inside, outside = (container.lines[0].get_xdata()[names.index("End-To-End ResNet50")] for container in theirs.containers)
    assert (inside, outside) == (0.87, 0.74)
    other = domains.means(opened(replace(MIDOG, data=Data("amibr"))))
    assert len(other.figure.axes) == 1
    assert made("means").readable["in_domain"].str.match(r"0\.\d\d\xa0±\xa00\.\d\d").all()


def test_each_domain_s_raters_stand_beside_the_arms():
    human = raters.table(labels(), 0)
    for domain, axis in zip(sorted(DOMAINS), made("by_test_domain").figure.axes, strict=True):
        (line,) = lines(axis, "one rater")
        assert line.get_xdata()[0] == pytest.approx(raters.reference(human, domain).estimate, abs=0.02)
    assert legend_names("by_test_domain")[:2] == ["in domain", "out of domain"]


def test_without_single_domains_exhibits_say_so():
    mixed = opened(MIDOG, predictions(labels()).query("train_domain == 'all'"))
    for make in (domains.means, domains.cross_domain, domains.by_test_domain):
        assert make(mixed).figure is None and "No arm was trained on single domains" in make(mixed).caption
    assert "single domain" not in overview.abstract(mixed)


def test_the_abstract_says_in_two_sentences_which_arm_is_best_by_how_much_and_what_unseen_domains_cost():
    text = overview.abstract(study("synthetic"))
    table, means = (
        of_scores.by_size(study("synthetic")).query("size == 1").set_index("arm"),
        made("means").table.set_index("arm"),
    )
    assert text.count(". ") == 1 and text.endswith(".")
    first = "With about 100 training patches (synthetic data), net (end-to-end) separates the classes mitotic"
    net, good = table["auroc"]["net"].round(2), table["auroc"]["good"].round(2)
    lead = (
        f"best: its AUROC is {net:.2f}, {net - good:.2f} above the best probe, good ({good:.2f}), and this difference is clear"
    )
    assert text.startswith(f"{first} figure and look-alike {lead} of chance (p ")
    means = means[["in_domain", "out_of_domain"]].map("{:.2f}".format).agg(" on that domain and ".join, axis=1)
    assert text.endswith(
        f" Trained on a single domain, net has {means['net']} on others and good has {means['good']} on others."
    )
    assert "synthetic" not in overview.abstract(study("real"))


def test_the_abstract_does_not_call_a_difference_clear_that_is_not_or_that_folds_can_t_test():
    table = labels()
    weak = predictions(table).query("arm in ['good', 'other']")
    alike = pd.concat([weak[weak["arm"] == "other"].assign(arm=arm) for arm in ("other", "good")])
    assert "this difference is not clear of chance (p = " in overview.abstract(opened(MIDOG, alike))
    assert "0.00 above the second, " in overview.abstract(opened(MIDOG, alike))
    two = predictions(table, n_folds=2)
    assert "too few folds were run to tell this difference from chance" in overview.abstract(opened(MIDOG, two))


def test_the_abstract_names_an_arm_that_gives_all_patches_one_score():
    found = predictions(labels())
    plain = found.assign(score=found["score"].where(found["arm"] != "other", 0.3))
    assert ". In 5 folds other gives all patches one score, and its AUROC there, 0.50, says nothing." in overview.abstract(
        opened(MIDOG, plain)
    )
    assert "one score" not in overview.abstract(opened(MIDOG, found))


def test_arms_are_compared_over_the_folds_that_all_have():
    """The network failed in its two hard folds; in each of the others the probe is better."""
    rows, table = [], labels(400)
    asked = replace(
        MIDOG, splits=Splits(n_folds=5, sizes=(1.0,), by_domain=False), networks=(Network("net"),), encoders=("good",)
    )
    for (arm, kind, signal), fold in itertools.product([("net", "end-to-end", 2.2), ("good", "probe", 3.0)], range(5)):
        test = table[table["slide_id"].astype(int) % 5 == fold]
        noise = np.random.default_rng(fold).normal(size=len(test))
        score = 1 / (1 + np.exp(-(signal * (0.15 if fold > 2 else 1) * (test["label"] - 0.5) + noise)))
        unit = {"arm": arm, "kind": kind, "fold": fold, "size": 1.0, "train_domain": "all", "n_train": 2000}
        rows += [test[["patch_id", "slide_id", "case_id", "domain", "label"]].assign(score=score, **unit)] * (
            arm != "net" or fold < 3
        )
    given = opened(asked, pd.concat(rows, ignore_index=True), labels=table)
    means = given.scores.groupby("arm")["auroc"].mean()
    assert means["net"] > means["good"], "over other folds"
    ranked = arms.ranking(given)
    assert ranked.table["arm"].tolist() == ["good", "net"] and ranked.table["n_folds"].tolist() == [3, 3]
    assert "good is first" in ranked.caption
    text = overview.abstract(given)
    assert ", good (probe) separates" in text and "over the 3 folds that all arms have" in text
    figure = scaling.figure_1(given)
    assert "3 to 5 Monte Carlo folds" in figure.caption and "good is highest" in figure.caption
    assert (
        "raters"
        not in scaling.figure_1(opened(asked, given.predictions, labels=table.assign(votes=[np.empty(0)] * 400))).caption
    )


def test_what_folds_or_cases_dont_spread_is_not_called_too_few_folds():
    perfect = predictions(labels()).query("arm in ['net', 'other']")
    perfect = perfect.assign(score=np.where(perfect["arm"] == "net", 0.2 + 0.6 * perfect["label"], 0.5))
    said = overview.abstract(opened(MIDOG, perfect))
    assert "nothing tells this difference from chance" in said and "too few folds" not in said


def test_the_abstract_compares_a_best_probe_with_the_best_network_and_counts_missing_runs():
    found = predictions(labels())
    kinds = found["arm"].map({"net": "probe", "low rank": "LoRA", "good": "probe", "other": "end-to-end"})
    lacking = pd.DataFrame({"arm": ["x"], "stage": ["train"], "reason": ["stopped"]})
    text = overview.abstract(opened(MIDOG, found.assign(kind=kinds), _collected=Collected(found.assign(kind=kinds), lacking)))
    assert "net (probe)" in text and "above the best trained network, low rank (" in text
    assert text.endswith(" 1 run failed or missing.")
    one = overview.abstract(opened(MIDOG, found[found["arm"] == "other"]))
    assert re.search(r"look-alike: its AUROC is 0\.\d\d\. Trained on", one)


def test_a_table_for_the_eye_has_mean_and_sd_in_one_cell_and_a_dash_for_what_is_not_known():
    table = pd.DataFrame({"arm": ["a", "b"], "auroc": [0.8004, np.nan], "auroc_sd": [0.02, np.nan], "share": [0.12345, np.nan]})
    shown = exhibit.rounded(table)
    assert shown.to_dict("list") == {"arm": ["a", "b"], "auroc": ["0.80\xa0±\xa00.02", "–"], "share": ["0.123", "–"]}
    p = pd.DataFrame({"p": [0.19, 0.00000123, 0.5155], "n": [3.0, np.nan, 1200.0], "low": [-0.1, 0.0, -2.0]})
    assert exhibit.rounded(p).to_dict("list") == {
        "p": ["0.190", "1.23e-06", "0.515"],
        "n": ["3", "–", "1,200"],
        "low": ["−0.100", "0.000", "−2.000"],
    }


def test_no_score_is_below_zero_by_rounding():
    assert exhibit.plus_minus(-0.001, 0.002) == "0.00 ± 0.00" and exhibit.plus_minus(-0.01, np.nan) == "-0.01"


# ---- colours ----


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB: what protanopes and deuteranopes see.
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


def linear(colour):
    from matplotlib.colors import to_rgb

    value = np.array(to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lightness(rgb):
    """CIE L*, 0 to 100."""
    y = float(np.clip(rgb, 0, 1) @ [0.2126, 0.7152, 0.0722])
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_first_colours_stay_apart_in_grey_and_for_the_colour_blind():
    import matplotlib.pyplot as plt

    with plt.style.context(exhibit.STYLE):
        cycle = [f"#{colour.lstrip('#')}" for colour in plt.rcParams["axes.prop_cycle"].by_key()["color"]]
    for seen in (np.eye(3), np.array(PROTAN), np.array(DEUTAN)):
        shades = sorted(lightness(seen @ linear(colour)) for colour in cycle[:3])
        assert np.diff(shades).min() > 12, shades


# ---- live figures ----

HISTORY = pd.DataFrame({"epoch": range(6)})


class Shown:
    """What IPython's display would have shown and updated."""

    def __init__(self):
        self.first, self.updates = [], []

    def display(self, figure, display_id):
        self.first.append(figure)
        return types.SimpleNamespace(update=self.updates.append)


@pytest.fixture
def cell(monkeypatch):
    """A notebook's cell that somebody looks at."""
    shown = Shown()
    import IPython.display

    monkeypatch.setattr(IPython.display, "display", shown.display)
    monkeypatch.setattr(exhibit, "is_watched", lambda: True)
    return shown


def test_live_curves_stay_in_one_place_and_cost_a_small_share_of_the_training(cell, monkeypatch):
    clock = iter(np.cumsum([0, 1, 0.5, 100, 1, 0.5, 0.5]))  # asked before and after each drawing, and for each epoch
    monkeypatch.setattr(exhibit.time, "monotonic", lambda: float(next(clock)))
    live = exhibit.Live(lambda table: Figure())
    for n in (2, 3, 4):
        live(HISTORY.iloc[:n])
    assert len(cell.first) == 1 and len(cell.updates) == 1, "the second epoch came too soon after"
    assert live(HISTORY.iloc[:0]) is None


def test_live_curves_do_nothing_where_nobody_looks(cell, monkeypatch):
    monkeypatch.setattr(exhibit, "is_watched", lambda: False)
    exhibit.Live(lambda table: Figure())(HISTORY)
    assert not cell.first


def test_somebody_looks_in_a_notebook_server_s_kernel_only(monkeypatch):
    import IPython

    is_watched = exhibit.is_watched
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not is_watched(), "no notebook at all"
    shell = types.SimpleNamespace(kernel=object(), user_ns={})
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert not is_watched(), "papermill's kernel"
    monkeypatch.setenv("JPY_SESSION_NAME", "04.ipynb")
    assert is_watched()
    monkeypatch.delenv("JPY_SESSION_NAME")
    shell.user_ns["__vsc_ipynb_file__"] = "04.ipynb"
    assert is_watched()
