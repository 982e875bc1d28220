"""AMi-Br's table of patch images: a row an image, which lies in the folder of its class."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import refuse, say

FILE = "AMI-BR.csv"
EXPERTS = [f"expert{i}_atypical" for i in (1, 2, 3)]


def read(file: Path) -> pd.DataFrame:
    """The rows of AMi-Br's table; raises LabelError, with the lines that can't be."""
    flags, names = [*EXPERTS, "majority_atypical"], ["slide", "dataset", "uid"]
    rows = csv.numbers(file, csv.lines(file, [*names, "x", "y", *flags]), ("x", "y"))
    problems = say(rows, rows.duplicated(["dataset", "uid"]), "{dataset} uid {uid} stands twice")
    for name in names:
        problems += say(rows, rows[name] == "", f"{name} is empty")
    for name in flags:
        is_wrong = ~rows[name].isin(["True", "False"])
        problems += say(rows, is_wrong, f"{name} is {{{name}!r}}, expected True or False")
    refuse(file, problems, csv.LINES)
    atypical = rows[flags] == "True"
    folders = atypical["majority_atypical"].map({False: "normal", True: "atypical"})
    slides = rows["dataset"] + "/" + rows["slide"]
    return rows[["x", "y"]].assign(
        slide=slides,
        case=slides.map(lambda slide: re.sub(r"(_stitched\d+)?\.\w+$", "", slide)),
        domain=rows["dataset"],
        label=atypical["majority_atypical"].astype(int),
        votes=list(atypical[EXPERTS].to_numpy(np.int8)),
        file="patches/" + folders + "/" + rows["dataset"] + "_" + rows["uid"] + ".png",
    )
