"""How Sphinx makes the supplement of a study; `book` adds the title and the banner."""

import html

project = author = copyright = ""
extensions = ["myst_nb", "sphinx_design"]

nb_execution_mode = "off"  # a page shows what papermill left
nb_merge_streams = True
nb_ipywidgets_js = {}  # nothing is fetched
nb_code_prompt_show, nb_code_prompt_hide = "Show code", "Hide code"
myst_enable_extensions = ["colon_fence"]  # math would load MathJax from a foreign host
myst_disable_syntax = ["html_inline", "html_block"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

html_theme = "sphinx_book_theme"
html_theme_options = {
    "announcement": "",
    "collapse_navbar": True,
    "show_navbar_depth": 1,
    "max_navbar_depth": 3,
    "navbar_persistent": [],  # the sidebar has the search
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "toc_title": "On this page",
}
html_static_path = ["_static"]
html_css_files, html_js_files = ["supplement.css"], ["tables.js"]
html_use_index = False
html_copy_source = html_show_sourcelink = html_show_sphinx = html_show_copyright = False
html_show_search_summary = False  # the search would fetch pages, which a browser forbids from disk
smartquotes = False  # names stay as they are
html_context = {"default_mode": "auto"}


def setup(app):
    """Escape the title in the theme's print header, where sphinx-book-theme 1.4.0 doesn't."""

    def escape(app, page, template, context, doctree):
        context["pagetitle"] = html.escape(context.get("pagetitle", ""))

    app.connect("html-page-context", escape, priority=999)
