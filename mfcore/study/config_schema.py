"""What a study may say: frozen data with their defaults and meaning."""

import math
import typing
from dataclasses import dataclass, field
from pathlib import Path

from mfcore.study.config_pretraining import Pretraining, Task


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
    border: "said" fills what lies outside a slide as ``patches.at_border`` says; "black" with black, as the released code's
        test does.
    training_label: "annotation" trains on each annotation's own label; "window" calls a patch positive where the centre of
        any positive annotation lies inside what the network sees of it.
    validation: "centre" validates on the centre crops of the validation patches; "drawn" on as many that are drawn once as
        training draws them, shifted and labelled as in training.
    clipping: "after_backward" clips gradients to a network's ``clip_norm``; "before_backward" where there is nothing to clip
        yet, which does nothing.
    sampler: "annotations" draws every training patch around an annotation; "released" draws a random place of the slide
        instead where a slide has no patch of the negative class and one is to be drawn, as the released code does.
    augmentation: "as_said" turns a crop inside the wider stored patch, so that it has no corner without image; "released"
        turns the crop itself, after all else, by nearest neighbour and with black corners, and blurs by narrower kernels.
    shared_splits: networks and probes learn from and are tested on the same folds; else networks have folds of their own,
        which the released training scripts' generator draws where ``split_by`` and ``stratified`` are as released, too.
    encoder_input: "card" embeds as an encoder's authors do; "released" as the released code does (Virchow2's register
        tokens in its mean, Prov-GigaPath's patches resized to 224 px, ViT-H normalised by 0.5 in the probe alone and resized
        there bilinearly).
    """

    split_by: str = "slide"
    stratified: bool = True
    epoch: str = "best"
    resolution: str = "target"
    border: str = "said"
    training_label: str = "annotation"
    validation: str = "centre"
    clipping: str = "after_backward"
    sampler: str = "annotations"
    augmentation: str = "as_said"
    shared_splits: bool = True
    encoder_input: str = "card"

    CHOICES: typing.ClassVar[dict] = {
        "split_by": ("slide", "official", "annotation", "annotation_buffered"),
        "stratified": (True, False),
        "epoch": ("best", "last"),
        "resolution": ("target", "native"),
        "border": ("said", "black"),
        "training_label": ("annotation", "window"),
        "validation": ("centre", "drawn"),
        "clipping": ("after_backward", "before_backward"),
        "sampler": ("annotations", "released"),
        "augmentation": ("as_said", "released"),
        "shared_splits": (True, False),
        "encoder_input": ("card", "released"),
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

ORIGINS = ("slide", "scanned_area")

MODES = {
    "strict": Switches(),
    "paper": Switches(
        split_by="annotation",
        stratified=False,
        epoch="last",
        resolution="native",
        border="black",
        training_label="window",
        validation="drawn",
        clipping="before_backward",
        sampler="released",
        augmentation="released",
        shared_splits=False,
        encoder_input="released",
    ),
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
    origin: where labels count px from: "slide", OpenSlide's corner of level 0; "scanned_area", the corner of what was scanned
        (``openslide.bounds-x``, ``-y``), as QuPath counts on MRXS and SCN. None counts as "slide", and warns where they differ.
    seed, n_slides, n_annotations: of the synthetic data set only.
    """

    source: str
    positive: str = "mitotic figure"
    negative: str = "look-alike"
    um_per_px: float | None = None
    um_per_px_by_scanner: dict[str, float] = field(default_factory=dict)
    label_values: tuple[str, ...] = ("0", "1")
    origin: str | None = None
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
    besides goes before its card. The other keys are those of the encoders' cards (`mfcore.encoders.card`); a new
    encoder needs architecture, mean and std, and takes its dimension and the like from the architecture.
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
    learnt_from: str | None = None
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
class Effects:
    """What each switch is worth: one probe and one network, at the full size, with that switch alone set as released.

    encoder, network: one of the study's each, or empty for none. switches: names of Switches; empty for no table at all.
    n_folds: how many of the study's folds; None for all.
    """

    encoder: str = ""
    network: str = ""
    switches: tuple[str, ...] = ()
    n_folds: int | None = None


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021) of a frozen transformer: what is trained beside its head.

    Defaults: Ammeling et al. 2025, as released. targets: ends of the names of the layers that get a pair of matrices.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Network:
    """A network trained end to end, or by LoRA, and how.

    name: what tables and figures call the arm. architecture: an encoder's name, built with one logit.
    input_px: side of the central crop that the network sees, in px of the stored patch.
    patches_per_epoch: patches drawn with replacement each epoch, uniform over slides, then over the two classes; None
        means every training patch once. max_lr: peak of the one-cycle schedule.
    shift_px: largest random shift of the crop. rotation: any angle; the stored patch must be wide enough for it.
    lora: train only low-rank matrices and the head; None trains every weight.
    accumulate: batches whose gradients are added up for one step. clip_norm: largest norm of a step's gradient; None: any.
    patience: epochs without a lower validation loss after which training ends; None: all of ``n_epochs``.
    sizes, by_domain: at which of the study's sizes it is trained (None: all), and whether on single domains too.
    """

    name: str
    architecture: str = "resnet50"
    lora: Lora | None = None
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
    accumulate: int = 1
    clip_norm: float | None = None
    patience: int | None = None
    sizes: tuple[float, ...] | None = None
    by_domain: bool = True

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
    conventions: one of ``encoders`` that is also embedded and probed as other libraries do it (`mfcore.encoders.card`).
    probe_audit: those of ``encoders`` that are also probed by other published estimators (`mfcore.training.probe_audit`).
    effects: which switches' effects are measured, on which arms.
    pretraining: encoders that the study pretrains from slides; those that ``encoders`` lists are benchmarked like any other.
    tasks: downstream tasks by which encoders are judged besides.
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
    effects: Effects = field(default_factory=Effects)
    pretraining: tuple[Pretraining, ...] = ()
    tasks: tuple[Task, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether the data are made, not measured; every figure then says "synthetic"."""
        return self.data.source == "synthetic"

    @property
    def switched(self) -> str:
        """What the study does otherwise than its mode, as "split_by: annotation, stratified: false"; empty where nothing."""
        usual = MODES[self.mode]
        other = [name for name in Switches.CHOICES if getattr(self.switches, name) != getattr(usual, name)]
        values = {name: getattr(self.switches, name) for name in other}
        return ", ".join(f"{name}: {str(v).lower() if isinstance(v, bool) else v}" for name, v in values.items())

    @property
    def mode_title(self) -> str:
        """The mode and what is switched, as "strict mode" or "strict mode, but split_by: annotation"."""
        return f"{self.mode} mode, but {self.switched}" if self.switched else f"{self.mode} mode"

    @property
    def stored_px(self) -> int:
        """Side in px of the patches as stored: as asked, or wide enough for every network's rotations."""
        return self.patches.stored_px or max([self.patches.size_px, *(network.needed_px for network in self.networks)])

    def released_in_training(self, network: Network) -> dict[str, str]:
        """Those of ``sampler`` and ``augmentation`` that are as released and change how ``network`` is trained.

        Patches that come as images have no slide to draw a place of; a network that is shown every patch once draws none.
        """
        can_change = {
            "sampler": network.patches_per_epoch is not None and self.data.source != "amibr",
            "augmentation": bool(network.blur_probability or network.rotation_probability),
        }
        return {name: "released" for name, can in can_change.items() if can and getattr(self.switches, name) == "released"}

    def network(self, name: str) -> Network:
        """The end-to-end arm called ``name``; raises ConfigError with the names there are."""
        for network in self.networks:
            if network.name == name:
                return network
        raise ConfigError(f"study {self.name!r} has no network {name!r}; it has {[n.name for n in self.networks]}")

    def pretrained(self, name: str) -> Pretraining:
        """The pretraining of the encoder ``name``; raises ConfigError with the names there are."""
        for which in self.pretraining:
            if which.name == name:
                return which
        raise ConfigError(f"study {self.name!r} pretrains no encoder {name!r}; it has {[p.name for p in self.pretraining]}")

    def task(self, name: str) -> Task:
        """The task called ``name``; raises ConfigError with the names there are."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(f"study {self.name!r} has no task {name!r}; it has {[task.name for task in self.tasks]}")
