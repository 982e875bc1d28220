"""Options of the data: which data set, which patches, how they are split."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mfcore.data.labels.source import SOURCES
from mfcore.store.options import (
    Count,
    Distinct,
    Flag,
    Number,
    PositiveShare,
    Two,
    UmPerPx,
    Whole,
    among,
    options,
    refuse,
    repeated,
)

ORIGINS = ("slide", "scanned_area")

# Ways to split, by name: the strictest first, "released" as the released probe script draws.
SCHEMES = {
    "slide": {"split_by": "slide", "stratified": True},
    "official": {"split_by": "official", "stratified": True},
    "annotation_buffered": {"split_by": "annotation_buffered", "stratified": True},
    "annotation": {"split_by": "annotation", "stratified": True},
    "released": {"split_by": "annotation", "stratified": False},
}


@options
class Data:
    """The data set: which loader, which classes.

    source: "synthetic" (made by mfcore), "midog22", "midogpp", "ccmct" (what their authors
        publish), "amibr" (AMi-Br's patches), "images" (one's own patch images), "geojson" (one's
        own slides, labelled in QuPath), "midog" (one's own slides, labelled in MIDOG's JSON), "csv"
        (one's own slides, labelled in a table).
    positive, negative: what class 1 and class 0 are called in tables and figures.
    um_per_px: resolution of slides that don't state their own; None refuses such slides.
    um_per_px_by_scanner: the same, for slides of one scanner; goes before ``um_per_px``.
    label_values: how a table (source "csv") writes class 0 and class 1; sources "images" and
        "geojson" write them as ``negative`` and ``positive`` unless this says otherwise.
    origin: where labels count px from: "slide", OpenSlide's corner of level 0; "scanned_area", the
        corner of what was scanned (``openslide.bounds-x``, ``-y``), as QuPath counts on MRXS and
        SCN. None counts as "slide", and warns where they differ.
    slides: names of the slides that the study uses, as the label file has them; empty for all.
    seed, n_slides, n_annotations: of the synthetic data set only.
    """

    source: Annotated[str, among(SOURCES)]
    positive: str = "mitotic figure"
    negative: str = "look-alike"
    um_per_px: UmPerPx | None = None
    um_per_px_by_scanner: dict[str, UmPerPx] = Field(default_factory=dict)
    label_values: Annotated[tuple[str, ...], Two, Distinct] = ("0", "1")
    origin: Annotated[str, among(ORIGINS)] | None = None
    slides: tuple[str, ...] = ()
    seed: Whole = 1
    n_slides: Whole = 50
    n_annotations: Whole = 2000

    @property
    def written(self) -> tuple[str, str]:
        """How class 0 and class 1 are written, in a table or as names of folders."""
        names_classes = SOURCES[self.source].names_classes
        return (
            (self.negative, self.positive)
            if names_classes and self.label_values == ("0", "1")
            else self.label_values
        )

    @model_validator(mode="after")
    def _agree(self) -> "Data":
        problems = {}
        if self.positive == self.negative:
            problems["positive"] = (
                f"both classes are called {self.positive!r}; give data.negative another name"
            )
        if self.origin == "scanned_area" and not SOURCES[self.source].has_slides:
            problems["origin"] = (
                f"data.source {self.source} has patches and no slides; leave the key out"
            )
        if twice := repeated([SOURCES[self.source].bare(name) for name in self.slides]):
            problems["slides"] = f"{twice} stand twice; name each slide once"
        refuse(problems)
        return self


@options
class Patches:
    """Patches: ``size_px`` at ``um_per_px`` is what encoders see; ``stored_px`` >= size_px leaves a
    margin for rotation.

    fit: how a patch image (source "images") becomes ``stored_px`` square. None: it is already.
        "crop": brought to ``um_per_px`` where its own is known, then its centre, with white around
        it where it is smaller. "resize": its shorter side becomes ``stored_px``, then its centre.
    at_border: where an annotation lies so near its slide's border that those ``size_px`` reach over
        it: "white" fills what is outside with white; "shift" moves the patch inward until they fit.
        One rule for training and test.
    """

    size_px: Annotated[Whole, Field(ge=8)] = 224
    um_per_px: UmPerPx | None = 0.25
    stored_px: Count | None = None
    at_border: Literal["white", "shift"] = "white"
    fit: Literal["crop", "resize"] | None = None

    @model_validator(mode="after")
    def _hold(self) -> "Patches":
        if self.stored_px is not None and self.stored_px < self.size_px:
            refuse({"stored_px": f"{self.stored_px} is less than patches.size_px {self.size_px}"})
        return self


Fraction = Annotated[Number, Field(gt=0, lt=1)]


@options
class Splits:
    """Monte Carlo folds (Ganz et al., section 3): test share of all, validation share and sizes as
    shares of the rest.
    """

    seed: Whole = 42
    n_folds: Count = 5
    sizes: Annotated[tuple[PositiveShare, ...], Field(min_length=1), Distinct] = (
        0.001,
        0.01,
        0.1,
        1.0,
    )
    test_fraction: Fraction = 0.2
    val_fraction: Fraction = 0.2
    by_domain: Flag = True
