"""A study's jobs, the committed notebooks, the supplement. ``python -m mfcore.sweep`` runs them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {  # of a user -> what each does; `mfcore.sweep.__main__` has them
    "paper": "run a study through the notebooks and build its supplement",
    "data": "fetch what a study's data folder lacks, and say what is there",
    "embed": "make the embeddings of a study's encoders, and nothing else",
}


def study_file(name: str) -> Path:
    """The file of a study given by its name in ``studies/`` or by its path."""
    is_path = name.endswith((".yaml", ".yml"))
    return Path(name).expanduser() if is_path else ROOT / "studies" / f"{name}.yaml"
