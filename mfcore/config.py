"""A study as frozen, checked data: what a YAML file in ``studies/`` may say, and nothing else.

What decides a result is here and enters the hash of the runs it decides. Where and how something runs (folders, device,
workers) is not here: those are parameters of the notebooks.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml


class ConfigError(ValueError):
    """A study says something that it can't say; the message names file, key and remedy."""


@dataclass(frozen=True)
class Switches:
    """In what the released code of Ganz et al. differs from the paper or from good practice, one name for each difference.

    ``strict`` sets none of them, ``paper`` all (facts: the released code at b66c776). A study may flip single ones, so
    that each one's effect can be measured.

    split_by: "slide" keeps a slide's annotations, and a case's slides, on one side of the split; "official" tests the
        slides that the data set's authors set aside, in every fold; "annotation" draws single annotations, so that slides
        stand on both sides; "annotation_buffered" does too, and then trains on no patch that shares a pixel with a test one.
    stratified: draw each class by itself, so that every size has both classes in the data set's proportion.
    epoch: "best" tests the epoch with the lowest validation loss, as the paper says; "last" tests the last epoch, as the
        released code does (its snapshot of the best weights holds references, which training goes on to change).
    resolution: "target" resamples every slide to ``patches.um_per_px``; "native" reads level 0 as scanned.
    """

    split_by: str = "slide"
    stratified: bool = True
    epoch: str = "best"
    resolution: str = "target"

    CHOICES: typing.ClassVar[dict] = {
        "split_by": ("slide", "official", "annotation", "annotation_buffered"),
        "stratified": (True, False),
        "epoch": ("best", "last"),
        "resolution": ("target", "native"),
    }

    @property
    def scheme(self) -> str:
        """The way to split, by its name in SCHEMES; that of an uncommon mix of switches says both."""
        named = {"split_by": self.split_by, "stratified": self.stratified}
        return next((n for n, s in SCHEMES.items() if s == named), f"{self.split_by}_unstratified")


# Ways to split, by name: the strictest first, "released" as the released probe script draws.
SCHEMES = {
    "slide": {"split_by": "slide", "stratified": True},
    "official": {"split_by": "official", "stratified": True},
    "annotation_buffered": {"split_by": "annotation_buffered", "stratified": True},
    "annotation": {"split_by": "annotation", "stratified": True},
    "released": {"split_by": "annotation", "stratified": False},
}

SOURCES = ("synthetic", "midog", "midog22", "midogpp", "ccmct", "amibr", "csv")

MODES = {
    "strict": Switches(),
    "paper": Switches(split_by="annotation", stratified=False, epoch="last", resolution="native"),
}


@dataclass(frozen=True)
class Data:
    """The data set: which loader, which classes.

    source: "synthetic" (made by mfcore), "midog22", "midogpp", "ccmct" (what their authors publish), "amibr" (AMi-Br's
        patches), "midog" (one's own slides, labelled in MIDOG's JSON), "csv" (one's own slides, labelled in a table).
    positive, negative: what class 1 and class 0 are called in tables and figures.
    um_per_px: resolution of slides that don't state their own; None refuses such slides.
    um_per_px_by_scanner: the same, for slides of one scanner; goes before ``um_per_px``.
    label_values: how a table (source "csv") writes class 0 and class 1.
    seed, n_slides, n_annotations: of the synthetic data set only.
    """

    source: str
    positive: str = "mitotic figure"
    negative: str = "look-alike"
    um_per_px: float | None = None
    um_per_px_by_scanner: dict[str, float] = field(default_factory=dict)
    label_values: tuple[str, ...] = ("0", "1")
    seed: int = 1
    n_slides: int = 50
    n_annotations: int = 2000


@dataclass(frozen=True)
class Patches:
    """Patches: ``size_px`` at ``um_per_px`` is what encoders see; ``stored_px`` >= size_px leaves a margin for rotation.

    at_border: where an annotation lies so near its slide's border that those ``size_px`` reach over it: "white" fills
        what is outside with white; "shift" moves the patch inward until they fit. One rule for training and test.
    """

    size_px: int = 224
    um_per_px: float | None = 0.25
    stored_px: int | None = None
    at_border: str = "white"


@dataclass(frozen=True)
class Splits:
    """Monte Carlo folds (Ganz et al., section 3): test share of all, validation share and sizes as shares of the rest."""

    seed: int = 42
    n_folds: int = 5
    sizes: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    test_fraction: float = 0.2
    val_fraction: float = 0.2
    by_domain: bool = True


@dataclass(frozen=True)
class Inflation:
    """What other ways to split would have promised: one encoder's probe, run again under each of ``schemes``.

    encoder: one of the study's encoders; empty for none. schemes: names of SCHEMES.
    """

    encoder: str = ""
    schemes: tuple[str, ...] = ("slide", "annotation_buffered", "annotation", "released")


@dataclass(frozen=True)
class Probe:
    """UNI's linear probe: cost None means D * K / 100."""

    cost: float | None = None
    max_iter: int = 1000


@dataclass(frozen=True)
class Network:
    """A network trained end to end, and how.

    name: what tables and figures call the arm. architecture: an encoder's name, built with one logit.
    input_px: side of the central crop that the network sees, in px of the stored patch.
    patches_per_epoch: patches drawn with replacement each epoch, uniform over slides, then over the two classes; None
        means every training patch once. max_lr: peak of the one-cycle schedule.
    shift_px: largest random shift of the crop. rotation: any angle; the stored patch must be wide enough for it.
    """

    name: str
    architecture: str = "resnet50"
    input_px: int = 224
    n_epochs: int = 100
    patches_per_epoch: int | None = 1280
    batch_size: int = 16
    max_lr: float = 1e-4
    shift_px: int = 0
    colour_jitter: float = 0.1
    colour_probability: float = 0.5
    blur_probability: float = 0.1
    rotation_probability: float = 0.5
    pretrained: bool = True

    @property
    def needed_px(self) -> int:
        """Side of the stored patch, in px, from which any rotation and shift of the crop has no corner without image."""
        return (
            math.ceil(math.sqrt(2) * self.input_px) + 2 * self.shift_px
            if self.rotation_probability
            else self.input_px + 2 * self.shift_px
        )


@dataclass(frozen=True)
class Study:
    """One study: everything that decides its numbers. Made by `load_study`.

    conventions: one of ``encoders`` that is also embedded and probed as other libraries do it (`mfcore.conventions`).
    probe_audit: those of ``encoders`` that are also probed by other published estimators (`mfcore.probe_audit`).
    """

    name: str
    title: str
    data: Data
    patches: Patches = field(default_factory=Patches)
    splits: Splits = field(default_factory=Splits)
    mode: str = "strict"
    switches: Switches = field(default_factory=Switches)
    encoders: tuple[str, ...] = ()
    probe: Probe = field(default_factory=Probe)
    inflation: Inflation = field(default_factory=Inflation)
    conventions: str = ""
    probe_audit: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether the data are made, not measured; every figure then says "synthetic"."""
        return self.data.source == "synthetic"

    @property
    def stored_px(self) -> int:
        """Side in px of the patches as stored: as asked, or wide enough for every network's rotations."""
        return self.patches.stored_px or max([self.patches.size_px, *(network.needed_px for network in self.networks)])

    def network(self, name: str) -> Network:
        """The end-to-end arm called ``name``; raises ConfigError with the names there are."""
        for network in self.networks:
            if network.name == name:
                return network
        raise ConfigError(f"study {self.name!r} has no network {name!r}; it has {[n.name for n in self.networks]}")


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises ConfigError, naming the file and the key, for a missing file, an unknown key (with the nearest known one), a
    value of the wrong type, or values that contradict one another.
    """
    path = Path(path)
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise ConfigError(f"{path}: no such study file; studies beside it: {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
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
        study = _build(Study, content, "")
        _check(study)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return study


def _build(cls: type, content: object, where: str) -> typing.Any:
    """Build the dataclass ``cls`` from plain data, refusing unknown keys and wrong types."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where.rstrip('.') or 'study'}: expected a mapping, got {content!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in content:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {where}{near[0]!s}?" if near else f"known keys: {sorted(fields)}"
            raise ConfigError(f"unknown key {where}{key}; {hint}")
    hints = typing.get_type_hints(cls)
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise ConfigError(f"key {where}{name} is missing")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in content.items()})


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
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return {key: _convert(arguments[1], item, f"{where}[{key}]") for key, item in value.items()}
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
    if len(set(study.data.label_values)) != 2 or len(study.data.label_values) != 2:
        raise ConfigError(f"data.label_values: {list(study.data.label_values)}; expected how class 0 and class 1 are written")
    if study.patches.um_per_px is None and study.switches.resolution == "target" and study.data.source != "amibr":
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
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"an arm is named twice: {twice}; a network's name must differ from every encoder's, say {twice[0]}_224px"
        )
    if study.inflation.encoder and study.inflation.encoder not in study.encoders:
        raise ConfigError(f"inflation.encoder: {study.inflation.encoder!r} is not among encoders {list(study.encoders)}")
    if study.conventions and study.conventions not in study.encoders:
        raise ConfigError(f"conventions: {study.conventions!r} is not among encoders {list(study.encoders)}")
    foreign = [name for name in study.probe_audit if name not in study.encoders]
    if foreign:
        raise ConfigError(f"probe_audit: {foreign} not among encoders {list(study.encoders)}")
    unknown = sorted(set(study.inflation.schemes) - set(SCHEMES))
    if unknown:
        raise ConfigError(f"inflation.schemes: {unknown[0]!r} is not one of {list(SCHEMES)}")
    if study.stored_px < study.patches.size_px:
        raise ConfigError(f"patches.stored_px: {study.stored_px} is less than patches.size_px {study.patches.size_px}")
    for network in study.networks:
        for key in ("input_px", "n_epochs", "batch_size", "max_lr"):
            if getattr(network, key) <= 0:
                raise ConfigError(f"networks[{network.name}].{key}: {getattr(network, key)} must be positive")
        if network.needed_px > study.stored_px:
            raise ConfigError(
                f"networks[{network.name}]: rotating and shifting a crop of {network.input_px} px needs stored patches of "
                f"{network.needed_px} px, these have {study.stored_px}; lower input_px or shift_px, or raise patches.stored_px"
            )


def as_dict(config: object) -> dict:
    """A config dataclass as plain data, ready for JSON and for `digest`."""
    return json.loads(json.dumps(dataclasses.asdict(typing.cast(typing.Any, config))))


def digest(content: object) -> str:
    """Eight hex digits that stand for ``content`` (plain data), the same on every machine."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
