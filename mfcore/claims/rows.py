"""The rows of the ledger: what papers state, read from the YAML files of this folder: one for each
paper, and two for single numbers of later work.
"""

import functools
from dataclasses import dataclass, field
from importlib import resources

import yaml

PAPERS = (
    "ganz-2024",
    "ammeling-2025",
    "banerjee-2025",
    "later-2026",
    "later-2026-notes",
    "kaiko-2024",
    "kaiko-2024-notes",
)

# What a claim is about. Only the data sets that are named can settle the claim; DIRECTION is
# settled by any real data that ask the paper's question, ANYWHERE by any study: what networks and
# designs are does not depend on the images. Slides that a study chose settle only the latter.
DIRECTION, ANYWHERE = "direction", "anywhere"


@dataclass(frozen=True)
class Row:
    """One checkable sentence of a paper, and how a study is asked about the sentence.

    evidence: the kind, one of `ledger.EVIDENCE` or `ledger.PRETRAINING`. quote: the paper's words,
    at most 30. place: the section, table or figure. test: what is measured, in words. about: the
    data sets that can settle the claim.
    rule: a key of `rules.RULES`, "within", "equals" or "holds"; empty where no study can settle the
    claim.

    Arms: ``first`` is compared with ``second``, or each arm of ``first`` with the others. A name is
    a group (`arms.choose`) or an encoder. at: sizes ("full", "each", "below full", a number),
    "inside", "outside", "drop" (the loss out of domain), "gain" (from the smallest to the largest
    size), or cells of Fig. 2 ("to two others", "there and back"). less: the place that each arm of
    ``first`` is compared with instead of another arm. only: "best" asks the best arm alone.
    stand_in: whether other encoders may stand in for the paper's. skip_untrained: leave out arms
    without scores there.

    check: a function of `checks` or `kaiko` that measures what no comparison of arms can, with its
    ``arguments``. expected: a number, the two ends of a range, or words. printed_sd: the paper's
    standard deviation. tolerance: the margin of a comparison, or how far a number may be off. unit:
    "%" where a share is shown in per cent.

    Texts: note, shown with every verdict; barred, why no study can settle the claim; lacking, where
    nothing could be compared; explain, a function of `reasons` that says why a number is not the
    printed one.
    """

    paper: str
    evidence: str
    quote: str
    place: str
    test: str
    about: tuple[str, ...] = (DIRECTION,)
    rule: str = ""
    first: str | list[str] = ""
    second: str | list[str] = ""
    at: str | float | list[str] = "full"
    less: str = ""
    metric: str = "auroc"
    only: str = ""
    stand_in: bool = True
    skip_untrained: bool = False
    check: str = ""
    arguments: dict = field(default_factory=dict)
    expected: float | str | list[float] = ""
    printed_sd: float | None = None
    tolerance: float = 0.0
    unit: str = ""
    note: str = ""
    barred: str = ""
    lacking: str = "nothing to compare"
    explain: str = ""


@functools.cache
def _papers() -> list[dict]:
    folder = resources.files(__package__)
    return [
        yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) for name in PAPERS
    ]


@functools.cache
def load() -> tuple[Row, ...]:
    """Every claim of every paper, in the order of the files."""
    return tuple(
        Row(paper["paper"], evidence, **claim)
        for paper in _papers()
        for evidence, claims in paper["claims"].items()
        for claim in claims
    )


def facts(name: str) -> dict:
    """What the first paper states besides its claims: "arms" (groups of encoders) or "protocol"
    (settings of training).
    """
    return _papers()[0][name]
