"""The data sources that a study can name: one `Source` each, which holds everything that differs
between them.

A new source is an entry of `SOURCES`. A new label format is a module with a function that reads it,
and an entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mfcore.data.labels import amibr, csv, geojson, images, midog, sqlite

# Reads label files (the main one first), given how a table writes class 0 and class 1. Returns rows
# as `mfcore.data.labels.schema` describes them; `mfcore.data.labels.table.load` does the rest.
Read = Callable[[tuple[Path, ...], tuple[str, ...]], pd.DataFrame]

EDITIONS = (
    ".tiff",
    ".tif",
    ".png",
)  # MIDOG's images are published in several formats, under one name
MIDOGPP = ("MIDOG++.json", "MIDOGpp.json")
CASES = ("datasets_xvalidation.csv",)
PUBLISHED_GANZ = ("ganz_2024.csv", "ganz_2024_full_size.csv", "ammeling_2025.csv")
PUBLISHED_AMIBR = ("amibr_probes.csv",)


@dataclass(frozen=True)
class Archive:
    """A data set that is published as a repository on GitHub, small enough to be fetched whole as
    soon as it is needed.

    repository: owner and name. commit: 40 hex digits. kept: regular expression of the paths of the
    files that are kept.
    """

    repository: str
    commit: str
    kept: str


@dataclass(frozen=True)
class Source:
    """One data source.

    name: what a study file calls it, in ``data.source``. title: what figures and the supplement
    call the data set.
    main_files: patterns of the file that labels are read from; the first that matches counts, and
    it must match one file.
    read: reads the label files.
    beside: names of more label files, alternatives in one group; a group is read only where the one
    before it is there.
    editions: suffixes under which a slide may lie, whatever the label file says.
    has_slides: False where the data are patch images, which aren't cut from anything.
    has_class_folders: without a label file, the folder that an image lies in is its label.
    has_file_per_slide: labels are read from all files that match. names_classes: labels are written
    as the classes' names unless the study's ``label_values`` say otherwise.
    is_synthetic: mfcore makes the data. is_published: `mfcore.data.downloads` fetches them.
    archive: the one archive that holds all of the data, where they are published so.
    published: tables in ``mfcore/analysis/published/`` with published values for the question that
    the data set asks.
    note: what the supplement must say of a label table; empty for nothing.
    """

    name: str
    title: str
    main_files: tuple[str, ...]
    read: Read
    beside: tuple[tuple[str, ...], ...] = ()
    editions: tuple[str, ...] = ()
    has_slides: bool = True
    has_class_folders: bool = False
    has_file_per_slide: bool = False
    names_classes: bool = False
    is_synthetic: bool = False
    is_published: bool = False
    archive: Archive | None = None
    published: tuple[str, ...] = ()
    note: Callable[[pd.DataFrame], str] = lambda table: ""

    def bare(self, name: str) -> str:
        """A slide's name without the suffix in which the editions of the data set differ."""
        suffix = Path(name).suffix
        return name.removesuffix(suffix) if suffix.lower() in self.editions else name


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="synthetic",
            title="synthetic",
            published=PUBLISHED_GANZ,
            main_files=("annotations.json",),
            read=lambda files, values: midog.read_json(files[0]),
            is_synthetic=True,
        ),
        Source(
            name="midog",
            title="own slides",
            published=PUBLISHED_GANZ,
            main_files=("annotations.json", "MIDOG*.json"),
            read=lambda files, values: midog.read_json(files[0]),
        ),
        Source(
            name="midog22",
            title="MIDOG 2022",
            published=PUBLISHED_GANZ,
            main_files=(
                "MIDOG2022_training*.json",
                "MIDOG2022_training*.sqlite",
                "MIDOG2022_training*.csv",
            ),
            read=lambda files, values: midog.read_midog22(*files),
            beside=(MIDOGPP, CASES),  # the cases are MIDOG++'s, found by its labels
            editions=EDITIONS,
            is_published=True,
            note=midog.note_on_midog22,
        ),
        Source(
            name="midogpp",
            title="MIDOG++",
            published=PUBLISHED_GANZ,
            main_files=(*MIDOGPP, "MIDOGpp.sqlite", "MIDOGpp.csv"),
            read=lambda files, values: midog.read_midogpp(*files),
            beside=(CASES,),
            editions=EDITIONS,
            is_published=True,
        ),
        Source(
            name="ccmct",
            title="CCMCT",
            published=PUBLISHED_GANZ,
            main_files=(
                "MITOS_WSI_CCMCT_ODAEL.sqlite",
                "databases/MITOS_WSI_CCMCT_ODAEL.sqlite",
                "MITOS_WSI_CCMCT_ODAEL_binary_labels.csv",
            ),
            read=lambda files, values: sqlite.read_ccmct(files[0]),
            is_published=True,
        ),
        Source(
            name="amibr",
            title="AMi-Br",
            main_files=(amibr.FILE,),
            read=lambda files, values: amibr.read(files[0]),
            has_slides=False,
            is_published=True,
            archive=Archive(
                repository="DeepMicroscopy/AMi-Br",
                commit="0aaa85d57f134be6109340f1729f3ca354b96dea",
                kept=r"AMI-BR\.csv|patches/(normal|atypical)/[^/]+\.png",
            ),
            published=PUBLISHED_AMIBR,
        ),
        Source(
            name="images",
            title="own patch images",
            main_files=("images.csv", "*.csv", "*.tsv"),
            read=images.read,
            has_slides=False,
            has_class_folders=True,
            names_classes=True,
        ),
        Source(
            name="geojson",
            title="own slides",
            main_files=("*.geojson",),
            read=geojson.read,
            beside=((geojson.SLIDES,),),
            editions=geojson.SUFFIXES,
            has_file_per_slide=True,
            names_classes=True,
        ),
        Source(
            name="csv",
            title="own slides",
            published=PUBLISHED_GANZ,
            main_files=("annotations.csv", "*.csv"),
            read=csv.read,
        ),
    )
}
