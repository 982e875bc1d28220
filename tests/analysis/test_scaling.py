"""Data scaling: Fig. 1, the published values, what more patches would bring, and what other ways to split promise."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_figures import INTERVAL, KINDS, MIDOG, SYNTHETIC, human, lines, scaling as scaling_table, scores

from mfcore import store
from mfcore.analysis import arms, domains, exhibit, figures, scaling
from mfcore.data import patches, splits
from mfcore.study import data as study_data
from mfcore.study.config import Data, Inflation, Settings, Splits, as_dict
from mfcore.sweep import jobs as sweep_jobs

STUDY = Settings(
    "t", "t", Data("midog"), encoders=("good",), splits=Splits(n_folds=2, sizes=(0.5, 1.0), by_domain=False),
    inflation=Inflation("good", ("slide", "annotation", "released")),
)  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Patches, and the splits and an audit of the study itself, as notebook 01 leaves them."""
    rng, slide = np.random.default_rng(0), np.repeat(np.arange(12), 20)
    labels = pd.DataFrame({"patch_id": np.arange(240), "slide_id": slide.astype(str), "case_id": slide.astype(str)})
    labels = labels.assign(domain="d", label=np.tile([0, 1], 120), um_per_px=0.25, official_split="", file="f")
    labels[["x_l0_px", "y_l0_px"]] = rng.uniform(0, 2000, (240, 2))
    run = store.open_run(tmp_path, "patches", "t", study_data.patches_config(STUDY), {"annotations": "x"})
    store.write_parquet(run.path("labels.parquet"), labels)
    np.save(run.path("patches.npy"), np.zeros((240, 2, 2, 3), dtype=np.uint8))
    run.finish(["labels.parquet", "patches.npy"])
    study_data.write_splits(STUDY, tmp_path)
    study_data.write_audit(STUDY, tmp_path)
    return tmp_path


def probe(results, scheme, quality):
    """A finished probe under ``scheme`` whose scores are right by ``quality``."""
    other = study_data.under(STUDY, scheme)
    labels, _ = patches.load(study_data.find_patches(other, results))
    splits_run = study_data.write_splits(other, results)
    table = splits.load(splits_run)
    tables = []
    for unit in splits.units(table):
        ids = splits.select(table, unit)["test"]
        right = labels.set_index("patch_id").loc[ids, "label"].to_numpy()
        tables.append(splits.predictions(labels.set_index("patch_id"), unit, ids, 0.5 + quality * (right - 0.5)))
    run = store.open_run(results, "probe", "good", as_dict(STUDY.probe), {"splits": splits_run.key})
    store.write_parquet(run.path("predictions.parquet"), pd.concat(tables))
    run.finish(["predictions.parquet"])


def test_inflation_is_the_mean_above_by_slide_at_the_same_size(results):
    probe(results, "slide", 0.0)
    probe(results, "annotation", 1.0)
    table = scaling.inflation_table(STUDY, results).set_index(["scheme", "size"])
    assert list(table.index) == [("slide", 0.5), ("slide", 1.0), ("annotation", 0.5), ("annotation", 1.0)]  # released: not run
    assert table.loc["slide", "auroc_inflation"].tolist() == [0, 0]
    assert table.loc["annotation", "auroc_inflation"].tolist() == [0.5, 0.5]
    assert table.loc["slide", "test_on_train_slides"].tolist() == [0, 0]
    assert table.loc[("annotation", 1.0), "test_on_train_slides"] == 1
    shown = scaling.inflation_readable(table.reset_index())
    assert shown["above_by_slide"].tolist() == ["+0.000"] * 2 + ["+0.500"] * 2
    found = scaling.inflation(STUDY, table.reset_index())
    assert found.caption.endswith("With all the data it is highest by annotation: 1.00 ± 0.00, +0.500 against by slide.")
    figure = found.figure
    leaks, _ = figure.axes
    assert [tick.get_text() for tick in leaks.get_yticklabels()] == ["by slide", "by annotation"]
    assert [bar.get_width() for bar in leaks.patches[:2]] == [0, 100]  # test patches on a slide that training sees
    assert len(figure.legends[0].get_texts()) == 5  # two shares, two sizes, the line


def test_a_shared_case_has_a_bar_a_column_and_a_word(results):
    probe(results, "slide", 0.0)
    probe(results, "annotation", 1.0)
    table = scaling.inflation_table(STUDY, results)
    by_case = table.assign(test_on_train_cases=0.993, test_on_train_slides=0.0, test_overlapping_train=np.nan)
    leaks, _ = scaling.inflation(STUDY, by_case).figure.axes
    assert [bar.get_width() for bar in leaks.patches[:4]] == pytest.approx([99.3, 99.3, 0, 0])
    assert set(scaling.inflation_readable(by_case)["test_on_train_cases"]) == {"99.3 %"}
    assert set(scaling.inflation_readable(by_case)["test_overlapping_train"]) == {"–"}


def test_without_a_probe_by_slide_there_is_no_inflation_and_without_any_no_table(results):
    assert scaling.inflation_table(STUDY, results).empty
    probe(results, "released", 1.0)
    assert scaling.inflation_table(STUDY, results)["auroc_inflation"].isna().all()
    assert set(scaling.inflation_readable(scaling.inflation_table(STUDY, results))["above_by_slide"]) == {"–"}


def test_each_other_scheme_is_a_job_of_its_own_after_the_embedding():
    jobs = sweep_jobs.jobs_of(STUDY)
    others = {name: job for name, job in jobs.items() if "split_" in name}
    assert [job.parameters for job in others.values()] == [
        {"encoder": "good", "scheme": "annotation"},
        {"encoder": "good", "scheme": "released"},
    ]
    assert {job.needs for job in others.values()} == {("02_embed.good",)}
    assert set(others) <= set(jobs["05_data_scaling"].needs)
    paper = replace(STUDY, switches=study_data.under(STUDY, "released").switches)
    schemes = [job.parameters["scheme"] for job in sweep_jobs.jobs_of(paper).values() if "scheme" in job.parameters]
    assert schemes == ["slide", "annotation"]
    assert not [name for name in sweep_jobs.jobs_of(replace(STUDY, inflation=Inflation())) if "split_" in name]


# ---- Fig. 1 ----


def fig_1(study=MIDOG, table=None, human=None):
    return scaling.figure_1(study, scores(table), INTERVAL, human)


def drawn_arms(axis):
    """Handles of the arms in a legend."""
    return [handle for handle in axis.get_legend_handles_labels()[0][: len(KINDS)]]


def test_the_table_and_the_bars_of_fig_1_are_mean_and_sample_sd_over_folds():
    found = fig_1()
    kept = ["arm", "kind", "size", "n_train", "n_folds", "auroc", "auroc_sd", "balanced_accuracy", "balanced_accuracy_sd"]
    pd.testing.assert_frame_equal(found.table[kept], scaling_table()[kept])
    drawn = [np.round(np.asarray(line.get_ydata(), dtype=float), 3).tolist() for line in found.figure.axes[0].lines]
    assert [0.533, 0.833] in drawn, "the means of the two sizes"
    assert [[round(mean - 0.02, 3), round(mean + 0.02, 3)] in [sorted(set(y)) for y in drawn] for mean in (0.533, 0.833)]


def test_fig_1_has_the_raters_where_the_metric_allows():
    auroc, accuracy = fig_1(human=human()).figure.axes
    assert auroc.get_ylabel().startswith("AUROC") and accuracy.get_ylabel().startswith("balanced accuracy")
    (line,) = lines(accuracy, "one rater against another, 0.73")
    assert set(line.get_ydata()) == {0.73}
    band = accuracy.collections[0]
    assert band.get_datalim(accuracy.transData).intervaly == pytest.approx([0.71, 0.76])
    (upper,) = lines(accuracy, "a rater against the consensus")
    assert upper.get_ydata()[0] == pytest.approx(0.89)
    assert not lines(auroc, "one rater") and not lines(auroc, "a rater")
    for without in (None, human().iloc[:0], human().assign(balanced_accuracy=np.nan)):
        assert not lines(fig_1(human=without).figure.axes[1], "one rater")


def test_published_values_are_open_markers_right_of_what_was_measured_here():
    axis = fig_1(replace(MIDOG, data=Data("midog22"))).figure.axes[0]
    found = {c.get_label(): c.lines[0] for c in axis.containers if c.get_label().startswith("published")}
    assert set(found) == {"published: end-to-end", "published: probe (second-hand)", "published: LoRA (second-hand)"}
    for line in found.values():
        assert line.get_markerfacecolor() == "white" and min(line.get_xdata()) > 100
    assert list(found["published: end-to-end"].get_ydata()) == [0.89]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["10\n(10 %)", "100\n(100 %)", "MIDOG\n2022"]


def test_arms_differ_by_shape_and_line_and_not_by_colour_alone():
    drawn = drawn_arms(fig_1().figure.axes[0])
    assert [handle.get_label() for handle in drawn] == [f"{arm} ({kind})" for arm, kind in KINDS.items()]
    assert len({handle.get_marker() for handle in drawn}) == len(drawn)
    assert len({str(figures.look(MIDOG, arm, kind)["linestyle"]) for arm, kind in KINDS.items()}) == len(drawn)


def test_published_values_are_those_of_the_study_s_own_data_set():
    by_source = {name: scaling.published(replace(MIDOG, data=Data(name))) for name in ("midog22", "ccmct", "amibr")}
    for name, data_set, value in (("midog22", "MIDOG 2022", 0.89), ("ccmct", "CCMCT", 0.87)):
        table = by_source[name]
        assert set(table["data_set"]) == {data_set}
        own = table[(table["kind"] == "end-to-end") & (table["metric"] == "auroc")]
        assert list(own["value"]) == [value] and "section 4" in own["where"].iloc[0]
        assert table.loc[table["kind"] == "LoRA", "where"].str.contains("second-hand").all()
    assert set(by_source["amibr"]["data_set"]) == {"AMi-Br"} and set(by_source["amibr"]["kind"]) == {
        "end-to-end",
        "probe",
        "LoRA",
    }
    assert set(scaling.published(SYNTHETIC)["data_set"]) == {"MIDOG 2022", "CCMCT"}
    assert not len(domains.published(replace(MIDOG, data=Data("amibr")))), "Tab. 2 is of other classes"


def test_the_table_of_patches_needed_has_a_row_an_arm_and_says_why_there_is_no_curve():
    found = scaling.patches_needed(MIDOG, scores())
    assert found.readable["arm"].tolist() == list(KINDS) and found.figure is None
    assert set(found.readable["AUROC levels off at"]) == {"no curve: 2 sizes; three parameters need three or more"}
    assert found.readable["per tenfold patches"].str.startswith("+0.30 [").all()
    assert scaling._patches(12345, 2345, np.inf) == "12,000 [2,300 to ∞]" and scaling._patches(*[np.nan] * 3) == "–"


# ---- exhibits ----


def test_an_exhibit_is_saved_whole_and_its_words_are_read_back(tmp_path):
    found = fig_1(SYNTHETIC).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"05_data_scaling.{s}" for s in ("csv", "json", "pdf", "png")]
    read = exhibit.load(tmp_path, "05_data_scaling")
    assert read == {"title": "Fig. 1. Data scaling", "caption": found.caption, "section": "Data scaling", "readable": None}
    assert "synthetic data" in read["caption"]
    arms.raters_table(MIDOG, human()).save(tmp_path)
    assert (tmp_path / "05_raters.csv").is_file() and not (tmp_path / "05_raters.png").is_file()


def test_an_exhibit_shows_its_figure_or_its_table_and_then_its_caption(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    for each in (fig_1(), arms.raters_table(MIDOG, human()), arms.raters_table(MIDOG, human().iloc[:0])):
        each._ipython_display_()
    assert [type(one).__name__ for one in shown] == ["Figure", "Markdown", "HTML", "Markdown", "Markdown"]
    assert shown[1].data.startswith("**Fig. 1. Data scaling.** AUROC and")


@pytest.mark.parametrize("name", ["figure_1", "learning_curves", "patches_needed"])
def test_a_caption_has_three_sentences_at_most(name):
    arguments = (scores(), INTERVAL, human()) if name == "figure_1" else (scores(),)
    text = getattr(scaling, name)(SYNTHETIC, *arguments).caption
    assert len(re.findall(r"(?<!al)\. (?=[A-Z])|\.$", text)) <= 3, text
