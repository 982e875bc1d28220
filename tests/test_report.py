"""The supplement: whole, offline, honest about what failed, and replaced in one step."""

import re

import nbformat
import numpy as np
import pandas as pd
import pytest

from mfcore import patches, report, splits, store
from mfcore.config import Data, Splits, Study, as_dict

STUDY = Study(
    "t", "A <test>", Data("synthetic", um_per_px=0.3), splits=Splits(sizes=(1.0,), n_folds=2), encoders=("good", "broken")
)


@pytest.fixture
def results(tmp_path):
    """Two folds of clearly made-up predictions by one arm, and one arm that failed."""
    rng, n = np.random.default_rng(0), 60
    label, domain = np.tile([0, 1], n // 2), np.repeat(["a", "b"], n // 2)
    labels = pd.DataFrame({"patch_id": np.arange(n), "slide_id": domain, "domain": domain, "label": label, "um_per_px": 0.25})
    labels = labels.assign(x_l0_px=rng.uniform(0, 999, n), y_l0_px=0.0)
    patches_run = store.open_run(tmp_path, "patches", STUDY.name, patches.config_of(STUDY), {"annotations": "x"})
    store.write_parquet(patches_run.path("labels.parquet"), labels)
    patches_run.finish(["labels.parquet"], um_per_px_said_by_study=["odd slide"])
    splits_run = store.open_run(
        tmp_path, "splits", STUDY.switches.scheme, splits.config_of(STUDY), {"patches": patches_run.key}
    )
    units, predictions = [], []
    for fold in (0, 1):
        for train_domain in ("all", "a", "b"):
            train, test = np.arange(0, n, 2), np.arange(n)
            units += [
                splits._rows(train_domain, fold, 1.0, role, ids)
                for role, ids in (("train", train), ("val", train), ("test", test))
            ]
            unit = splits.Unit(train_domain, fold, 1.0)
            predictions.append(splits.predictions(labels.set_index("patch_id"), unit, test, rng.random(n)))
    store.write_parquet(splits_run.path("splits.parquet"), pd.concat(units))
    store.write_csv(splits_run.path("audit.csv"), splits.audit(pd.concat(units), labels, 224, 0.25))
    splits_run.finish(["splits.parquet", "audit.csv"])
    probe = store.open_run(tmp_path, "probe", "good", as_dict(STUDY.probe), {"splits": splits_run.key})
    store.write_parquet(probe.path("predictions.parquet"), pd.concat(predictions))
    probe.finish(["predictions.parquet"])
    failure = {"stage": "02_embed", "name": "02_embed.broken", "parameters": {"encoder": "broken"}, "reason": "E: <no> weights"}
    store.write_json(tmp_path / "failures" / "02_embed.broken.json", failure)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "01_contact_sheet.png").write_bytes(b"png")
    cell = nbformat.v4.new_code_cell("1 + 1")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="fit:  50%|#####     | 1/2"),
        nbformat.v4.new_output("stream", name="stderr", text="a warning that stays"),
        nbformat.v4.new_output("stream", name="stderr", text="a:  10%|# | 1/9\ra: 100%|##| 9/9\na warning beside a bar\n"),
        nbformat.v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}),
    ]
    (tmp_path / "notebooks").mkdir()
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": state}), tmp_path / "notebooks" / "02_embed.good.ipynb"
    )
    return tmp_path


def test_the_index_says_what_was_found_what_failed_and_that_it_is_synthetic(results):
    page = report.build(STUDY, results).read_text()
    assert page.count("synthetic data") >= 2
    assert "A &lt;test&gt;" in page and "E: &lt;no&gt; weights" in page, "text isn't escaped"
    assert "odd slide" in page and "at the study&#39;s 0.3 um/px" in page
    assert "The figure is missing" in page  # those of 05 and 06
    assert "0.87 ± 0.04" in page, "the published table"
    text = re.sub(r"<[^>]+>", " ", page)
    assert not {"nan", "NaN", "None"} & set(re.sub(r"\{.*\}", "", text).split())


def test_pages_fetch_nothing_to_be_read_and_links_lead_somewhere(results):
    index = report.build(STUDY, results)
    pages = [index, *index.parent.glob("notebooks/*.html")]
    assert len(pages) == 2
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", text), page.name
        assert "unpkg" not in text, f"{page.name} fetches the code of its widgets"
    for link in re.findall(r'(?:href|src)="([^"#:]+)"', index.read_text()):
        missing_figure = re.fullmatch(r"figures/0\d_\w+\.(png|pdf|csv)", link)
        assert (index.parent / link).exists() or missing_figure, link


def test_progress_bars_go_and_warnings_stay(results):
    page = (report.build(STUDY, results).parent / "notebooks" / "02_embed.good.html").read_text()
    assert "a warning that stays" in page and "1/2" not in page
    assert "a warning beside a bar" in page and "9/9" not in page


def test_a_failed_build_leaves_the_old_supplement(results):
    index = report.build(STUDY, results)
    before = index.read_text()
    (results / "notebooks" / "03_bad.ipynb").write_text("{")
    with pytest.raises(nbformat.reader.NotJSONError):
        report.build(STUDY, results)
    assert index.read_text() == before
    assert not list(results.glob(".supplement*"))
