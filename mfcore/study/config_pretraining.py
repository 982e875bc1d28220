"""What a study may say of encoders that it pretrains itself (kaiko 2024), and of the tasks by which they are judged."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

METHODS = {"dino": "DINO", "dinov2": "DINOv2"}  # and what texts call them
TASKS = ("bach", "crc", "mhist", "pcam", "pcam_10shot", "consep", "monusac", "synthetic_tissue", "synthetic_nuclei")
SEGMENTATION = ("consep", "monusac", "synthetic_nuclei")  # the others classify patches
MAX_PATCH_PX = 4096


@dataclass(frozen=True)
class OnlinePatches:
    """Patches drawn from slides while a network learns; none is stored (kaiko 2024, Online Patching).

    size_px: side of a patch. um_per_px: resolutions, each drawn as often as it stands here. min_tissue: least share of tissue
    in a patch. uniform_over: "tissue" draws positions uniform over the slides' tissue area, "slides" draws a slide first.
    slide_fraction: share of the slides that patches are drawn from; of two shares the smaller's slides are among the larger's.
    n_distinct: so many patches are drawn, and then drawn from; None: every patch is new.
    """

    size_px: int = 256
    um_per_px: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    min_tissue: float = 0.4
    uniform_over: str = "tissue"
    slide_fraction: float = 1.0
    n_distinct: int | None = None


@dataclass(frozen=True)
class Crops:
    """Multi-crop: two global crops and ``n_local`` local ones of a patch, their sides in px, their scales shares of its area.

    None: as the method's authors have it, see `in_full`.
    """

    global_px: int = 224
    local_px: int = 96
    n_local: int = 8
    global_scale: tuple[float, ...] | None = None
    local_scale: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Pretraining:
    """An encoder that the study pretrains without labels, by DINO (Caron et al. 2021) or DINOv2 (Oquab et al. 2023).

    name: the encoder's, by which ``encoders`` may list it. architecture, arguments: timm's ViT. start: "random", or an
    encoder with the same architecture whose weights it starts from. slides: a folder of slides, from the data folder where it
    isn't whole (links to folders are followed), or an address that fsspec lists; empty for the study's own.
    n_steps, batch_size: steps of so many patches, over all processes. Lengths of warm-ups, and ``n_frozen_last``, the steps in
    which the head's last layer stays as drawn, are shares of n_steps. base_lr: scaled to the batch as ``method`` has it.
    teacher_temperature: from the first value to the second during its warm-up. momentum: the teacher's at first; it ends at 1.
    n_snapshots: encoders kept on the way, evenly, the last one included. Fields that are None: see `in_full`.
    """

    name: str
    method: str = "dino"
    architecture: str = "vit_small_patch16_224"
    arguments: dict[str, object] = field(default_factory=dict)
    start: str = "random"
    slides: str = ""
    patches: OnlinePatches = field(default_factory=OnlinePatches)
    crops: Crops = field(default_factory=Crops)
    n_steps: int = 125_000
    batch_size: int = 256
    seed: int = 0
    base_lr: float | None = None
    final_lr: float | None = None
    warmup: float | None = None
    weight_decay: tuple[float, ...] | None = None
    clip_norm: float | None = None
    momentum: float | None = None
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, ...] | None = None
    temperature_warmup: float | None = None
    n_frozen_last: float | None = None
    layer_decay: float | None = None
    drop_path: float | None = None
    centring: str | None = None
    n_prototypes: int | None = None
    head_hidden: int = 2048
    head_bottleneck: int = 256
    mask_probability: float = 0.5
    mask_ratio: tuple[float, ...] = (0.1, 0.5)
    ibot_weight: float | None = None
    koleo_weight: float | None = None
    n_snapshots: int = 1


LAYER_SCALE = {"dinov2": 1e-5}  # of every block at first: the authors' configuration
MASK_TOKEN_SD = {"dino": 0.02, "dinov2": 0.0}  # of the mask token as drawn; DINOv2's authors begin with zeros

# Facts of the two papers and of their authors' configurations; lengths are shares of a training of 100 epochs.
PUBLISHED = {
    "dino": {
        "base_lr": 0.0005,  # times batch / 256
        "final_lr": 1e-6,
        "warmup": 0.1,
        "weight_decay": (0.04, 0.4),
        "clip_norm": 3.0,
        "momentum": 0.996,
        "teacher_temperature": (0.04, 0.07),
        "temperature_warmup": 0.3,
        "n_frozen_last": 0.01,
        "layer_decay": 1.0,
        "drop_path": 0.1,
        "centring": "mean",
        "ibot_weight": 0.0,
        "koleo_weight": 0.0,
        "n_prototypes": 65_536,
        "global_scale": (0.4, 1.0),
        "local_scale": (0.05, 0.4),
    },
    "dinov2": {
        "base_lr": 0.004,  # times sqrt(batch / 1024)
        "final_lr": 1e-6,
        "warmup": 0.1,
        "weight_decay": (0.04, 0.4),
        "clip_norm": 3.0,
        "momentum": 0.992,
        "teacher_temperature": (0.04, 0.07),
        "temperature_warmup": 0.3,
        "n_frozen_last": 0.01,
        "layer_decay": 0.9,
        "drop_path": 0.3,
        "centring": "sinkhorn_knopp",
        "ibot_weight": 1.0,
        "koleo_weight": 0.1,
        "n_prototypes": 65_536,
        "global_scale": (0.32, 1.0),
        "local_scale": (0.05, 0.32),
    },
}


# Patches. kaiko 2024 pretrained so (appendix B). DINO's authors, whose own are of 1,024, went down to 128, without local crops
# (Caron et al. 2021, table 9), and name a trial of 8 of which much less came.
PUBLISHED_BATCH = 256
# A tenth of DINOv2's hundred epochs of 1,250 steps (DINO's have as many); of shorter trainings nothing published is known here.
PUBLISHED_STEPS = 12_500
# Of smaller trainings, in batches or in steps, ours: with the published ones the teacher's targets were the same for all images
# in trials of one small ViT, batches of 64 and of 256; the temperature did most, as DINO's authors advise users of their code.
SMALL = {"teacher_temperature": (0.02, 0.02), "centring": "sinkhorn_knopp", "koleo_weight": 0.1}


def defaults(pretraining: Pretraining) -> dict[str, object]:
    """By field, what a pretraining has where it says nothing: the method's authors' choice, of small trainings ours.

    Those of less than PUBLISHED_BATCH patches or PUBLISHED_STEPS steps have SMALL; the former also have as many prototypes as
    targets, two a patch, while the latter keep the published head, so that a trial takes the memory of the training after it.
    """
    said = PUBLISHED[pretraining.method]
    if pretraining.batch_size < PUBLISHED_BATCH:
        return {**said, **SMALL, "n_prototypes": max(2, 2 * pretraining.batch_size)}
    return {**said, **SMALL} if pretraining.n_steps < PUBLISHED_STEPS else said


def in_full(pretraining: Pretraining) -> Pretraining:
    """The same with every field that is None as `defaults` has it."""
    unsaid = defaults(pretraining)
    crops = {key: unsaid[key] for key in ("global_scale", "local_scale") if getattr(pretraining.crops, key) is None}
    own = {key: value for key, value in unsaid.items() if getattr(pretraining, key, value) is None}
    return dataclasses.replace(pretraining, **own, crops=dataclasses.replace(pretraining.crops, **crops))


@dataclass(frozen=True)
class Task:
    """A downstream task and how encoders are judged by it: eva's protocol for its kind.

    name: one of TASKS. encoders: which; empty for the study's and all that it pretrains. snapshots: judge those too.
    n_runs: heads trained from other seeds; None: 5, of pcam_10shot 50. n_steps, batch_size, max_lr: of the head; None as eva
    has it for the task's kind. size_px: side to which patches are resized before the encoder's own transform; None: as it
    has it. n_per_class: of the training split, drawn anew each run (few-shot); None: all, but for pcam_10shot's 10.
    """

    name: str
    encoders: tuple[str, ...] = ()
    snapshots: bool = False
    n_runs: int | None = None
    n_steps: int | None = None
    batch_size: int | None = None
    max_lr: float | None = None
    size_px: int | None = None
    n_per_class: int | None = None


def steps_of(which: Pretraining) -> list[int]:
    """After which steps a snapshot is kept, evenly spread; the last is ``n_steps``."""
    return [which.n_steps * (i + 1) // which.n_snapshots for i in range(which.n_snapshots)]


def in_order(all_of_them: Sequence[Pretraining]) -> list[str]:
    """Their names, each after the one that it starts from, else as they stand; those of a circle are left out."""
    waiting, found = list(all_of_them), []
    names = {which.name for which in waiting}
    while ready := [which for which in waiting if (start := which.start.partition("@")[0]) in found or start not in names]:
        found += [which.name for which in ready]
        waiting = [which for which in waiting if which not in ready]
    return found


def problems_of_pretraining(
    which: Pretraining, described: Mapping[str, str | None], others: Sequence[Pretraining] = ()
) -> list[str]:
    """All that is wrong with one pretraining, each with its key and what it may be.

    described: the other encoders and networks that the study describes, with their architectures where it says them.
    others: all that the study pretrains, of which it may start from one.
    """
    place, wrong = f"pretraining[{which.name}]", []
    if which.method not in METHODS:
        wrong.append(f"{place}.method: {which.method!r} is not one of {list(METHODS)}")
        which = dataclasses.replace(which, method=Pretraining.method)  # by which the rest is looked at
    if which.name in described:
        wrong.append(f"{place}.name: the study has an encoder or a network of that name already; call it otherwise")
    whole = in_full(which)
    if not which.name.strip() or which.name == "random" or any(sign in which.name for sign in ":@/"):
        wrong.append(f"{place}.name: {which.name!r}: an encoder's name has no ':', '@' or '/', and isn't 'random'")
    for key in (
        "n_steps",
        "batch_size",
        "n_prototypes",
        "head_hidden",
        "head_bottleneck",
        "base_lr",
        "clip_norm",
        "student_temperature",
        "n_snapshots",
    ):
        if not 0 < getattr(whole, key) < math.inf:
            wrong.append(f"{place}.{key}: {getattr(whole, key)} must be a number above 0")
    if whole.n_prototypes == 1:
        wrong.append(f"{place}.n_prototypes: 1 must be 2 or more: targets over one say nothing")
    if which.batch_size == 1 and whole.koleo_weight:
        wrong.append(f"{place}.batch_size: KoLeo needs neighbours; 2 or more, or koleo_weight: 0")
    for key in ("warmup", "temperature_warmup", "n_frozen_last", "drop_path", "mask_probability", "momentum"):
        if not 0 <= getattr(whole, key) <= 1:
            wrong.append(f"{place}.{key}: {getattr(whole, key)} must lie in [0, 1]")
    if not 0 < whole.layer_decay <= 1:
        wrong.append(f"{place}.layer_decay: {whole.layer_decay} must lie in (0, 1]")
    for key in ("final_lr", "ibot_weight", "koleo_weight"):
        if not 0 <= getattr(whole, key) < math.inf:
            wrong.append(f"{place}.{key}: {getattr(whole, key)} must be 0 or more")
    pairs = {"weight_decay": (0.0, "of 0 or more"), "teacher_temperature": (1e-9, "above 0")}
    for key, (least, what) in pairs.items():
        value = getattr(whole, key)
        if len(value) != 2 or min(value) < least or not all(map(math.isfinite, value)):
            wrong.append(f"{place}.{key}: {list(value)} must be two numbers {what}")
    ratio = whole.mask_ratio
    if len(ratio) != 2 or not 0 <= ratio[0] <= ratio[1] <= 1:
        wrong.append(f"{place}.mask_ratio: {list(ratio)} must be two shares of the tokens, in [0, 1], the lesser first")
    if whole.centring not in ("mean", "sinkhorn_knopp"):
        wrong.append(f"{place}.centring: {whole.centring!r} is not one of ['mean', 'sinkhorn_knopp']")
    if which.n_snapshots > which.n_steps:
        wrong.append(f"{place}.n_snapshots: {which.n_snapshots} is more than n_steps {which.n_steps}")
    for key in ("global_scale", "local_scale"):
        value = getattr(whole.crops, key)
        if len(value) != 2 or not 0 < value[0] <= value[1] <= 1:
            wrong.append(
                f"{place}.crops.{key}: {list(value)} must be two shares of a patch's area, in (0, 1], the lesser first"
            )
    wrong += _wrong_crops(whole, place) + _wrong_patches(which.patches, f"{place}.patches")
    return wrong + _wrong_network(which, place) + _wrong_start(which, described, others, place)


def problems_of_snapshot(name: str, pretrained: Sequence[Pretraining], place: str) -> list[str]:
    """What is wrong with ``NAME@STEP`` where the study pretrains NAME; any other name is right as far as this tells."""
    encoder, at, step = name.partition("@")
    which = next((other for other in pretrained if other.name == encoder), None)
    if which is None or not at or not 1 <= which.n_snapshots <= which.n_steps:
        return []
    kept = steps_of(which)
    if step in map(str, kept):
        return []
    return [f"{place}: {name!r}, but snapshots of {encoder!r} are kept after {kept} steps; name one of these"]


def _wrong_network(which: Pretraining, place: str) -> list[str]:
    """What of crops and architecture doesn't fit, as far as timm's name of it and its arguments tell."""
    said, crops, wrong = which.arguments, which.crops, []
    named = re.search(r"_patch(\d+)", which.architecture)
    patch_px = said.get("patch_size", int(named[1]) if named else None)
    sides = {"global_px": crops.global_px} | ({"local_px": crops.local_px} if crops.n_local else {})
    if isinstance(patch_px, int) and patch_px > 0:
        wrong += [
            f"{place}.crops.{key}: {px} px is no multiple of the ViT's patches of {patch_px} px; {_multiples(px, patch_px)}"
            for key, px in sides.items()
            if px % patch_px
        ]
    img_size = said.get("img_size")
    if isinstance(img_size, int) and img_size != crops.global_px:
        wrong.append(f"{place}.arguments.img_size: {img_size} px, but crops.global_px is {crops.global_px}; they are one size")
    return wrong


def _multiples(px: int, patch_px: int) -> str:
    below = px // patch_px * patch_px
    return f"the nearest are {below} and {below + patch_px}" if below else f"the least is {patch_px}"


def _wrong_start(
    which: Pretraining, described: Mapping[str, str | None], others: Sequence[Pretraining], place: str
) -> list[str]:
    """What is wrong with the encoder that it starts from, as far as the study tells: its architecture must be the same."""
    if which.start == "random":
        return []
    name = which.start.partition("@")[0]
    first = next((other for other in others if other.name == name), None)
    if first is not None:
        if which.name not in in_order(others):
            return [
                f"{place}.start: {which.start!r} starts, itself or by way of others, from {which.name!r}; start one at random"
            ]
        if (first.architecture, first.arguments) != (which.architecture, which.arguments):
            return [
                f"{place}.start: {which.start!r} is a {first.architecture} {first.arguments or ''}, "
                f"this a {which.architecture} {which.arguments or ''}; weights fit the same architecture only"
            ]
        return problems_of_snapshot(which.start, others, f"{place}.start")
    scheme, _, rest = which.start.partition(":")
    architecture = rest.partition(".")[0] if scheme == "timm" else described.get(which.start)
    if architecture and architecture != which.architecture:
        return [
            f"{place}.start: {which.start!r} is a {architecture}, this a {which.architecture}; they must be one architecture"
        ]
    return []


def _wrong_crops(which: Pretraining, place: str) -> list[str]:
    crops, wrong = which.crops, []
    if crops.n_local < 0:
        wrong.append(f"{place}.crops.n_local: {crops.n_local} must be 0 or more")
    for key in ("global_px", "local_px"):
        if not 8 <= getattr(crops, key) <= MAX_PATCH_PX:
            wrong.append(f"{place}.crops.{key}: {getattr(crops, key)} px must lie in 8 to {MAX_PATCH_PX}")
    if crops.global_px > which.patches.size_px:
        wrong.append(
            f"{place}.crops.global_px: {crops.global_px} px from patches of {which.patches.size_px} px would only be blown up; "
            "lower it, or raise patches.size_px"
        )
    if crops.n_local and crops.local_px > crops.global_px:
        wrong.append(f"{place}.crops.local_px: {crops.local_px} px is more than global_px {crops.global_px}")
    return wrong


def _wrong_patches(patches: OnlinePatches, place: str) -> list[str]:
    wrong = []
    if not 8 <= patches.size_px <= MAX_PATCH_PX:
        wrong.append(f"{place}.size_px: {patches.size_px} px must lie in 8 to {MAX_PATCH_PX}")
    if not patches.um_per_px or not all(0.01 <= value <= 100 for value in patches.um_per_px):
        wrong.append(f"{place}.um_per_px: {list(patches.um_per_px)} must be resolutions between 0.01 and 100")
    if not 0 <= patches.min_tissue <= 1:
        wrong.append(f"{place}.min_tissue: {patches.min_tissue} must lie in [0, 1]")
    if patches.uniform_over not in ("tissue", "slides"):
        wrong.append(f"{place}.uniform_over: {patches.uniform_over!r} is not one of ['tissue', 'slides']")
    if not 0 < patches.slide_fraction <= 1:
        wrong.append(f"{place}.slide_fraction: {patches.slide_fraction} must lie in (0, 1]")
    if patches.n_distinct is not None and patches.n_distinct < 1:
        wrong.append(f"{place}.n_distinct: {patches.n_distinct} must be 1 or more; leave it out for no limit")
    return wrong


def problems_of_task(task: Task, encoders: Iterable[str], pretrained: Iterable[str] = ()) -> list[str]:
    """All that is wrong with one task; ``encoders``: the study's and those that it pretrains; ``pretrained``: the latter."""
    place, known = f"tasks[{task.name}]", list(encoders)
    wrong = [] if task.name in TASKS else [f"{place}: not one of {list(TASKS)}"]
    if foreign := sorted(set(task.encoders) - set(known)):
        wrong.append(f"{place}.encoders: {foreign} not among the study's {known}")
    if twice := sorted({name for name in task.encoders if task.encoders.count(name) > 1}):
        wrong.append(f"{place}.encoders: {twice[0]!r} is there twice")
    if not known:
        wrong.append(f"{place}: the study has no encoder to judge; name some in encoders, or pretrain one")
    if task.snapshots and not set(task.encoders or known) & set(pretrained):
        wrong.append(f"{place}.snapshots: none of its encoders is pretrained by the study, so that there are none")
    for key in ("n_runs", "n_steps", "batch_size", "max_lr", "size_px", "n_per_class"):
        value = getattr(task, key)
        if value is not None and not 0 < value < math.inf:
            wrong.append(f"{place}.{key}: {value} must be a number above 0")
    if task.n_per_class is not None and task.name in SEGMENTATION:
        wrong.append(f"{place}.n_per_class: {task.n_per_class}, but this task segments nuclei and has no classes of patches")
    if task.size_px is not None and task.size_px > MAX_PATCH_PX:
        wrong.append(f"{place}.size_px: {task.size_px} px must be at most {MAX_PATCH_PX}")
    return wrong
