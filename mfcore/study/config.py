"""A study as frozen, checked data: what a YAML file in ``studies/`` may say, and nothing else.

What decides a result is here and enters the hash of the runs it decides. Where and how something runs (folders, device,
workers) is not here: those are parameters of the notebooks.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from mfcore.store.text import TwiceError, read_yaml
from mfcore.study.config_networks import problems_of, problems_of_arguments
from mfcore.study.config_pretraining import Pretraining, Task, problems_of_pretraining, problems_of_snapshot, problems_of_task
from mfcore.study.config_schema import (
    MODES,
    ORIGINS,
    SCHEMES,
    SOURCES,
    ConfigError,
    Data,
    Effects,
    Inflation,
    Lora,
    Network,
    OwnEncoder,
    Patches,
    Probe,
    Splits,
    Study,
    Switches,
)

__all__ = [
    "MODES",
    "SCHEMES",
    "SOURCES",
    "ConfigError",
    "Data",
    "Effects",
    "Inflation",
    "Lora",
    "Network",
    "OwnEncoder",
    "Patches",
    "Pretraining",
    "Probe",
    "Splits",
    "Study",
    "Switches",
    "Task",
    "as_dict",
    "load_study",
]

MAX_PROBLEMS = 10  # told in full


class _ProblemsError(ConfigError):
    """Some things that a study can't say, told at once."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        told = problems[:MAX_PROBLEMS]
        if len(problems) > MAX_PROBLEMS:
            told.append(f"... and {len(problems) - MAX_PROBLEMS} more")
        super().__init__(problems[0] if len(problems) == 1 else f"{len(problems)} problems:\n  " + "\n  ".join(told))


def _refuse(problems: list[str]) -> None:
    """Raise one ConfigError for all of them; none is no error."""
    if problems:
        raise _ProblemsError(problems)


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises ConfigError, naming the file and the key, for a missing file, an unknown key (with the nearest known one), a
    key that stands twice, a value of the wrong type, or values that contradict one another.
    """
    path = Path(path)
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml") if file.is_file())
        raise ConfigError(f"{path}: no such study file; studies beside it: {known}")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except TwiceError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a study is a mapping of keys, this is {type(content).__name__}")
    mode = content.get("mode", "strict")
    if mode not in MODES:
        raise ConfigError(f"{path}: mode is {mode!r}; it must be one of {sorted(MODES)}")
    flipped = content.get("switches") or {}
    if not isinstance(flipped, dict):
        raise ConfigError(f"{path}: switches: expected a mapping, got {flipped!r}")
    content["switches"] = dataclasses.asdict(MODES[mode]) | flipped
    try:
        _set_own_encoders_apart(content, path.parent)
        study = _build(Study, content, "")
        _check(study)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return study


def _set_own_encoders_apart(content: dict, folder: Path) -> None:
    """Put the entries of ``encoders`` that are mappings under ``own_encoders``, and their names in their place.

    A study written out by `as_dict` has them there already.
    """
    entries, own = content.get("encoders"), content.setdefault("own_encoders", [])
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict):
            continue
        if not isinstance(entry.get("name"), str):
            raise ConfigError(f"encoders[{i}]: an encoder of one's own needs a name")
        described = _build(OwnEncoder, entry, f"encoders[{i}].")
        path = described.weights_path
        if path is not None:
            described = dataclasses.replace(described, weights=str((folder / path).resolve()))
        if isinstance(own, list):
            own.append(vars(described))
        entries[i] = described.name


def _build(cls: type, content: object, where: str) -> typing.Any:
    """Build the dataclass ``cls`` from plain data, refusing unknown keys and wrong types."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where.rstrip('.') or 'study'}: expected a mapping, got {content!r}")
    fields, problems = {f.name: f for f in dataclasses.fields(cls)}, []
    for key in content:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {where}{near[0]!s}?" if near else f"known keys: {sorted(fields)}"
            problems.append(f"unknown key {where}{key}; {hint}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in content:
            problems.append(f"key {where}{name} is missing")
    hints, known = typing.get_type_hints(cls), [key for key in content if key in fields]
    values = _convert_all([(hints[key], content[key], f"{where}{key}") for key in known], problems)
    return cls(**dict(zip(known, values, strict=True)))


def _convert_all(what: Iterable[tuple[typing.Any, object, str]], problems: Sequence[str] = ()) -> list:
    """Each value as its type, see `_convert`; raises one ConfigError for all that is wrong, ``problems`` first."""
    problems, found = list(problems), []
    for hint, value, where in what:
        try:
            found.append(_convert(hint, value, where))
        except _ProblemsError as error:
            problems += error.problems
        except ConfigError as error:
            problems.append(str(error))
    _refuse(problems)
    return found


def _convert(hint: typing.Any, value: object, where: str) -> object:
    """``value`` as the annotated type ``hint``; int passes for float, a list for a tuple, nothing else changes type."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert_all((arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        converted = _convert_all((arguments[1], item, f"{where}[{key}]") for key, item in value.items())
        return dict(zip(value, converted, strict=True))
    if hint is object:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _check(study: Study) -> None:
    """Refuse values that no study can have."""
    for name, choices in Switches.CHOICES.items():
        if getattr(study.switches, name) not in choices:
            raise ConfigError(f"switches.{name}: {getattr(study.switches, name)!r} is not one of {list(choices)}")
    if study.data.source not in SOURCES:
        raise ConfigError(f"data.source: {study.data.source!r} is not one of {list(SOURCES)}")
    said = {f"um_per_px_by_scanner[{scanner}]": value for scanner, value in study.data.um_per_px_by_scanner.items()}
    for key, value in {"um_per_px": study.data.um_per_px, **said}.items():
        if value is not None and not 0.01 <= value <= 100:
            raise ConfigError(f"data.{key}: {value} um/px is no resolution of a slide (0.01 to 100)")
    if study.data.positive == study.data.negative:
        raise ConfigError(f"data.positive, data.negative: both classes are called {study.data.positive!r}; name one otherwise")
    if len(set(study.data.label_values)) != 2 or len(study.data.label_values) != 2:
        raise ConfigError(f"data.label_values: {list(study.data.label_values)}; expected how class 0 and class 1 are written")
    if study.data.origin not in (None, *ORIGINS):
        raise ConfigError(f"data.origin: {study.data.origin!r} is not one of {list(ORIGINS)}")
    if study.data.origin == "scanned_area" and not study.source.has_slides:
        raise ConfigError(f"data.origin: data.source {study.source.name} has patches and no slides; leave the key out")
    if study.patches.um_per_px is None and study.switches.resolution == "target" and study.source.has_slides:
        raise ConfigError("patches.um_per_px: resolution 'target' needs a value; or set switches.resolution: native")
    if study.patches.um_per_px is not None and not 0.01 <= study.patches.um_per_px <= 100:
        raise ConfigError(f"patches.um_per_px: {study.patches.um_per_px} um/px is out of range (0.01 to 100)")
    if study.patches.at_border not in ("white", "shift"):
        raise ConfigError(f"patches.at_border: {study.patches.at_border!r} is not one of ['white', 'shift']")
    if study.patches.size_px < 8:
        raise ConfigError(f"patches.size_px: {study.patches.size_px} px is too small for a patch (8 or more)")
    splits = study.splits
    if splits.n_folds < 1:
        raise ConfigError(f"splits.n_folds: {splits.n_folds}; at least one fold is needed")
    if not splits.sizes or len(set(splits.sizes)) != len(splits.sizes) or not all(0 < s <= 1 for s in splits.sizes):
        raise ConfigError(f"splits.sizes: {list(splits.sizes)}; they must be different shares in (0, 1]")
    for key in ("test_fraction", "val_fraction"):
        if not 0 < getattr(splits, key) < 1:
            raise ConfigError(f"splits.{key}: {getattr(splits, key)} must lie between 0 and 1")
    names = [*study.encoders, *(network.name for network in study.networks)]
    if not names:
        raise ConfigError("a study needs at least one entry in encoders or networks")
    if splits.by_domain and not study.encoders and not any(network.by_domain for network in study.networks):
        raise ConfigError(
            "splits.by_domain: no arm learns from single domains; set it to false, or by_domain of a network to true"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"an arm is named twice: {twice}; a network's name must differ from every encoder's, say {twice[0]}_224px"
        )
    folds = {f"{network.name}-fold{fold}" for network in study.networks for fold in range(splits.n_folds)}
    if taken := sorted(folds & set(study.encoders)):
        raise ConfigError(f"encoders: {taken} are what a network's trainings are called; call them otherwise")
    pretrained = [which.name for which in study.pretraining]
    described = [own.name for own in study.own_encoders]
    for wrong, what in (
        ([name for name in described if name not in study.encoders], "not among encoders"),
        (sorted({name for name in described if described.count(name) > 1}), "described twice"),
        ([name for name in described if ":" in name], "can't be names: what stands before ':' says where to look"),
        ([name for name in described if "@" in name], "can't be names: what stands behind '@' is a step of a pretraining"),
        ([name for name in described if name == "random"], "can't be a name: a pretraining starts from 'random' weights"),
    ):
        if wrong:
            raise ConfigError(f"own_encoders: {wrong} {what}")
    if study.inflation.encoder and study.inflation.encoder not in study.encoders:
        raise ConfigError(f"inflation.encoder: {study.inflation.encoder!r} is not among encoders {list(study.encoders)}")
    if study.conventions and study.conventions not in study.encoders:
        raise ConfigError(f"conventions: {study.conventions!r} is not among encoders {list(study.encoders)}")
    foreign = [name for name in study.probe_audit if name not in study.encoders]
    if foreign:
        raise ConfigError(f"probe_audit: {foreign} not among encoders {list(study.encoders)}")
    if study.effects.encoder and study.effects.encoder not in study.encoders:
        raise ConfigError(f"effects.encoder: {study.effects.encoder!r} is not among encoders {list(study.encoders)}")
    if study.effects.network and study.effects.network not in [network.name for network in study.networks]:
        raise ConfigError(f"effects.network: {study.effects.network!r} is not among networks")
    unknown = sorted(set(study.effects.switches) - set(Switches.CHOICES))
    if unknown:
        raise ConfigError(f"effects.switches: {unknown[0]!r} is not one of {list(Switches.CHOICES)}")
    twice = sorted({name for name in study.effects.switches if study.effects.switches.count(name) > 1})
    if twice:
        raise ConfigError(f"effects.switches: {twice[0]} is named twice")
    if study.effects.switches and not (study.effects.encoder or study.effects.network):
        raise ConfigError("effects: switches are to be measured, but neither encoder nor network says on what")
    if study.effects.n_folds is not None and not 1 <= study.effects.n_folds <= splits.n_folds:
        raise ConfigError(f"effects.n_folds: {study.effects.n_folds}; the study has {splits.n_folds} folds")
    unknown = sorted(set(study.inflation.schemes) - set(SCHEMES))
    if unknown:
        raise ConfigError(f"inflation.schemes: {unknown[0]!r} is not one of {list(SCHEMES)}")
    if study.stored_px < study.patches.size_px:
        raise ConfigError(f"patches.stored_px: {study.stored_px} is less than patches.size_px {study.patches.size_px}")
    encoders = list(dict.fromkeys([*study.encoders, *pretrained]))
    problems = [problem for network in study.networks for problem in problems_of(network, study)]
    told = [(f"encoders[{own.name}].arguments", own.arguments or {}) for own in study.own_encoders]
    told += [(f"pretraining[{which.name}].arguments", which.arguments) for which in study.pretraining]
    problems += [problem for place, arguments in told for problem in problems_of_arguments(arguments, place)]
    problems += [wrong for name in study.encoders for wrong in problems_of_snapshot(name, study.pretraining, "encoders")]
    architectures = {own.name: own.architecture for own in study.own_encoders} | {n.name: None for n in study.networks}
    for which in study.pretraining:
        problems += problems_of_pretraining(which, architectures, study.pretraining)
        if not (study.source.has_slides or which.slides):
            problems.append(
                f"pretraining[{which.name}].slides: data.source {study.source.name} has patches and no slides; name a folder"
            )
    for task in study.tasks:
        problems += problems_of_task(task, encoders, pretrained)
    for named, what in ((pretrained, "pretraining"), ([task.name for task in study.tasks], "tasks")):
        problems += [f"{what}: {name!r} is there twice" for name in sorted({n for n in named if named.count(n) > 1})]
    _refuse(problems)


def as_dict(config: object) -> dict:
    """A config dataclass as plain data, ready for JSON and for `digest`."""
    return json.loads(json.dumps(dataclasses.asdict(typing.cast(typing.Any, config))))
