"""The supplement as a book: made of files alone, whole, offline, honest about what failed, and no name is markup."""

import base64
import contextlib
import html
import io
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from browser import PATH, browser
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from PIL import Image

from mfcore import store
from mfcore.analysis import exhibit
from mfcore.study.config import MODES, Data, Settings
from mfcore.sweep.book import book, markdown, notebooks, pages
from mfcore.sweep.book.front import _badges, _citation
from mfcore.sweep.jobs import Job

HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script> ``` **b** {doc}`x` ![p](http://localhost/p.png) | $x$"
EARLIER = "Left by an earlier study file"
STUDY = Settings(HOSTILE, f"Is {HOSTILE} enough?", Data("synthetic"), encoders=("good", HOSTILE, "late"))
STUDY = replace(STUDY, switches=replace(STUDY.switches, split_by="annotation"))
NET = "a_network_whose_name_is_longer_than_a_telephone_is_wide"
TRAINED = [(NET, 0), (NET, 1), (HOSTILE, 0), (HOSTILE, 1)]
JOBS = [
    Job("01_extract_patches", "01_extract_patches"),
    Job("02_embed.good", "02_embed", {"encoder": "good"}),
    Job("02_embed.hostile", "02_embed", {"encoder": HOSTILE}),
    Job("02_embed.late", "02_embed", {"encoder": "late"}),
    Job("02_embed.good.share0of2", "", {"encoder": "good", "share": 0, "n_shares": 2}),
    *(
        Job(f"04_train_end_to_end.{store.file_name(n)}.fold{k}", "04_train_end_to_end", {"network": n, "fold": k})
        for n, k in TRAINED
    ),
    Job("05_data_scaling", "05_data_scaling"),
]
CLAIM = {"claim": f"20% of all {HOSTILE}", "where": "section 3", "test": "a count", "expected": "5", "tolerance": "none"}
CLAIM |= {"found": "6", "difference": "1.0", "why": HOSTILE, "here": "", "paper": "A 2024", "subject": "data scaling"}
OTHER = store.file_name(HOSTILE)


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (60, 40)).save(content, "png")
    return content.getvalue()


def save(folder: Path, name: str, title: str, section: str, rows: list[dict], is_figure: bool = False) -> None:
    """An exhibit's files."""
    caption = f"What `is` shown of {HOSTILE}. The AUROC is 0.87 ± 0.04."
    store.write_json(folder / f"{name}.json", {"title": title, "caption": caption, "section": section, "readable": None})
    store.write_csv(folder / f"{name}.csv", pd.DataFrame(rows))
    if is_figure:
        (folder / f"{name}.png").write_bytes(png())
        (folder / f"{name}.pdf").write_bytes(b"%PDF-")


def notebook(results: Path, name: str, *cells) -> None:
    first = "*The outputs are those of `x`.*\n\n# 02 What?\n\n| reads | writes |\n|---|---|\n| a | b |\n\nIt says why."
    cells = [new_markdown_cell(first), *cells]
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    made = nbformat.v4.new_notebook(cells=list(cells), metadata={"widgets": state})
    (results / "notebooks").mkdir(exist_ok=True)
    nbformat.write(made, results / "notebooks" / f"{name}.ipynb")


def shown(**data: str) -> nbformat.NotebookNode:
    return new_output("display_data", data={key.replace("_", "/"): value for key, value in data.items()})


def write(results: Path) -> Path:
    """The results of a study of which one run failed with a notebook, one without, and one is missing."""
    figures = results / "figures"
    save(figures, "05_arms", "Arms", "Arms", [{"arm": HOSTILE, "kind": "probe", "100 %": "0.87 ± 0.04", "n_test": 1282}])
    save(figures, "05_data_scaling", "Fig. 1", "Data scaling", [{"arm": HOSTILE}], is_figure=True)
    save(figures, "05_data", "Data", "Data", [{"domain": HOSTILE, "slides": 1234}])
    encoder = {"group": HOSTILE, "encoder": HOSTILE, "weights": HOSTILE, "page": "https://huggingface.co/x", "here": HOSTILE}
    bare = encoder | {"group": "Published, but without a card", "page": ""}
    save(figures, "05_encoders", "Encoders", "Encoders", [encoder | {"facts": "x"}, encoder | {"page": "javascript:1"}, bare])
    save(figures, "01_audit", HOSTILE, "Audit of the splits", [{"scheme": HOSTILE, "n": n} for n in range(301)])
    save(figures, "02_pictures", "Pictures", "x", [{"n": 1}], is_figure=True)
    claims = [CLAIM | {"verdict": verdict} for verdict in pages.SIGNS]
    store.write_csv(figures / "claims.csv", pd.DataFrame(claims))
    store.write_json(figures / "claims_rule.json", [f"A rule {HOSTILE}."])
    picture = base64.b64encode(png()).decode()
    bar = "a:  10%|# | 1/9\ra: 100%|##| 9/9\na warning beside a bar\n"
    saved = store.read_json(figures / "05_data_scaling.json")
    text = f"**{saved['title']}.** {saved['caption']}"
    table = exhibit.show(pd.DataFrame({"n": ["12.5"], "arm": [HOSTILE]})).data
    notebook(
        results,
        "05_data_scaling",
        new_code_cell("x = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("x = 2", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("draw()", outputs=[shown(image_png=picture), shown(text_markdown=text)]),
        new_code_cell("tell()", outputs=[shown(text_html=table)]),
        new_code_cell("other()", outputs=[shown(image_png=picture)]),
        new_code_cell("say()", outputs=[shown(text_markdown=f"**{HOSTILE}.** Another {HOSTILE}. More.")]),
        new_code_cell("warn()", outputs=[new_output("stream", name="stderr", text=bar)]),
        new_code_cell("files()", outputs=[new_output("stream", name="stdout", text="3 fits\nfiles written:\n  a.csv\n")]),
    )
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a widget"})
    notebook(results, "02_embed.good", new_code_cell("1", outputs=[widget, shown(text_plain=HOSTILE)]))
    for name in (
        "01_extract_patches",
        *(f"04_train_end_to_end.{name}" for name in (f"{NET}.fold0", f"{NET}.fold1", f"{OTHER}.fold0")),
    ):
        notebook(results, name, new_code_cell("1"))
    wrote = {"01_extract_patches": "01_", "02_embed.good": "02_", "05_data_scaling": ("05_", "claims")}
    for name, of in wrote.items():
        files = {f"figures/{file.name}": {} for file in figures.iterdir() if file.name.startswith(of)}
        record = {"failed": False, "seconds": 21.3, "files": files | {"figures/02_removed.png": {}}}
        store.write_json(results / "jobs" / f"{name}.json", record)
    save(figures, "06_cross_domain", EARLIER, "Across domains", [{"n": 1}], is_figure=True)  # in no record
    for name in ("02_embed.hostile", f"04_train_end_to_end.{OTHER}.fold0"):
        store.write_json(results / "failures" / f"{name}.json", {"reason": f"EncoderError: {HOSTILE}"})
    store.write_json(results / "running" / "02_embed.late.json", {"n_begun": 1, "reason": "killed: with its node"})
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def built(results):
    """The book, built by Sphinx without a warning."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        index = book.build(STUDY, results, {job.name: job for job in JOBS})
    assert not said.getvalue()
    return index.parent


def page(built: Path, name: str) -> str:
    """A page's own content."""
    text = (built / f"{name}.html").read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


def words(built: Path, name: str) -> str:
    """The words that a reader sees on a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page(built, name))).split()).replace("\N{NO-BREAK SPACE}", " ")


def every_page(built: Path) -> dict[str, str]:
    files = [file for file in built.rglob("*.html") if "_static" not in file.parts]
    return {str(file.relative_to(built)): file.read_text(encoding="utf-8") for file in files}


def test_an_exhibit_of_an_earlier_study_file_is_on_no_page(built):
    """Nothing removes what a job left that the study no longer has, or that failed when it ran again."""
    assert not [name for name, text in every_page(built).items() if EARLIER in text]
    assert not (built / "_images" / "06_cross_domain.png").exists()


# ---- every page ----


def test_no_name_becomes_markup_in_any_page_title_banner_or_print_header(built):
    for name, text in every_page(built).items():
        assert "<img src=x" not in text and "<script>alert" not in text and 'localhost/p.png"' not in text, name
        assert "<strong>b</strong>" not in text and 'href="javascript:1' not in text, name
    assert HOSTILE.split(" ```")[0] in html.unescape((built / "index.html").read_text())
    assert "innerHTML = _escapeHTML(title)" in (built / "_static" / "searchtools.js").read_text(), "Sphinx escapes it"


def test_pages_fetch_nothing_from_elsewhere(built):
    for name, text in every_page(built).items():
        assert not re.findall(r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=[\"']?(?:https?:)?//", text), name
        assert "unpkg" not in text and "mathjax" not in text.lower(), name
    assert not re.findall(r"url\([\"']?(?:https?:)?//", (built / "_static" / "supplement.css").read_text())


def test_every_local_link_leads_somewhere(built):
    found = every_page(built)
    for name, text in found.items():
        for link in re.findall(r'(?:href|src)="([^"]*)"', text):
            address, _, anchor = html.unescape(link).partition("#")
            if not address.startswith(("http://", "https://", "data:")):
                file = (built / name).parent / address.partition("?")[0] if address else built / name
                assert file.exists(), f"{name}: {link}"
                if anchor and file.suffix == ".html":
                    assert f'id="{anchor}"' in file.read_text(encoding="utf-8"), f"{name}: {link}"


def test_every_page_says_synthetic_and_what_departs_from_the_mode(built):
    for name, text in every_page(built).items():
        banner = re.search(r"bd-header-announcement.*?>(.*?)</", text, re.S)[1]
        assert "every number here is of made-up slides" in banner, name
        assert "strict mode, but split_by: annotation" in banner, name


def test_every_page_has_search_navigation_and_the_dark_mode(built):
    for name, text in every_page(built).items():
        assert "theme-switch" in text and "search-button" in text and "Every run" in text, name
    assert 'class="right-next"' in (built / "index.html").read_text()


# ---- the front page ----


def test_the_front_page_reads_as_a_papers(built):
    said = words(built, "index")
    parts = [
        "enough?",
        "separate the classes mitotic figure and look-alike better",
        "The AUROC is 0.87 ± 0.04",
        "Claims of the papers , results: 1 reproduced",
    ]
    parts += ["1 unclear, 1 not testable here. On synthetic data a verdict shows", "Fig. 1", "1,282"]
    parts += ["runs failed or are missing", "1,234", "strict mode", "How to cite", "Self-Supervision", "make paper STUDY="]
    assert [said.index(part) for part in parts] == sorted(said.index(part) for part in parts)
    assert "EncoderError: <img src=x" in said and "killed: with its node" in said and "the sweep didn't come to" in said
    assert "4 of 9 runs" in said and "share0of2" not in said and " 0.87 ± 0.04 1,282 " in said


def test_a_badge_for_every_switch_and_a_bold_one_where_it_departs():
    badges = _badges(replace(STUDY, switches=replace(MODES["strict"], stratified=False)))
    assert badges.count("{bdg-") == 2 + len(asdict(STUDY.switches)) and "{bdg-warning}`stratified: false`" in badges
    assert "{bdg-muted-line}`split_by: slide`" in badges
    assert "{bdg-primary}`paper mode`" in _badges(replace(STUDY, mode="paper"))


def test_who_is_cited_is_named_with_year_and_place():
    said = _citation(STUDY).replace("\\", "")
    assert "Ganz J, Ammeling J" in said and "(2025): Is Self-Supervision Enough?" in said and "arXiv:2404.15217" in said


# ---- runs ----


def test_failed_and_missing_runs_have_a_box_with_the_reason(built):
    said = words(built, "runs/02_embed")
    assert "1 of 3 runs are done." in said and "2 of 3 runs failed or are missing" in said
    assert "$x$ failed: EncoderError: <img" in said and "02_embed late not run: killed: with its node" in said
    for name in ("index", "runs/02_embed", f"runs/04_train_end_to_end.{OTHER}.fold0"):
        assert len(re.findall('class="error admonition', page(built, name))) == 1
    assert "fold 0: failed EncoderError: <img" in words(built, f"runs/04_train_end_to_end.{OTHER}.fold0")


def test_runs_that_lack_for_one_reason_share_a_line():
    job = Job("04_train_end_to_end.a.fold0", "04_train_end_to_end", {"network": "a", "fold": 0})
    runs = [notebooks.run_of(replace(job, parameters={"network": "a", "fold": k}), Path("nowhere")) for k in range(2)]
    assert r" a\, fold 0\; a\, fold 1 **not run:** the sweep" in pages.lacking(runs) and pages.lacking([]) == ""


def test_trainings_are_one_table_of_links_by_network_and_fold(built):
    text = page(built, "runs/04_train_end_to_end")
    tables = [each for each in re.findall("<table.*?</table>", text, re.S) if "fold 0" in each]
    assert len(tables) == 1 and tables[0].count("<tr") == 1 + 2
    links = re.findall('href="([^"]*)"', tables[0])
    trained = [f"04_train_end_to_end.{name}.html" for name in (f"{NET}.fold0", f"{NET}.fold1", f"{OTHER}.fold0")]
    assert sorted(links) == sorted([*trained, f"04_train_end_to_end-{NET}.html", f"04_train_end_to_end-{OTHER}.html"])
    assert re.search(r"failed</span>.*not run</p>", tables[0], re.S), "the last has no notebook"
    network = page(built, f"runs/04_train_end_to_end-{OTHER}")
    assert len(re.findall('class="[^"]*sd-stretched-link', network)) == 1 and network.count("sd-card-title") == 2


def test_a_notebook_becomes_a_page_with_folded_code_and_figures_of_one_piece(built):
    text, said = page(built, "results/05_data_scaling"), words(built, "results/05_data_scaling")
    assert "reads" not in said and "The outputs are those" not in said and said.startswith("What? #") and "It says why." in said
    assert "x = 1" not in said and "x = 2" in said
    assert text.count("<details") == text.count("Show code") > 0
    assert text.count("<figure") == 1 and text.count("<img") == 2 and "PDF" in said and "CSV" in said
    assert said.count("Another") == 1 and "12.5" in said
    assert "a warning beside a bar" in said and "9/9" not in said
    assert "a widget" not in words(built, "runs/02_embed.good")
    assert "3 fits" in said and "a.csv" not in said, "of use only to who runs the notebook"


def test_every_figure_is_linked_to_its_full_size_and_says_in_a_sentence_what_it_shows(built):
    for name in ("index", "results/05_data_scaling"):
        text = page(built, name)
        figures = re.findall(r"<figure.*?</figure>", text, re.S)
        assert figures
        for each in figures:
            assert re.search(r'<a [^>]*href="[^"]+\.png"[^>]*>\s*<img', each)
            alt = html.unescape(re.search(r'alt="([^"]*)"', each)[1])
            assert alt.startswith("What is shown of <img") and "The AUROC" not in alt


# ---- reference ----


def test_a_claim_shows_what_was_expected_and_found_without_a_click(built):
    text = page(built, "reference/claims_of_the_papers")
    titles = [html.unescape(re.sub(r"<[^>]+>", " ", each)) for each in re.findall(r"<summary.*?</summary>", text, re.S)]
    claims = [title for title in titles if "“20% of all" in title]
    assert len(claims) == 4 and all("expected 5 · found 6" in title for title in claims)
    for verdict, sign in pages.SIGNS.items():
        on = " on synthetic data" * (verdict != "not testable here")
        assert any(f"{sign} {verdict}{on} “" in " ".join(title.split()) for title in claims)
    said = words(built, "reference/claims_of_the_papers")
    assert said.count(pages.ON_SYNTHETIC) == 1 + 3, "in the box above, and of each that was judged"
    assert "A rule <img" in said and "A 2024: data scaling 1 1 1 1" in said
    assert "The evidence: What? ." in said


def test_facts_are_counted_apart_and_no_data_enter_them(tmp_path):
    rows = [CLAIM | {"verdict": "not testable here"}, CLAIM | {"verdict": "reproduced", "subject": "networks"}]
    store.write_csv(tmp_path / "claims.csv", pd.DataFrame(rows))
    said = pages.verdicts(tmp_path, True)
    assert "results: 1 not testable here; facts about data, networks and designs: 1 reproduced." in said
    text = pages.claims(tmp_path, True)
    assert "reproduced on synthetic data" not in text
    parts = [line for line in text.splitlines() if line.startswith("## ")]
    assert ["networks" in part for part in parts] == [True, False], "what was judged comes first"
    store.write_csv(tmp_path / "claims.csv", pd.DataFrame([rows[0] | {"subject": "later work"}]))
    assert "## A 2024\n" in pages.claims(tmp_path, True)


def test_claims_on_real_data_stand_for_themselves(results):
    assert markdown.text(pages.ON_SYNTHETIC) not in pages.claims(results / "figures", False)


def test_pages_of_reference_are_those_that_there_is_something_for(built):
    assert {file.stem for file in built.glob("reference/*.html")} == {"claims_of_the_papers", "encoders", "audit_of_the_splits"}
    said = words(built, "reference/audit_of_the_splits")
    assert "The first 300 of 301 rows." in said


def test_an_encoder_leads_to_its_page_and_an_address_that_is_none_leads_nowhere(built):
    text = page(built, "reference/encoders")
    assert text.count('href="https://huggingface.co/x"') == 1 and "javascript:1" not in text


def test_encoders_without_a_card_have_no_facts_to_unfold(built):
    said = words(built, "reference/encoders")
    assert "Published, but without a card" in said and said.count("Terms, input, embedding, resolution") == 1


# ---- in a browser ----


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A tab of a headless Chromium."""
    if not PATH:
        pytest.skip("there is no Chromium here; on Debian or Ubuntu: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_page_whole_from_disk_and_has_nothing_to_complain_of(built, tab, width):
    for name in every_page(built):
        tab.open((built / name).as_uri(), width)
        assert not tab.complaints, name
        assert len(tab.requests) > 5 and all(address.startswith(("file:", "data:")) for address in tab.requests), name
        assert tab.value("document.documentElement.scrollWidth") == width, name
        pictures = tab.value("[...document.querySelectorAll('.bd-article img')].map(i => [i.alt, i.naturalWidth])")
        assert all(alt.endswith(".") and n_px for alt, n_px in pictures), name


def test_the_search_finds_a_page_from_disk_without_a_name_becoming_markup(built, tab):
    tab.open(f"{(built / 'search.html').as_uri()}?q=trainings")
    said = "new Promise(done => setInterval(() => { const e = document.querySelector('#search-results .search-summary');"
    said += "if (e?.textContent.includes('found')) done(document.querySelector('#search-results').textContent) }, 20))"
    assert HOSTILE.split(" ```")[0] in tab.value(said) and not tab.complaints


def test_a_click_on_a_columns_head_sorts_a_table_and_another_turns_it_about(built, tab):
    tab.open((built / "reference" / "audit_of_the_splits.html").as_uri())
    column = "[...document.querySelectorAll('.bd-article tbody tr')].map(row => row.cells[1].textContent)"
    numbers = [str(n) for n in range(300)]
    for order in (numbers, numbers[::-1], numbers):
        tab.value("document.querySelectorAll('.bd-article th button')[1].click()")
        assert tab.value(column) == order
    head = "document.querySelectorAll('.bd-article th')[1]"
    assert tab.value(f"{head}.getAttribute('aria-sort')") == "ascending"
    assert tab.value(f"getComputedStyle({head}).textAlign") == "right"


def test_numbers_in_a_notebooks_own_table_stand_to_the_right(built, tab):
    tab.open((built / "results" / "05_data_scaling.html").as_uri())
    sides = "[...document.querySelectorAll('.cell_output td')].map(cell => getComputedStyle(cell).textAlign)"
    assert tab.value(sides) == ["right", "left"]


def test_an_empty_cell_stands_last_and_words_after_numbers(built, tab):
    tab.open((built / "index.html").as_uri())
    cells = ["–", "10 %", "b", "9 %", "", "1,000 ± 1", "−3"]
    order = f"(sign) => {cells}.sort((a, b) => compare(a, b, sign))"
    assert tab.value(f"({order})(1)") == ["−3", "9 %", "10 %", "1,000 ± 1", "b", "–", ""]
    assert tab.value(f"({order})(-1)")[-2:] == ["–", ""]


# ---- building ----


def test_a_failed_build_leaves_the_old_supplement(results, built):
    before, broken = (built / "index.html").read_text(), results / "notebooks" / "02_embed.late.ipynb"
    broken.write_text("{")
    with pytest.raises(nbformat.reader.NotJSONError):
        book.build(STUDY, results, {job.name: job for job in JOBS})
    broken.unlink()
    assert (built / "index.html").read_text() == before and not list(results.glob(".supplement*"))


def test_what_sphinx_says_is_the_reason(tmp_path, monkeypatch):
    said = "Traceback\n  sphinx.errors.ThemeError: no theme\n\nPlease report this."
    monkeypatch.setattr(book.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2, stderr=said))
    with pytest.raises(book.BookError, match=r"^sphinx\.errors\.ThemeError: no theme$"):
        book._sphinx([], tmp_path, tmp_path, tmp_path)


def test_results_without_any_figure_make_a_book_that_says_what_is_missing(tmp_path):
    runs = [notebooks.run_of(job, tmp_path) for job in JOBS if job.notebook]
    study = replace(STUDY, name="mine", data=Data("midog"))
    book.write_source(study, runs, tmp_path / "source")
    assert "9 of 9 runs failed or are missing" in (tmp_path / "source" / "index.md").read_text()
    title, banner = book._settings(study)[1::2]
    assert (title, banner) == (
        "html_title=Study mine",
        "html_theme_options.announcement=strict mode, but split_by: annotation",
    )
    banner = book._settings(replace(study, data=Data("midogpp", slides=("1", "2"))))[3]
    assert "=2 chosen slides: they estimate nothing about all of MIDOG++ ·" in banner


# ---- markdown ----


def test_a_text_is_literal_and_in_one_line():
    assert markdown.text("a\n  *b* 7 %") == "a \\*b\\* 7\N{NO-BREAK SPACE}\\%"
    assert markdown.caption("**A_b.** of `c_d` < {doc}`x`") == "**A\\_b\\.** of `c_d` \\< \\{doc\\}`x`"


def test_the_first_sentence_is_the_alternative_to_a_picture():
    assert markdown.first_sentence("Of `a` and 0.5 of it. More.") == "Of a and 0.5 of it."
    assert markdown.first_sentence("One only") == "One only"


def test_columns_of_numbers_stand_to_the_right_and_read_as_everywhere():
    rows = [
        {"n_test": "1282", "auroc": "0.87 ± 0.04", "p": "0.123456", "of": "12 a"},
        {"n_test": "–", "auroc": "", "p": "1e-5"},
    ]
    head, rule, first, _ = markdown.table(rows).strip().splitlines()
    assert head == "| n test | auroc | p | of |" and rule == "| ---: | ---: | ---: | --- |"
    assert first == "| 1\\,282 | 0\\.87 ± 0\\.04 | 0\\.123 | 12 a |"
    assert "| a\\|b |" in markdown.table([{"x": "a|b"}])
    numbers = {
        "-0.123456": "-0.123",
        "0.0003": "0.0003",
        "-0.000123456": "-0.00012",
        "0.0000": "0.000",
        "1234.5678": "1234.568",
    }
    for number, short in numbers.items():
        assert markdown.text(short) in markdown.table([{"x": number}]).split()


def test_a_small_p_is_said_to_be_below_and_another_small_number_has_two_digits():
    rows = [{"p": "4.96e-05", "rate": "4.96e-05"}, {"p": "0.012345", "rate": "0.5"}]
    lines = markdown.table(rows).splitlines()
    assert lines[1] == "| ---: | ---: |"
    assert lines[2] == f"| {markdown.text('<0.001')} | {markdown.text('5e-05')} |" and markdown.text("0.012") in lines[3]
