"""The supplement's page on switches: each departure of the released code, what this study does, and what that is worth."""

from pathlib import Path

from mfcore.analysis import switches
from mfcore.study.config import Settings
from mfcore.study.study import Study
from mfcore.sweep import report_html


def page(study: Settings, results: Path) -> str:
    """The page, from what the sweep's jobs ``measure_switch`` left; a departure that isn't measured says why."""
    exhibit = switches.worth(Study(study, results))
    rows = report_html.table(exhibit.readable) if len(exhibit.table) else ""
    return report_html.render("switches.html", study=study, caption=exhibit.caption, rows=rows)
