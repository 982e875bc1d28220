"""A study as frozen, checked data: what a YAML file in ``studies/`` may say, and nothing else.

What decides a result is here and enters the hash of the runs it decides. Where and how something
runs (folders, device, workers) is not here: those are parameters of the notebooks.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from mfcore.data.labels.source import SOURCES
from mfcore.data.options import SCHEMES, Data, Patches, Splits
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.encoders.card import cards
from mfcore.encoders.catalogue import OwnEncoder, path_of
from mfcore.pretraining.method import Crops, OnlinePatches, Pretraining, in_order, steps_of
from mfcore.store.options import ConfigError, as_dict, nearest, problems_of, repeated
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
# Stand in for wrong sections while the other sections are checked
REQUIRED = {"name": "", "title": "", "data": {"source": "csv"}}


def load_study(path: str | Path) -> Settings:
    """Read a study file.

    Raises ConfigError, naming the file and each key, for a missing file, an unknown key (with the
    nearest known one), a key that stands twice, a value of the wrong type or out of range, and for
    sections that contradict one another.
    """
    path = Path(path)
    content = _read(path)
    _set_own_encoders_apart(content, path.parent)
    problems, wrong = _repeat_by_seed(content), set()  # wrong: sections
    if isinstance(content.get("test_on"), list):
        files = [(path.parent / str(file)).resolve() for file in content["test_on"]]
        content["test_on"] = [str(file) for file in files]
    switches = content.get("switches") or {}
    if isinstance(switches, dict):
        defaults = MODES["paper" if content.get("mode") == "paper" else "strict"]
        content["switches"] = as_dict(defaults) | switches
    try:
        study = STUDY.validate_python(content)
    except ValidationError as error:
        messages = problems_of(error, Settings, content)
        problems += [text.replace("own_encoders[", "encoders[", 1) for text in messages]
        wrong = {line["loc"][0] for line in error.errors()}
        right = {key: content[key] for key in content if isinstance(key, str) and key not in wrong}
        study = STUDY.validate_python(REQUIRED | right)
    for check, sections in CHECKS.items():
        if not sections & wrong:
            problems += check(study)
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
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}"
        raise ConfigError(f"{path}: not UTF-8 ({where}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except TwiceError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path}: a study is a mapping of keys, this is {kind}")
    return content


def _set_own_encoders_apart(content: dict, folder: Path) -> None:
    """Move the entries of ``encoders`` that are mappings to ``own_encoders``; leave their names.

    A relative path to weights becomes one from ``folder``. A study written out by `as_dict` has
    them there already.
    """
    entries, moved = content.get("encoders"), content.get("own_encoders", [])
    if not isinstance(entries, list) or not isinstance(moved, list):
        return
    described = [entry for entry in entries if isinstance(entry, dict)]
    for entry in described:
        weights = entry.get("weights")
        if isinstance(weights, str) and (file := path_of(weights)) is not None:
            entry["weights"] = str((folder / file).resolve())
        if isinstance(place := entry.get("features"), str):
            entry["features"] = str((folder / Path(place).expanduser()).resolve())
    names = [entry.get("name", "") if isinstance(entry, dict) else entry for entry in entries]
    content |= {"encoders": names, "own_encoders": [*moved, *described]}


def _repeat_by_seed(content: dict) -> list[str]:
    """Put each pretraining with ``n_seeds`` into ``content`` so many times; gives what is wrong.

    The first keeps name and seed, so that its runs stay its own; the others have the next seeds and
    are called NAME_seed1, NAME_seed2. A task that lists the first judges the others, too.
    """
    again, problems, repeated_all = {}, [], []
    entries, tasks = content.get("pretraining"), content.get("tasks")
    for entry in entries if isinstance(entries, list) else ():
        if not (isinstance(entry, dict) and "n_seeds" in entry):
            repeated_all.append(entry)
            continue
        one = {key: value for key, value in entry.items() if key != "n_seeds"}
        name, n, seed = str(one.get("name")), entry["n_seeds"], one.get("seed", 0)
        if type(n) is not int or n < 1:
            problems.append(f"pretraining[{name}].n_seeds: {n!r} should be a whole number above 0")
        seeds = range(seed, seed + n) if type(n) is type(seed) is int else ()
        more = [one | {"name": f"{name}_seed{i}", "seed": i} for i in seeds[1:]]
        again[name] = [name, *(each["name"] for each in more)]
        repeated_all += [one, *more]
    if again:
        content["pretraining"] = repeated_all
        for task in tasks if isinstance(tasks, list) else ():
            if isinstance(task, dict) and isinstance(names := task.get("encoders"), list):
                task["encoders"] = [each for name in names for each in again.get(str(name), [name])]
    return problems


# ---- checks of several sections: each yields problems of a study, see CHECKS ----


def _patches(study: Settings) -> Iterator[str]:
    is_resampled = study.switches.resolution == "target" and study.source.has_slides
    if is_resampled and study.patches.um_per_px is None:
        yield "patches.um_per_px: resolution 'target' needs a value; or say resolution: native"
    if study.patches.fit and study.source.has_slides:
        yield (
            f"patches.fit: is for patch images; data.source {study.source.name} has slides, leave"
            " the key out"
        )
    if study.patches.fit == "resize" and study.patches.um_per_px is not None:
        yield (
            "patches.um_per_px: with fit: resize each image has a resolution of its own; set"
            " um_per_px: null"
        )


def _arms(study: Settings) -> Iterator[str]:
    networks, n_folds = study.networks, study.splits.n_folds
    names = [*study.encoders, *(network.name for network in networks)]
    names += [f"{name} {method}" for name in study.encoders for method in study.probe.also]
    if not names:
        yield "a study needs at least one entry in encoders or networks"
    elif study.splits.by_domain and not (study.encoders or any(n.by_domain for n in networks)):
        yield (
            "splits.by_domain: no arm learns from single domains; say by_domain: false, or true for"
            " a network"
        )
    if twice := repeated(names):
        yield f"an arm is named twice: {twice}; call networks otherwise, say {twice[0]}_224px"
    trainings = {f"{network.name}-fold{fold}" for network in networks for fold in range(n_folds)}
    if taken := sorted(trainings & set(study.encoders)):
        yield f"encoders: {taken} are what a network's trainings are called; call them otherwise"


def _references(study: Settings) -> Iterator[str]:
    """Names of arms that the study doesn't have."""
    effects, scales = study.effects, study.scales
    encoders = {
        "inflation.encoder": [study.inflation.encoder],
        "conventions": [study.conventions],
        "probe_audit": study.probe_audit,
        "effects.encoder": [effects.encoder],
        "scales.encoders": scales.encoders,
    }
    for key, names in encoders.items():
        for name in names:
            if name and name not in study.encoders:
                hint = nearest(name, study.encoders)
                yield f"{key}: {name!r} is not among encoders {list(study.encoders)}{hint}"
    networks = [network.name for network in study.networks]
    for key, name in {"effects": effects.network, "scales": scales.network}.items():
        if name and name not in networks:
            hint = nearest(name, networks)
            yield f"{key}.network: {name!r} is not among networks {networks}{hint}"
    if effects.switches and not (effects.encoder or effects.network):
        yield "effects.switches: neither effects.encoder nor effects.network names an arm; name one"
    for key, n_folds in {"effects": effects.n_folds, "scales": scales.n_folds}.items():
        if (n_folds or 1) > study.splits.n_folds:
            yield f"{key}.n_folds: {n_folds}; the study has {study.splits.n_folds} folds"


def _scales(study: Settings) -> Iterator[str]:
    """What is wrong with ``scales``, as far as the study tells without its slides."""
    scales, sizes = study.scales, study.splits.sizes
    if bool(scales.patches) != bool(scales.encoders or scales.network):
        yield "scales: name patches, and in encoders or network the arms that are measured at them"
    if foreign := sorted(set(scales.sizes or ()) - set(sizes)):
        yield f"scales.sizes: {foreign}; name some of splits.sizes {list(sizes)}"
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
    if foreign := sorted(set(at.network_px or ()) - set(at.size_px)):
        yield f"{place}.network_px: {foreign}; name some of size_px {list(at.size_px)}"
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


def _tolerances(study: Settings) -> Iterator[str]:
    """What is wrong with ``tolerance_px``, as far as the study tells without its slides."""
    is_native = study.switches.resolution != "target" or study.patches.um_per_px is None
    half = study.patches.size_px / 2
    for own in study.own_encoders:
        place = f"encoders[{own.name}].tolerance_px: {own.tolerance_px:g}"
        if not own.features and own.tolerance_px != OwnEncoder.tolerance_px:
            yield f"{place} is for embeddings made elsewhere; name these by features, or remove it"
        if own.features and is_native and own.tolerance_px > half:
            yield f"{place} is more than {half:g}, half the side of the study's patches; lower it"


def _networks(study: Settings) -> Iterator[str]:
    for network in study.networks:
        place, sizes = f"networks[{network.name}]", study.splits.sizes
        if foreign := sorted(set(network.sizes or ()) - set(sizes)):
            yield f"{place}.sizes: {foreign}; name some of splits.sizes {list(sizes)}"
        if network.needed_px > study.stored_px:
            yield (
                f"{place}: rotating and shifting a crop of {network.input_px} px needs stored "
                f"patches of {network.needed_px} px, these have {study.stored_px}; "
                "lower input_px or shift_px, or raise patches.stored_px"
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
    name = one.start.partition("@")[0]
    first = next((other for other in study.pretraining if other.name == name), None)
    if first is None:
        scheme, _, model = one.start.partition(":")
        described = {entry.name: entry.architecture for entry in study.own_encoders}
        architecture = model.partition(".")[0] if scheme == "timm" else described.get(one.start)
        if architecture and architecture != one.architecture:
            yield (
                f"{place}: {one.start!r} is a {architecture}, this a {one.architecture}; they must"
                " be one architecture"
            )
    elif one.name not in in_order(study.pretraining):
        yield f"{place}: {one.start!r} starts in turn from {one.name!r}; start one at random"
    elif (first.architecture, first.arguments) != (one.architecture, one.arguments):
        yield (
            f"{place}: {one.start!r} is a {first.architecture} {first.arguments or ''}, "
            f"this a {one.architecture} {one.arguments or ''}; "
            "weights fit the same architecture only"
        )
    else:
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
    known = list(dict.fromkeys([*study.encoders, *pretrained]))
    embedding = [one.name for one in study.tasks if not registry.get(one.name).is_segmentation]
    for task in study.tasks:
        place = f"tasks[{task.name}]"
        if foreign := sorted(set(task.encoders) - set(known)):
            yield f"{place}.encoders: {foreign} not among the study's {known}"
        if not known:
            yield (
                f"{place}: the study has no encoder to judge; name some in encoders, or"
                " pretrain one"
            )
        if task.measured_on not in ("", *embedding):
            yield (
                f"{place}.measured_on: {task.measured_on!r} isn't among the study's tasks of"
                f" classification, {embedding}; add the task"
            )
        if task.snapshots and not set(task.encoders or known) & set(pretrained):
            yield (
                f"{place}.snapshots: the study pretrains none of its encoders; leave snapshots out"
            )


# The sections that a check compares. A check is left out where one of its sections is wrong.
CHECKS = {
    _patches: {"data", "patches", "switches"},
    _arms: {"encoders", "networks", "splits"},
    _references: {
        "conventions", "effects", "encoders", "inflation", "networks", "probe_audit", "scales",
        "splits",
    },
    _scales: {
        "data", "networks", "own_encoders", "patches", "pretraining", "scales", "splits",
        "switches",
    },
    _tolerances: {"own_encoders", "patches", "switches"},
    _networks: {"networks", "patches", "splits"},
    _pretraining: {"data", "encoders", "networks", "own_encoders", "pretraining"},
    _tasks: {"encoders", "pretraining", "tasks"},
}  # fmt: skip
