"""mfcore: mitotic figure classification with foundation models, from label table to figure.

Its packages stand in layers: measures, data, encoders, training, pretraining and tasks know no study; study binds them to a
study file and its runs; analysis, claims and sweep stand on study. A package imports only from those before it. What all
share stands in the store of runs and the named random streams. ``import mfcore`` loads nothing else.
"""

import importlib

__version__ = "0.1.0"

LAZY = {  # name -> the module that has it, imported at first use
    "open_study": "mfcore.study.study",
    "predict": "mfcore.study.candidates",
}


def __getattr__(name: str) -> object:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {sorted(LAZY)}")
