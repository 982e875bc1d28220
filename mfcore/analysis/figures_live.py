"""How training goes, redrawn in the notebook's cell while it goes on."""

import os
import time
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from mfcore.analysis import figures
from mfcore.study.config import Settings

SHARE = 0.05  # of the time, at most, that drawing takes


class LiveHistory:
    """Called with the history so far whenever that grew, it redraws ``draw`` of it in one place of the cell's output.

    draw: called with study, history and name. Outside a notebook nothing is done, nor in one that runs unattended
    (papermill): there the figure is drawn once, when training is over.
    """

    def __init__(self, study: Settings, name: str, draw: Callable[[Settings, pd.DataFrame, str], Figure] = figures.history):
        self.study, self.name, self.draw = study, name, draw
        self.is_live = is_watched()
        self._shown, self._not_before = None, -float("inf")

    def __call__(self, history: pd.DataFrame) -> None:
        """Show how it went so far. history: as `mfcore.training.train.load_history` returns it, say, any number of rows."""
        if not self.is_live or history.empty:
            return
        begun = time.monotonic()
        if begun < self._not_before:
            return
        from IPython import display

        figure = self.draw(self.study, history, self.name)
        if self._shown is None:
            self._shown = display.display(figure, display_id=True)
        else:
            self._shown.update(figure)
        ended = time.monotonic()
        self._not_before = ended + (ended - begun) / SHARE


def is_watched() -> bool:
    """Whether somebody may look on: in a kernel that a notebook server, VS Code or Colab started, not papermill."""
    try:
        import IPython
    except ImportError:
        return False
    shell = IPython.get_ipython()
    if not hasattr(shell, "kernel"):
        return False
    return "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns or "COLAB_RELEASE_TAG" in os.environ
