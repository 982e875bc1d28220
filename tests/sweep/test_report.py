"""The supplement: whole, offline, honest about what failed, and replaced in one step."""

import html
import re
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import compare
from mfcore.claims import ledger as claims
from mfcore.data import patches, splits, splits_audit
from mfcore.data.splits_draw import Placing
from mfcore.store import machine
from mfcore.study.config import MODES, Data, Effects, Inflation, Pretraining, Settings, Splits, Task, as_dict
from mfcore.sweep import report, report_claims, report_html

STUDY = Settings(
    "t", "A <test>", Data("synthetic", um_per_px=0.3), splits=Splits(sizes=(1.0,), n_folds=2), encoders=("good", "broken")
)


NO_CLAIMS = pd.DataFrame(columns=list(claims.COLUMNS))


@pytest.fixture
def results(tmp_path):
    """Two folds of clearly made-up predictions by one arm, and one arm that failed."""
    rng, n = np.random.default_rng(0), 60
    label, domain = np.tile([0, 1], n // 2), np.repeat(["a", "b"], n // 2)
    labels = pd.DataFrame({"patch_id": np.arange(n), "slide_id": domain, "case_id": domain, "label": label, "um_per_px": 0.25})
    labels = labels.assign(domain=domain)
    labels = labels.assign(x_l0_px=rng.uniform(0, 999, n), y_l0_px=0.0, votes=[np.array([0, 1], np.int8)] * n)
    patches_run = store.open_run(tmp_path, "patches", STUDY.name, patches.config_of(STUDY), {"annotations": "x"})
    store.write_parquet(patches_run.path("labels.parquet"), labels)
    said = [{"slide_id": "odd slide", "scanner": "S1", "um_per_px": 0.3}]
    facts = {"um_per_px_said_by_study": said, "n_patches_over_edge": 7, "n_patches_shifted": 3}
    areas = [{"slide_id": "odd slide", "x_l0_px": 30, "y_l0_px": 20}]
    patches_run.finish(["labels.parquet"], **facts, scanned_areas=areas)
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
    splits_run.finish(["splits.parquet"])
    audit = splits_audit.audit(pd.concat(units), labels, Placing())
    config, inputs = splits_audit._config(STUDY), {"splits": splits_run.key}
    audit_run = store.open_run(tmp_path, "audit", STUDY.switches.scheme, config, inputs)
    store.write_csv(audit_run.path("audit.csv"), audit)
    mixed = audit[audit["train_domain"] == "all"].drop(columns="train_domain")
    store.write_csv(audit_run.path("schemes.csv"), pd.concat([mixed.assign(scheme=s) for s in ("slide", "released")]))
    twin = np.where(np.arange(n) == 2, 1, np.arange(n))  # patches 1 and 2, of two classes
    store.write_csv(audit_run.path("twins.csv"), splits_audit.twins(labels.assign(twin=twin, file="<f>.svs")))
    files = ["audit.csv", "schemes.csv", "twins.csv"]
    audit_run.finish(files, not_drawn={"official": "no official test slides"}, remarks=["Something can't be seen."])
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


def test_what_lies_over_a_border_is_said_to_be_as_the_study_fills_it(results):
    run = store.Run(next(results.glob("patches-*")), {})
    for mode, filled in (("strict", "white"), ("paper", "black")):
        study = replace(STUDY, switches=MODES[mode])
        assert f"over the border of their slide: {filled} there." in " ".join(report._data_notes(study, run, pd.DataFrame()))


def test_the_index_says_what_was_found_what_failed_and_that_it_is_synthetic(results):
    page = report.build(STUDY, results).read_text()
    assert page.count("synthetic data") >= 2
    assert "A &lt;test&gt;" in page and "E: &lt;no&gt; weights" in page, "text isn't escaped"
    assert "1 slide of S1 without µm/px in the file: the study&#39;s 0.3</summary>odd slide" in page
    assert "7 patches as stored reach over the border of their slide: white there" in page
    assert "3 patches near a border, moved inward" in page
    assert "1 slide whose scanned area begins off the slide&#39;s corner; labels count from the corner of the slide." in page
    assert "Patches of 224 px at 0.25 µm/px, stored with" in page
    assert "The figure is missing" in page  # those of 05 and 06
    assert "0.87 ± 0.04" in page.replace("\N{NO-BREAK SPACE}", " "), "the published table"
    text = re.sub(r"<[^>]+>", " ", page)
    assert not {"nan", "NaN", "None"} & set(re.sub(r"\{.*\}", "", text).split())


def test_the_index_leads_to_the_ranking_the_ledger_and_the_analyses_that_ran(results):
    page = report.build(STUDY, results).read_text()
    ledger = claims.judge(STUDY, results, compare.scores(compare.collect(STUDY, results).predictions))
    assert '<a href="claims.html">' in page and report_claims.said(ledger) in html.unescape(page)
    assert "switches.html" not in page, "the study measures none"
    assert "notebooks/05_data_scaling.html" not in page, "its notebook didn't run"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    nbformat.write(notebook, results / "notebooks" / "05_data_scaling.ipynb")
    (results / "figures" / "05_ranking.png").write_bytes(b"png")
    store.write_json(results / "figures" / "05_ranking.json", {"title": "Ranking", "caption": "One <arm>.", "section": "Arms"})
    page = report.build(STUDY, results).read_text()
    assert '<a href="notebooks/05_data_scaling.html">learning curves' in page
    assert "<b>Ranking.</b> One &lt;arm&gt;." in page, "the caption that the notebook saved"


def test_the_raters_have_a_section(results):
    page = report.build(STUDY, results).read_text()
    assert "One rater against another" in page and "By agreement." in page
    assert page.count('id="raters"') == 1 and 'href="#raters"' in page


def test_pages_are_those_that_the_study_asks_for(results):
    assert list(report._pages(STUDY, NO_CLAIMS)) == ["audit", "encoders", "claims"]
    asked = replace(STUDY, conventions="good", probe_audit=("good",), effects=Effects("good", switches=("split_by",)))
    asked = replace(asked, pretraining=(Pretraining("own"),))
    assert list(report._pages(asked, NO_CLAIMS)) == [
        "audit",
        "encoders",
        "conventions",
        "probes",
        "pretraining",
        "claims",
        "switches",
    ]
    assert list(report._pages(asked, NO_CLAIMS)) == list(report.PAGES)
    assert "pretraining" in report._pages(replace(STUDY, tasks=(Task("bach"),)), NO_CLAIMS), "which holds the tasks"
    index = report.build(STUDY, results)
    assert '<a href="encoders.html">Encoders</a>' in index.read_text() and "conventions.html" not in index.read_text()
    assert "E: &lt;no&gt; weights" in (index.parent / "encoders.html").read_text()


def test_the_audit_has_a_page_with_every_fold_and_what_could_not_be_drawn(results):
    page = (report.build(STUDY, results).parent / "audit.html").read_text()
    assert "by the authors' split (no official test slides)" in page.replace("&#x27;", "'")
    assert page.count("<summary>") == 4  # contradicting twins; by slide, as released, and the study's own
    said = " ".join(html.unescape(page).replace("\N{NO-BREAK SPACE}", " ").split())
    assert "2 patches form 1 group of identical pixels, 1 of them with contradicting labels" in said
    assert "identical pixels only" in said and "&lt;f&gt;.svs" in page and "Something can't be seen." in said
    assert "<th>test on<br>train cases</th>" in page and "<th>n test<br>cases</th>" in page
    assert "synthetic data" in page and "by annotation, as released" in page
    assert len(re.findall(r"<td>[01]</td>", page)) >= 4  # a row a fold


def test_a_probe_under_another_scheme_that_failed_says_why(results):
    study = replace(STUDY, encoders=("good", "broken"), inflation=Inflation("good", ("slide", "official")))
    failure = {"stage": "03", "name": "x", "parameters": {"encoder": "good", "scheme": "official"}, "reason": "no test slides"}
    store.write_json(results / "failures" / "x.json", failure)
    page = (report.build(study, results).parent / "audit.html").read_text()
    assert "Not here: by the authors&#39; split: no test slides." in page


def test_the_probe_that_failed_under_the_studys_own_scheme_says_why_too(results):
    study = replace(STUDY, inflation=Inflation("broken", ("slide", "official")))
    network = {"stage": "04", "name": "y", "parameters": {"network": "n", "fold": 0}, "reason": "another job's"}
    store.write_json(results / "failures" / "y.json", network)
    page = (report.build(study, results).parent / "audit.html").read_text()
    assert "Not here: by slide: E: &lt;no&gt; weights; by the authors&#39; split: not run yet." in page


@pytest.mark.parametrize(
    ("mode", "changed", "said"),
    [
        ("strict", {"split_by": "annotation"}, "strict mode, but split_by: annotation"),
        ("paper", {"stratified": True}, "paper mode, but stratified: true"),
        ("strict", {"stratified": False, "epoch": "last"}, "strict mode, but stratified: false, epoch: last"),
    ],
)
def test_every_page_says_what_departs_from_the_studys_mode(results, monkeypatch, mode, changed, said):
    study = replace(STUDY, mode=mode, switches=replace(MODES[mode], **changed))
    assert study.mode_title == said

    def page(study, *_):
        return report_html.render("page.html", study=study)

    monkeypatch.setattr(report, "_index", page)
    monkeypatch.setattr(report.report_claims, "ledger", lambda *_: NO_CLAIMS)
    monkeypatch.setattr(report, "_pages", lambda *_: {"a": page, "b": page})
    index = report.build(study, results)
    pages = [*index.parent.glob("*.html"), *index.parent.glob("notebooks/*.html")]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text()
        assert re.search(rf'<(span|p) (class="badge"|style="{report_html.BADGE}")>{said}</', text), page.name
        assert f"{mode} mode" not in text.replace(said, ""), page.name
    for path in report_html.TEMPLATES.glob("*.html"):
        text = path.read_text()
        assert path.stem == "page" or text.startswith('{% extends "page.html" %}'), "a page without the badge"
        assert "study.mode " not in text, f"{path.name} says the mode and not what departs from it"


def test_a_page_of_an_unchanged_mode_has_no_badge_of_it(results):
    index = report.build(STUDY, results)
    assert "strict mode." in index.read_text() and "mode, but" not in index.read_text()
    assert "strict mode" not in (index.parent / "notebooks" / "02_embed.good.html").read_text()


def test_the_table_of_provenance_has_the_number_of_threads_of_each_stage(results):
    for file in results.glob("probe-*/run.json"):
        record = store.read_json(file)
        store.write_json(file, {**record, "environment": {**record["environment"], "n_threads": 7}})
    for file in results.glob("audit-*/run.json"):
        record = store.read_json(file)
        del record["environment"]["n_threads"]
        store.write_json(file, record)
    threads = report._provenance(STUDY, results).set_index("what").loc["threads", "value"]
    assert "audit not recorded;" in threads and "probe 7" in threads and f"splits {machine.n_threads()}" in threads


def test_pages_fetch_nothing_to_be_read_and_links_lead_somewhere(results):
    index = report.build(STUDY, results)
    pages = [*index.parent.glob("*.html"), *index.parent.glob("notebooks/*.html")]
    assert {page.stem for page in pages} >= {"index", "audit", "encoders", "claims"} and len(pages) == 5
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


def test_a_cell_of_several_lines_reads_as_a_sentence():
    """As the reasons of tasks whose data aren't there."""
    told = report_html.table(pd.DataFrame({"reason": ["not as published:\n  no folder a", None], "n_slides": [1, 2]}))
    assert "not as published: no folder a" in told and "n slides" in told and "\u2013" in told


def test_a_table_fits_the_page_and_its_numbers_are_written_as_everywhere():
    shown = pd.DataFrame(
        {
            "n_test": [1282, 5],
            "share_of_all_test_patches": ["43.7 %", "1 %"],
            "AUROC out of domain": ["0.89 ± 0.02", "0.78 [0.76, 0.80]"],
            "architecture": ["a network of many words in one cell, 1 of 2", "<b> 1"],
            "is_so": [True, False],
            "difference": ["+0.007 (-0.030 to +0.043)", "Adam at 5e-5, stopped early"],
        }
    )
    text = report_html.table(shown)
    assert "<td>1,282</td>" in text and "<td>True</td>" in text
    assert "<th>share of<br>all test<br>patches</th>" in text and "<th>architecture</th>" in text, "no word is cut"
    assert "<th>AUROC out of<br>domain</th>" in text, "as wide as its cells"
    assert "<td>43.7\N{NO-BREAK SPACE}%</td>" in text and "<td>1\N{NO-BREAK SPACE}%</td>" in text
    assert "<td>+0.007 (-0.030\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}+0.043)</td>" in text
    assert "Adam at 5e\N{NON-BREAKING HYPHEN}5, stopped early" in text, "no number is broken"
    assert "<td>0.89\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.02</td>" in text
    assert "<td>0.78 [0.76,\N{NO-BREAK SPACE}0.80]</td>" in text, "an interval may go on in the next line"
    assert "many words in one cell" in text and "&lt;b&gt; 1" in text


def test_no_line_of_a_page_breaks_before_a_per_cent_sign():
    """Neither in a template's own text nor in what it is given; the papers' sentences stay as printed."""
    content = {"said": "7 %", "rule": ["of 8 %"], "counts": "", "kaiko_file": "", "asks_kaiko": False, "sections": []}
    page = report_html.render("claims.html", study=STUDY, **content)
    assert "7\N{NO-BREAK SPACE}%" in page and "of 8\N{NO-BREAK SPACE}%" in page
    row = dict.fromkeys(("where", "expected", "tolerance", "difference", "kind", "sign", "verdict", "here", "why"), "")
    row |= {"claim": "20% of all", "test": "x", "found": ["20.1 %"]}
    section = {"title": "", "short": "", "anchor": "", "rows": [row], "silent": []}
    page = report_html.render("claims.html", study=STUDY, **content | {"sections": [section]})
    assert "“20% of all”" in page and "20.1\N{NO-BREAK SPACE}%" in page
    assert report_html.rich("**A.** 95 % of `b` < c") == "<b>A.</b> 95 % of b &lt; c"


def test_the_study_as_read_is_folded_away_and_escaped(results):
    page = report.build(STUDY, results).read_text()
    assert page.count("<details><summary>every setting, as read</summary>{name: t, title: A &lt;test&gt;") == 1
