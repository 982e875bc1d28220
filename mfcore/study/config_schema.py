"""What a study may say: frozen data with their defaults and meaning."""

import typing
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from mfcore.data.labels.source import SOURCES, Source
from mfcore.data.options import SCHEMES, Data, Patches, Splits
from mfcore.encoders.catalogue import OwnEncoder
from mfcore.pretraining.method import Pretraining
from mfcore.store.options import (
    ConfigError,
    Count,
    Distinct,
    Flag,
    PositiveShare,
    UmPerPx,
    Whole,
    among,
    options,
)
from mfcore.tasks.protocol import TaskOptions
from mfcore.training.options import Network, Probe


@options
class Switches:
    """Where the released code of Ganz et al. differs from the paper or from good practice.

    ``strict`` sets no switch as released, ``paper`` all (facts: the released code at b66c776). A
    study may flip single ones, so that each one's effect can be measured.

    split_by: "slide" keeps a slide's annotations, and a case's slides, on one side of the split;
        "official" tests the slides that the data set's authors set aside, in every fold;
        "annotation" draws single annotations, so that slides stand on both sides;
        "annotation_buffered" does too, and then trains on no patch that shares a pixel with a test
        patch.
    stratified: draw each class by itself, so that every size has both classes in the data set's
        proportion.
    epoch: "best" tests the epoch with the lowest validation loss, as the paper says; "last" tests
        the last epoch, as the released code does (its snapshot of the best weights holds
        references, which training goes on to change).
    resolution: "target" resamples every slide to ``patches.um_per_px``; "native" reads level 0 as
        scanned.
    border: "said" fills what lies outside a slide as ``patches.at_border`` says; "black" with
        black, as the released code's test does.
    training_label: "annotation" trains on each annotation's own label; "window" calls a patch
        positive where the centre of any positive annotation lies inside what the network sees.
    validation: "centre" validates on the centre crops of the validation patches; "drawn" on as many
        that are drawn once as training draws them, shifted and labelled as in training.
    clipping: "after_backward" clips gradients to a network's ``clip_norm``; "before_backward" where
        there is nothing to clip yet, which does nothing.
    sampler: "annotations" draws every training patch around an annotation; "released" draws a
        random place of the slide instead where a slide has no patch of the negative class and one
        is to be drawn, as the released code does.
    augmentation: "as_said" turns a crop inside the wider stored patch, so that it has no corner
        without image; "released" turns the crop itself, after all else, by nearest neighbour and
        with black corners, and blurs by narrower kernels.
    shared_splits: networks and probes learn from and are tested on the same folds; else networks
        have folds of their own, which the released training scripts' generator draws where
        ``split_by`` and ``stratified`` are as released, too.
    encoder_input: "card" embeds as an encoder's authors do; "released" as the released code does
        (Virchow2's register tokens in its mean, Prov-GigaPath's patches resized to 224 px, ViT-H
        normalised by 0.5 in the probe alone and resized there bilinearly).
    """

    split_by: Literal["slide", "official", "annotation", "annotation_buffered"] = "slide"
    stratified: Flag = True
    epoch: Literal["best", "last"] = "best"
    resolution: Literal["target", "native"] = "target"
    border: Literal["said", "black"] = "said"
    training_label: Literal["annotation", "window"] = "annotation"
    validation: Literal["centre", "drawn"] = "centre"
    clipping: Literal["after_backward", "before_backward"] = "after_backward"
    sampler: Literal["annotations", "released"] = "annotations"
    augmentation: Literal["as_said", "released"] = "as_said"
    shared_splits: Flag = True
    encoder_input: Literal["card", "released"] = "card"

    CHOICES: typing.ClassVar[dict[str, tuple]]  # the values of each switch, strict mode's first

    @property
    def scheme(self) -> str:
        """The way to split, by its name in SCHEMES; an uncommon mix has a name that says both."""
        mix = {"split_by": self.split_by, "stratified": self.stratified}
        names = (name for name, switches in SCHEMES.items() if switches == mix)
        return next(names, f"{self.split_by}_unstratified")


Switches.CHOICES = {
    name: typing.get_args(hint) or (True, False)
    for name, hint in typing.get_type_hints(Switches).items()
    if name != "CHOICES"
}

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


@options
class Inflation:
    """What other ways to split would have promised: one encoder's probe, under each of ``schemes``.

    encoder: one of the study's encoders; empty for none. schemes: names of SCHEMES.
    """

    encoder: str = ""
    schemes: tuple[Annotated[str, among(SCHEMES)], ...] = (
        "slide",
        "annotation_buffered",
        "annotation",
        "released",
    )


@options
class Effects:
    """What each switch is worth: one probe and one network, with that switch alone as released.

    Both at the full size. encoder, network: one of the study's each, or empty for none. switches:
    names of Switches; empty for no table at all. n_folds: how many of the study's; None for all.
    """

    encoder: str = ""
    network: str = ""
    switches: Annotated[tuple[Annotated[str, among(Switches.CHOICES)], ...], Distinct] = ()
    n_folds: Count | None = None


Sides = Annotated[
    tuple[Annotated[Whole, Field(ge=8)], ...], Field(min_length=1), Distinct
]  # of patches, in px


@options
class Resolution:
    """Patches of one resolution, for `Scales`.

    size_px: their sides; a patch shows ``size_px * um_per_px`` um of tissue. network_px: those of
    the sides that the network is trained at, as its ``input_px``; None: all.
    """

    um_per_px: UmPerPx
    size_px: Sides
    network_px: Annotated[tuple[Whole, ...], Distinct] | None = None


@options
class Scales:
    """What the field of view and the resolution are worth: the same annotations cut in other ways.

    encoders: those of the study's that are probed at every scale. network: one that is trained;
    empty for none. patches: the scales. sizes: which of the study's sizes; None: the largest alone.
    n_folds: how many of the study's; None for all.
    """

    encoders: Annotated[tuple[str, ...], Distinct] = ()
    network: str = ""
    patches: tuple[Resolution, ...] = ()
    sizes: Annotated[tuple[PositiveShare, ...], Field(min_length=1), Distinct] | None = None
    n_folds: Count | None = None


@options
class Settings:
    """One study: everything that decides its numbers. Made by `load_study`.

    encoders: their names. own_encoders: those that the study describes itself (in a file, entries
        of ``encoders`` that are mappings).
    conventions: one of ``encoders`` that is also embedded and probed as other libraries do it
        (`mfcore.encoders.card`).
    probe_audit: those of ``encoders`` that are also probed by other published estimators
        (`mfcore.training.estimators`).
    effects: which switches' effects are measured, on which arms.
    scales: at which fields of view and resolutions which arms are measured besides.
    pretraining: encoders that the study pretrains from slides; those that ``encoders`` lists are
        benchmarked like any other. In a file, ``n_seeds: 3`` repeats an entry from other seeds, as
        NAME_seed1 and NAME_seed2.
    tasks: downstream tasks by which encoders are judged besides.
    test_on: other study files, on all of whose patches every arm is also tested; a relative path
        starts from the folder of the study file.
    shared: cases and pixels that such a set has in common with the study are refused, or dropped.
    """

    name: str
    title: str
    data: Data
    patches: Patches = Patches()
    splits: Splits = Splits()
    mode: Literal["strict", "paper"] = "strict"
    switches: Switches = Switches()
    encoders: tuple[str, ...] = ()
    own_encoders: Annotated[tuple[OwnEncoder, ...], Distinct] = ()
    probe: Probe = Probe()
    inflation: Inflation = Inflation()
    conventions: str = ""
    probe_audit: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    effects: Effects = Effects()
    scales: Scales = Scales()
    pretraining: Annotated[tuple[Pretraining, ...], Distinct] = ()
    tasks: Annotated[tuple[TaskOptions, ...], Distinct] = ()
    test_on: tuple[str, ...] = ()
    shared: Literal["refuse", "drop"] = "refuse"

    @property
    def source(self) -> Source:
        """What is known of the data source."""
        return SOURCES[self.data.source]

    @property
    def synthetic(self) -> bool:
        """Whether the data are made, not measured; every figure then says "synthetic"."""
        return self.source.is_synthetic

    @property
    def caveat(self) -> str:
        """Why the numbers say nothing of tumours, or of the whole data set; empty where they do."""
        n = len(self.data.slides)
        chosen = f"{n} chosen slide{'s' * (n > 1)}" * bool(n)
        return ", ".join(filter(None, ["synthetic data" * self.synthetic, chosen]))

    @property
    def switched(self) -> str:
        """The switches that differ from the mode, as "split_by: annotation, stratified: false"."""
        usual = vars(MODES[self.mode])
        differing = [item for item in vars(self.switches).items() if item not in usual.items()]
        return ", ".join(f"{name}: {str(value).lower()}" for name, value in differing)

    @property
    def mode_title(self) -> str:
        """The mode and what is switched, as "strict mode, but split_by: annotation"."""
        return f"{self.mode} mode" + (f", but {self.switched}" if self.switched else "")

    @property
    def of_what(self) -> str:
        """The data: study, what limits them, and how the study departs from its mode."""
        study = f"study `{self.name}`" + f", {self.caveat}" * bool(self.caveat)
        return study + f", {self.mode_title}" * bool(self.switched)

    @property
    def in_full(self) -> str:
        """What the numbers were measured on, and in which mode."""
        return self.of_what + f", {self.mode_title}" * (not self.switched)

    @property
    def stored_px(self) -> int:
        """Side in px of the patches as stored: as said, or enough for every network's rotations."""
        needed = [self.patches.size_px, *(network.needed_px for network in self.networks)]
        return self.patches.stored_px or max(needed)

    def side_at(self, um_per_px: float) -> int:
        """Side in px of the stored patches where they are resampled to ``um_per_px``."""
        return int(self.stored_px * self.patches.um_per_px / um_per_px + 1e-6)

    def narrowed(
        self,
        encoders: tuple[str, ...],
        network: str,
        n_folds: int | None,
        sizes: tuple[float, ...] | None = None,
    ) -> "Settings":
        """The study on some of its arms and folds (None: all) alone, without single domains.

        network: empty for none. sizes: None for the largest alone.
        """
        sizes = sizes or (max(self.splits.sizes),)
        n_folds, without = n_folds or self.splits.n_folds, {"sizes": sizes, "by_domain": False}
        networks = [replace(one, **without) for one in self.networks if one.name == network]
        splits = replace(self.splits, **without, n_folds=n_folds)
        return replace(self, encoders=encoders, networks=tuple(networks), splits=splits)

    def released_in_training(self, network: Network) -> dict[str, str]:
        """Those of ``sampler`` and ``augmentation`` that are as released and change a training.

        Patches that come as images have no slide to draw a place of; a network that is shown every
        patch once draws none.
        """
        draws = network.patches_per_epoch is not None and self.source.has_slides
        turns = bool(network.blur_probability or network.rotation_probability)
        changed = {"sampler": draws, "augmentation": turns}
        switches = vars(self.switches)
        return {key: "released" for key in changed if changed[key] and switches[key] == "released"}

    def network(self, name: str) -> Network:
        """The end-to-end arm called ``name``; raises ConfigError with the names there are."""
        return self._named(self.networks, name, "has no network")

    def pretraining_of(self, name: str) -> Pretraining:
        """The pretraining of the encoder ``name``; raises ConfigError with the names there are."""
        return self._named(self.pretraining, name, "pretrains no encoder")

    def task(self, name: str) -> TaskOptions:
        """The task called ``name``; raises ConfigError with the names there are."""
        return self._named(self.tasks, name, "has no task")

    def _named(self, entries: tuple[Any, ...], name: str, lacks: str) -> Any:
        by_name = {entry.name: entry for entry in entries}
        if name not in by_name:
            raise ConfigError(f"study {self.name!r} {lacks} {name!r}; it has {list(by_name)}")
        return by_name[name]
