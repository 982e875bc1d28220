"""What a study may say: frozen data with their defaults and meaning."""

import math
import typing
from dataclasses import dataclass, field
from pathlib import Path


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

WEIGHTS_FILES = (".safetensors", ".onnx", ".pth", ".pt", ".bin", ".ckpt")

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
class OwnEncoder:
    """An encoder that the study itself describes: a new one, or a known one under other conventions.

    name: what it is called here. weights: OWNER/REPOSITORY[@REVISION] on the hub, "random", or a file of tensors under
    timm's names or a folder with one; a path that isn't whole is from the study file. like: a known encoder; what is said
    besides goes before its card. The other keys are those of the encoders' cards (`mfcore.cards_schema`); a new encoder
    needs architecture, mean and std, and takes its dimension and the like from the architecture.
    """

    name: str
    like: str = ""
    weights: str = ""
    architecture: str | None = None
    arguments: dict[str, object] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize_px: int | None = None
    crop_px: int | None = None
    interpolation: str | None = None
    readout: str | None = None
    n_prefix_tokens: int | None = None
    n_dims: int | None = None
    n_parameters: int | None = None
    um_per_px: tuple[float, ...] | None = None
    evidence: str | None = None
    precision: str | None = None
    licence: str | None = None
    gated: bool | None = None
    facts: str | None = None
    departs: str | None = None
    source: str | None = None
    files: tuple[str, ...] | None = None
    sha256: str | None = None

    @property
    def weights_path(self) -> Path | None:
        """What ``weights`` names if it is a file or folder, by its beginning or its ending."""
        is_path = self.weights.startswith(("/", "./", "../", "~")) or self.weights.endswith(WEIGHTS_FILES)
        return Path(self.weights).expanduser() if is_path else None


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

    encoders: their names. own_encoders: those of them that the study describes itself (in a file, entries of ``encoders``
        that are mappings).
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
    own_encoders: tuple[OwnEncoder, ...] = ()
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
