"""Encoders that a study pretrains: what decides one, where it lies, and the names of its snapshots.

A run ``pretrain-<name>-<key>`` keeps a folder for each snapshot, ``encoders/step0000400/`` with
``card.json`` and ``weights.safetensors``. ``NAME`` stands for the last, ``NAME@STEP`` for any.
"""

import json
from dataclasses import replace
from pathlib import Path

from mfcore import store
from mfcore.pretraining import method
from mfcore.pretraining.method import METHODS, in_full, snapshot_folder, steps_of
from mfcore.store.options import as_dict
from mfcore.study.config import ConfigError, Pretraining, Settings

STAGE = "pretrain"


def config_of(study: Settings, name: str) -> dict:
    """What decides the encoder ``name``, besides the slides and the weights that it starts from."""
    pretraining = in_full(study.pretraining_of(name))
    content, by = as_dict(pretraining) | {"name": ""}, METHODS[pretraining.method]
    if by.layer_scale is not None:
        first = {"layer_scale": by.layer_scale, "mask_token_sd": by.mask_token_sd}
        content["begins_with"] = first
    data, patches = as_dict(study.data), as_dict(study.patches)
    return {
        "pretraining": content,
        "slides": {key: data[key] for key in ("source", "um_per_px", "um_per_px_by_scanner")},
        "patches": {key: patches[key] for key in ("size_px", "um_per_px")},  # its card
    }


def find(study: Settings, name: str, results: Path) -> store.Run:
    """The finished pretraining of the encoder ``name``.

    Raises StoreError where there is none, with what differs in the nearest one and the notebook to
    run.
    """
    try:
        return store.find_run(results, STAGE, name, config_of(study, name))
    except store.StoreError as error:
        reason = str(error).removesuffix(" run the notebook that makes it first.")
        raise store.StoreError(
            f"{reason} Pretrain it: notebook 08_pretrain with encoder = {name!r}"
        ) from None


def in_order(study: Settings) -> list[str]:
    """The encoders that the study pretrains, each after the one that it starts from."""
    return method.in_order(study.pretraining)


def snapshots_of(pretraining: Pretraining) -> list[str]:
    """The names of a pretraining's snapshots, ``NAME@STEP``, in order."""
    return [f"{pretraining.name}@{step}" for step in steps_of(pretraining)]


def first_seeds(study: Settings) -> dict[str, str]:
    """By name of each pretraining, the first that differs from it in its seed alone.

    Names and numbers of snapshots make no difference.
    """
    firsts, names = {}, {}
    for one in study.pretraining:
        alike = as_dict(replace(in_full(one), name="-", seed=0, n_snapshots=1))
        names[one.name] = firsts.setdefault(json.dumps(alike, sort_keys=True), one.name)
    return names


def is_of(study: Settings, name: str) -> bool:
    """Whether ``name`` is an encoder that the study pretrains, or a snapshot of one."""
    return name.partition("@")[0] in [pretraining.name for pretraining in study.pretraining]


def folder_of(study: Settings, name: str, results: Path) -> Path:
    """The folder with card and weights of ``NAME`` or ``NAME@STEP``.

    Raises StoreError where it isn't pretrained yet, ConfigError for a step without a snapshot.
    """
    encoder, _, step = name.partition("@")
    pretraining = study.pretraining_of(encoder)
    steps = steps_of(pretraining)
    if step and step not in map(str, steps):
        raise ConfigError(
            f"encoder {name!r}: there are snapshots after {steps} steps; "
            f"name one of {snapshots_of(pretraining)}"
        )
    return snapshot_folder(find(study, encoder, results).folder, int(step or steps[-1]))
