"""A study as frozen, checked data: what a YAML file in ``studies/`` may say, and nothing else.

What decides a result is here and enters the hash of the runs it decides. Where and how something
runs (folders, device, workers) is not here: those are parameters of the notebooks.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from mfcore.data.labels.source import SOURCES
from mfcore.data.options import SCHEMES, Data, Patches, Splits
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.encoders.card import cards, conventions
from mfcore.encoders.catalogue import OwnEncoder, path_of
from mfcore.pretraining.method import Crops, OnlinePatches, Pretraining, in_order, steps_of
from mfcore.store.options import ConfigError, as_dict, problems_of, repeated
from mfcore.store.text import TwiceError, read_yaml
from mfcore.study.config_schema import (
    MODES,
    Effects,
    Inflation,
    Resolution,
    Scales,
    Settings,
    Switches,
)
from mfcore.tasks import registry
from mfcore.tasks.protocol import TaskOptions
from mfcore.training.options import Lora, Network, Probe

__all__ = [
    "MODES",
    "SCHEMES",
    "SOURCES",
    "ConfigError",
    "Crops",
    "Data",
    "Effects",
    "Inflation",
    "Lora",
    "Network",
    "OnlinePatches",
    "OwnEncoder",
    "Patches",
    "Pretraining",
    "Probe",
    "Resolution",
    "Scales",
    "Settings",
    "Splits",
    "Switches",
    "TaskOptions",
    "as_dict",
    "load_study",
]

STUDY = TypeAdapter(Settings)


def load_study(path: str | Path) -> Settings:
    """Read a study file.

    Raises ConfigError, naming the file and each key, for a missing file, an unknown key (with the
    nearest known one), a key that stands twice, a value of the wrong type or out of range, and,
    where all these are right, for sections that contradict one another.
    """
    path = Path(path)
    content = _read(path)
    for complete in (_set_own_encoders_apart, _repeat_by_seed, _resolve_tests, _fill_in_switches):
        with contextlib.suppress(AttributeError, TypeError):  # of a wrong type: refused below
            complete(content, path)
    try:
        study = STUDY.validate_python(content)
        problems = [problem for check in CHECKS for problem in check(study)]
    except ValidationError as error:
        messages = problems_of(error, Settings, content)
        problems = [text.replace("own_encoders[", "encoders[", 1) for text in messages]
    if problems:
        lines = problems if len(problems) == 1 else [f"{len(problems)} problems:", *problems]
        raise ConfigError(f"{path}: " + "\n  ".join(lines))
    return study


def _read(path: Path) -> dict:
    """The mapping that a study file holds; raises ConfigError where there is none."""
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise ConfigError(f"{path}: no such study file; studies in its folder: {known}")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, TwiceError) as error:
        raise ConfigError(f"{path}: not YAML in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a study is a mapping of keys, this is {type(content).__name__}")
    return content


# ---- what a file may leave out, or say in short ----


def _list(content: dict, key: str) -> list:
    """The entries of a key; raises TypeError where there is something else than a list."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise TypeError(key)
    return entries


def _set_own_encoders_apart(content: dict, path: Path) -> None:
    """Move the entries of ``encoders`` that are mappings to ``own_encoders``; leave their names.

    A relative path to weights or features becomes one from the study's file. A study written out by
    `as_dict` has them there already.
    """
    entries, own = _list(content, "encoders"), _list(content, "own_encoders")
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        own.append(entry)
        weights, features = entry.get("weights"), entry.get("features")
        if isinstance(weights, str) and (file := path_of(weights)) is not None:
            entry["weights"] = str((path.parent / file).resolve())
        if isinstance(features, str):
            entry["features"] = str((path.parent / Path(features).expanduser()).resolve())
    names = [entry.get("name", "") if isinstance(entry, dict) else entry for entry in entries]
    content |= {"encoders": names, "own_encoders": own}


def _repeat_by_seed(content: dict, path: Path) -> None:
    """Put each pretraining with ``n_seeds`` into ``content`` so many times.

    The first keeps name and seed, so that its runs stay its own; the others have the next seeds and
    are called NAME_seed1, NAME_seed2. A task that lists the first judges the others, too.
    """
    all_of, repeated_all = {}, []
    for entry in _list(content, "pretraining"):
        one = {**entry}
        n, name, seed = one.pop("n_seeds", 1), one.get("name"), one.get("seed", 0)
        if type(n) is not int or n < 1:
            raise ConfigError(
                f"{path}: pretraining[{name}].n_seeds: {n!r} should be a whole number above 0"
            )
        seeds = range(seed + 1, seed + n)
        more = [one | {"name": f"{name}_seed{i}", "seed": i} for i in seeds]
        all_of[name] = [name, *(each["name"] for each in more)]
        repeated_all += [one, *more]
    content["pretraining"] = repeated_all
    for task in _list(content, "tasks"):
        names = _list(task, "encoders")
        task["encoders"] = [each for name in names for each in all_of.get(name, [name])]


def _resolve_tests(content: dict, path: Path) -> None:
    """Make each path of ``test_on`` one from the study's file."""
    files = _list(content, "test_on")
    content["test_on"] = [str((path.parent / file).resolve()) for file in files]


def _fill_in_switches(content: dict, _path: Path) -> None:
    """Set the switches that a study doesn't name as its mode has them."""
    defaults = MODES["paper" if content.get("mode") == "paper" else "strict"]
    content["switches"] = as_dict(defaults) | (content.get("switches") or {})


# ---- checks of several sections: each yields problems of a study whose values are right ----


def _names(study: Settings) -> Iterator[str]:
    """Names and sizes that another section doesn't have, and names of arms that stand twice."""
    encoders, networks = study.encoders, [network.name for network in study.networks]
    effects, scales, splits = study.effects, study.scales, study.splits
    judged = [*encoders, *(one.name for one in study.pretraining)]
    measured = [one.name for one in study.tasks if not registry.get(one.name).is_segmentation]
    asked = {
        "inflation.encoder": ([study.inflation.encoder], encoders),
        "conventions": ([study.conventions], encoders),
        "probe_audit": (study.probe_audit, encoders),
        "effects.encoder": ([effects.encoder], encoders),
        "effects.network": ([effects.network], networks),
        "scales.encoders": (scales.encoders, encoders),
        "scales.network": ([scales.network], networks),
        "scales.sizes": (scales.sizes, splits.sizes),
    }
    for at in scales.patches:
        asked[f"scales.patches[{at.um_per_px:g} um/px].network_px"] = at.network_px, at.size_px
    for network in study.networks:
        asked[f"networks[{network.name}].sizes"] = network.sizes, splits.sizes
    for task in study.tasks:
        asked[f"tasks[{task.name}].encoders"] = task.encoders, judged
        asked[f"tasks[{task.name}].measured_on"] = [task.measured_on], measured
    for key, (names, known) in asked.items():
        if unknown := [name for name in names or () if name and name not in known]:
            yield f"{key}: {unknown} not among the study's {list(known)}"
    if study.conventions in encoders and study.conventions not in conventions():
        listed = f"listed are {list(conventions())}"
        yield f"conventions: no library's way with {study.conventions!r} is listed; {listed}"
    for key, n_folds in {"effects": effects.n_folds, "scales": scales.n_folds}.items():
        if (n_folds or 1) > splits.n_folds:
            yield f"{key}.n_folds: {n_folds}; the study has {splits.n_folds} folds"
    arms = [*encoders, *networks]
    arms += [f"{name} {method}" for name in encoders for method in study.probe.also]
    if not arms:
        yield "a study needs at least one entry in encoders or networks"
    if twice := repeated(arms):
        yield f"an arm is named twice: {twice}; call networks otherwise, say {twice[0]}_224px"
    trainings = {f"{network}-fold{fold}" for network in networks for fold in range(splits.n_folds)}
    if taken := sorted(trainings & {*encoders}):
        yield f"encoders: {taken} are what a network's trainings are called; call them otherwise"


def _arms(study: Settings) -> Iterator[str]:
    """Arms that learn from nothing, or from patches that the study doesn't have."""
    if study.splits.by_domain and not any([study.encoders, *(n.by_domain for n in study.networks)]):
        yield (
            "splits.by_domain: no arm learns from single domains; say by_domain: false, or true for"
            " a network"
        )
    for network in study.networks:
        if network.needed_px > study.stored_px:
            yield (
                f"networks[{network.name}]: rotating and shifting a crop of {network.input_px} px"
                f" needs stored patches of {network.needed_px} px, these have {study.stored_px};"
                " lower input_px or shift_px, or raise patches.stored_px"
            )
    if study.effects.switches and not (study.effects.encoder or study.effects.network):
        yield "effects.switches: neither effects.encoder nor effects.network names an arm; name one"


def _patches(study: Settings) -> Iterator[str]:
    patches, has_slides = study.patches, study.source.has_slides
    is_native = study.switches.resolution != "target"
    if has_slides and not is_native and patches.um_per_px is None:
        yield "patches.um_per_px: resolution 'target' needs a value; or say resolution: native"
    if has_slides and patches.fit:
        yield (
            f"patches.fit: is for patch images; data.source {study.source.name} has slides, leave"
            " the key out"
        )
    if patches.fit == "resize" and patches.um_per_px is not None:
        yield (
            "patches.um_per_px: with fit: resize each image has a resolution of its own; set"
            " um_per_px: null"
        )
    half = patches.size_px / 2
    for own in study.own_encoders:
        place = f"encoders[{own.name}].tolerance_px: {own.tolerance_px:g}"
        if not own.features and own.tolerance_px != OwnEncoder.tolerance_px:
            yield f"{place} is for embeddings made elsewhere; name these by features, or remove it"
        if own.features and own.tolerance_px > half and (is_native or patches.um_per_px is None):
            yield f"{place} is more than {half:g}, half the side of the study's patches; lower it"


def _scales(study: Settings) -> Iterator[str]:
    """What is wrong with ``scales``, as far as the study tells without its slides."""
    scales = study.scales
    if bool(scales.patches) != bool(scales.encoders or scales.network):
        yield "scales: name patches, and in encoders or network the arms that are measured at them"
    if twice := repeated([at.um_per_px for at in scales.patches]):
        yield f"scales.patches: {twice[0]:g} um/px stands twice; put its sides in one entry"
    elsewhere = {own.name for own in study.own_encoders if own.features}
    for name in scales.encoders:
        one = name.partition("@")[0]
        if name in elsewhere or one in [pretraining.name for pretraining in study.pretraining]:
            how = "were made elsewhere" if name in elsewhere else "see the study's own patches"
            yield f"scales.encoders: embeddings by {name!r} {how}, at one scale; leave it out"
    if scales.patches and (
        study.switches.resolution != "target" or study.patches.um_per_px is None
    ):
        yield "scales: need patches of known um/px; set patches.um_per_px and resolution: target"
        return
    for at in scales.patches:
        yield from _scale(study, at, f"scales.patches[{at.um_per_px:g} um/px]")


def _scale(study: Settings, at: Resolution, place: str) -> Iterator[str]:
    """What is wrong with one resolution: sides of the network, and what patch images can't show."""
    if study.source.has_slides:
        return
    stored, side = study.patches.um_per_px, study.side_at(at.um_per_px)
    if at.um_per_px < stored * (1 - SAME_RESOLUTION):
        yield f"{place}: the patch images have {stored:g} um/px and would be enlarged; leave it out"
        return
    image = f"the patch images have {side} px, {side * at.um_per_px:g} um"
    if wide := [size for size in at.size_px if size > side]:
        yield f"{place}.size_px: {wide} px, {image}; leave out what doesn't fit"
    for network in [one for one in study.networks if one.name == study.scales.network]:
        for size in at.size_px if at.network_px is None else at.network_px:
            needed = replace(network, input_px=size).needed_px
            if needed > side >= size:
                yield (
                    f"{place}.network_px: to rotate and shift a crop of {size} px takes {needed}"
                    f" px, {image}; leave {size} out"
                )


def _pretraining(study: Settings) -> Iterator[str]:
    others = {entry.name for entry in (*study.own_encoders, *study.networks)}
    for one in study.pretraining:
        place = f"pretraining[{one.name}]"
        if one.name in others or one.name in cards():
            yield f"{place}.name: an encoder or a network has that name; call it otherwise"
        if not (study.source.has_slides or one.slides):
            source = study.source.name
            yield f"{place}.slides: data.source {source} has patches and no slides; name a folder"
        if one.start != "random":
            yield from _start(study, one, f"{place}.start")
    for name in study.encoders:
        yield from _snapshot(study, name, "encoders")


def _start(study: Settings, one: Pretraining, place: str) -> Iterator[str]:
    """What is wrong with the encoder that a pretraining starts from, as far as the study tells."""
    described = {other.name: other for other in (*study.own_encoders, *study.pretraining)}
    first = described.get(one.start.partition("@")[0])
    scheme, _, model = one.start.partition(":")
    architecture = first.architecture if first else model.partition(".")[0] * (scheme == "timm")
    if architecture and architecture != one.architecture:
        yield (
            f"{place}: {one.start!r} is a {architecture}, this a {one.architecture}; weights fit"
            " the same architecture only"
        )
    elif first in study.pretraining:
        if one.name not in in_order(study.pretraining):
            yield f"{place}: {one.start!r} starts in turn from {one.name!r}; start one at random"
        if first.arguments != one.arguments:
            yield f"{place}: {one.start!r} has the arguments {first.arguments}; give the same here"
        yield from _snapshot(study, one.start, place)


def _snapshot(study: Settings, name: str, place: str) -> Iterator[str]:
    """What is wrong with ``NAME@STEP`` where the study pretrains NAME."""
    encoder, _, step = name.partition("@")
    kept = next((steps_of(one) for one in study.pretraining if one.name == encoder), [])
    if step and kept and step not in map(str, kept):
        yield (
            f"{place}: {name!r}, but snapshots of {encoder!r} are kept after {kept} steps; name one"
            " of these"
        )


def _tasks(study: Settings) -> Iterator[str]:
    pretrained = [one.name for one in study.pretraining]
    known = {*study.encoders, *pretrained}
    for task in study.tasks:
        if not known:
            yield (
                f"tasks[{task.name}]: the study has no encoder to judge; name some in encoders, or"
                " pretrain one"
            )
        if task.snapshots and not {*(task.encoders or known)} & {*pretrained}:
            yield (
                f"tasks[{task.name}].snapshots: the study pretrains none of its encoders; leave"
                " snapshots out"
            )


CHECKS = _names, _arms, _patches, _scales, _pretraining, _tasks
