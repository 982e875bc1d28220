"""The page on claims: counts first, every claim on it, honest about synthetic data, and nothing unescaped."""

import functools
import html
import re
from dataclasses import replace

import made_claims
import pandas as pd
import pytest

from mfcore.analysis import compare
from mfcore.analysis.compare import Collected
from mfcore.claims import ledger as claims
from mfcore.claims.ledger import GANZ
from mfcore.claims.rows import load
from mfcore.claims.rules import NOT_TESTABLE
from mfcore.claims.scores import Material
from mfcore.study.config import Pretraining, TaskOptions
from mfcore.sweep import report_claims

NONE = pd.DataFrame({"arm": [], "reason": []})


@functools.cache
def ledger_of(source: str) -> pd.DataFrame:
    study = made_claims.study(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Material, "_drawn", made_claims.drawn)
        return claims.judge(study, "no such folder", made_claims.scores(study))


@pytest.fixture
def page_of(monkeypatch, tmp_path):
    """The page of the paper's study on a data set, and the ledger that it shows."""

    def make(source: str) -> tuple[str, pd.DataFrame]:
        monkeypatch.setattr(compare, "collect", lambda *_: Collected(pd.DataFrame({"arm": []}), NONE))
        monkeypatch.setattr(compare, "scores", lambda _: "the scores")
        ledger, asked = ledger_of(source), []
        real = claims.judge
        monkeypatch.setattr(claims, "judge", lambda *what: asked.append(what) or ledger)
        study = made_claims.study(source)
        page = report_claims.page(study, tmp_path, report_claims.ledger(study, tmp_path))
        assert asked == [(study, tmp_path, "the scores", claims.EVIDENCE)]
        monkeypatch.setattr(claims, "judge", real)
        return page, ledger

    return make


def test_the_page_has_the_counts_first_and_every_claim_with_its_verdict(page_of):
    page, ledger = page_of("midog22")
    text = html.unescape(page).replace("\N{NO-BREAK SPACE}", " ")
    assert text.index("Verdicts") < text.index("domain shift") < text.index(f"“{ledger['claim'].iloc[0]}”")
    assert all(f"“{quote}”" in text for quote in ledger["claim"])
    for verdict, n in ledger["verdict"].value_counts().items():
        assert page.count(f"<b>{report_claims.SIGNS[verdict]} {verdict}</b>") == n
    assert "The data are synthetic" not in text and "made-up slides" not in text
    assert all(html.unescape(sentence) in text for sentence in claims.RULE)
    assert not {"nan", "NaN", "None"} & set(re.sub(r"<[^>]+>", " ", page).split())


def test_on_synthetic_data_the_page_says_that_they_cannot_tell(page_of):
    page, ledger = page_of("synthetic")
    assert "they can't tell what holds for tumours" in html.unescape(page) and "every number here is of made-up slides" in page
    own = ledger[(ledger["paper"] == GANZ) & ledger["subject"].isin([claims.SCALING, claims.DOMAINS])]
    assert f"Of Ganz et al. 2024's {len(own)} claims on results this study can judge none." in report_claims.said(ledger)
    assert "in these data: as stated" in page


def test_of_a_study_that_pretrains_or_has_tasks_kaiko_s_ledger_is_on_the_page(page_of, tmp_path, monkeypatch):
    page, _ = page_of("midog22")
    assert "kaiko" not in html.unescape(page), "the study neither pretrains nor has tasks"
    for more in ({"pretraining": (Pretraining("own"),)}, {"tasks": (TaskOptions("bach"),)}):
        study = replace(made_claims.study("midog22", encoders=(), networks=()), **more)
        monkeypatch.setattr(compare, "scores", lambda _: made_claims.scores(made_claims.study()).iloc[:0])
        rows = report_claims.ledger(study, tmp_path)
        page = html.unescape(report_claims.page(study, tmp_path, rows)).replace("\N{NO-BREAK SPACE}", " ")
        kaiko = [row for row in load() if row.evidence == claims.PRETRAINING]
        assert all(f"“{row.quote}”" in page for row in kaiko) and claims.PRETRAINING_RULE in page
        n = len(kaiko)
        assert f"Of kaiko 2024's {n} claims on pretraining and representations this study can judge none." in page
        assert "figures/10_claims_kaiko.csv" not in page, "notebook 10 didn't run"
        headings = [part for part in re.findall(r'<a href="#[^"]+">([^<]+)</a>', page)]
        assert len(set(headings)) == len(headings), "two links that read alike"
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "10_claims_kaiko.csv").write_text("claim")
    assert 'href="figures/10_claims_kaiko.csv"' in report_claims.page(study, tmp_path, rows)


def test_what_was_said_of_results_is_counted_apart():
    ledger = ledger_of("midog22")
    said = report_claims.said(ledger)
    own = ledger[(ledger["paper"] == GANZ) & ledger["subject"].isin([claims.SCALING, claims.DOMAINS])]
    judged = own[own["verdict"] != NOT_TESTABLE]
    assert f"on results this study can judge {len(judged)}: {len(judged)} reproduced, 0 not reproduced, 0 unclear." in said


def test_a_section_without_anything_judged_is_open_and_text_is_escaped(page_of):
    study = made_claims.study("synthetic")
    page, _ = page_of("synthetic")
    assert "<details open><summary>" in page and "not testable with this study, and why" in page
    rows = pd.DataFrame([dict.fromkeys(claims.COLUMNS, "<b>x</b>") | {"verdict": NOT_TESTABLE, "here": "", "difference": 1.0}])
    part = report_claims.section("A <title>", rows)
    assert part["rows"] == [] and len(part["silent"]) == 1 and part["anchor"] == "a--title-"
    rendered = report_claims.report_html.render(
        "claims.html", study=study, counts="", rule=[], said="", kaiko_file="", asks_kaiko=False, sections=[part]
    )
    assert "&lt;b&gt;x" in rendered and "<b>x" not in rendered


@pytest.mark.parametrize(
    ("value", "text"),
    [(-1550.0, "-1,550"), (-3649216.0, "-3.6M"), (0.0123, "+0.012"), (0.0, "0"), (-0.0001, "0"), (float("nan"), "")],
)
def test_a_difference_reads_as_what_it_is_of(value, text):
    assert report_claims.signed(value) == text
