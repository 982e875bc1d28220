"""What other ways to split leak and promise: each number against a second way to it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import scaling
from mfcore.data import patches, splits
from mfcore.study import data as study_data
from mfcore.study.config import Data, Inflation, Settings, Splits
from mfcore.study.study import Study
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
    config, inputs = STUDY.probe.linear, {"splits": splits_run.key}
    run = store.open_run(results, "probe", "good", config, inputs, config | inputs)
    store.write_parquet(run.path("predictions.parquet"), pd.concat(tables))
    run.finish(["predictions.parquet"])


def test_inflation_is_the_mean_above_by_slide_at_the_same_size(results):
    probe(results, "slide", 0.0)
    probe(results, "annotation", 1.0)
    table = scaling.inflation_table(Study(STUDY, results)).set_index(["scheme", "size"])
    assert list(table.index) == [("slide", 0.5), ("slide", 1.0), ("annotation", 0.5), ("annotation", 1.0)]  # released: not run
    assert table.loc["slide", "auroc_inflation"].tolist() == [0, 0]
    assert table.loc["annotation", "auroc_inflation"].tolist() == [0.5, 0.5]
    assert table.loc["slide", "test_on_train_slides"].tolist() == [0, 0]
    assert table.loc[("annotation", 1.0), "test_on_train_slides"] == 1
    found = scaling.split_schemes(Study(STUDY, results))
    assert found.caption.endswith("With all the data AUROC is highest by annotation: 1.00 ± 0.00.")
    leaks, _ = found.figure.axes
    assert [tick.get_text() for tick in leaks.get_yticklabels()] == ["by slide", "by annotation"]
    assert [bar.get_width() for bar in leaks.patches[:4]] == [0, 1, 0, 1]  # of a case, and on a slide, that training sees
    assert len(found.figure.legends[0].get_texts()) == 6  # three leaks, two sizes, the line


def test_without_a_probe_by_slide_there_is_no_inflation_and_without_any_no_table(results):
    assert scaling.inflation_table(Study(STUDY, results)).empty
    assert scaling.split_schemes(Study(STUDY, results)).figure is None
    probe(results, "released", 1.0)
    assert scaling.inflation_table(Study(STUDY, results))["auroc_inflation"].isna().all()
    assert set(scaling.split_schemes(Study(STUDY, results)).readable["auroc_inflation"]) == {"–"}


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
