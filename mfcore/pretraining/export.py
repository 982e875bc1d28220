"""A teacher as an encoder like any other: a folder with ``card.json`` and ``weights.safetensors``."""

from pathlib import Path

import safetensors.torch

from mfcore import store
from mfcore.encoders.architecture import n_parameters
from mfcore.encoders.card import EncoderCard
from mfcore.encoders.readout import READOUTS
from mfcore.pretraining.networks import Networks, readout
from mfcore.study.config import Pretraining, Study

INTERPOLATION = "bicubic"


def input_px(which: Pretraining, study: Study) -> tuple[int, int]:
    """Sides to which the study's patches are resized, and then cropped, for an encoder pretrained so.

    The network is shown what it was taught on: the central ``crops.global_px`` of a patch, at that of its resolutions which
    is nearest to the patch's (by ratio); a patch that is too small for that is enlarged.
    """
    side_px, um_per_px = study.patches.size_px, study.patches.um_per_px
    ratio = min((taught / (um_per_px or taught) for taught in which.patches.um_per_px), key=lambda r: max(r, 1 / r))
    return max(which.crops.global_px, round(side_px / ratio)), which.crops.global_px


def card(networks: Networks, which: Pretraining, study: Study, step: int) -> EncoderCard:
    """The card of a teacher after ``step`` steps; where its weights are is left to whoever reads the folder."""
    encoder = networks.teacher.encoder
    resize_px, crop_px = input_px(which, study)
    of_what = "synthetic slides" if study.synthetic and not which.slides else "slides"
    return EncoderCard(
        name=which.name,
        source="folder",
        identifier="",
        architecture=which.architecture,
        arguments=networks.arguments,
        n_dims=READOUTS[readout(encoder)].width(encoder),
        n_parameters=n_parameters(encoder),
        n_prefix_tokens=int(getattr(encoder, "num_prefix_tokens", 0)),
        readout=readout(encoder),
        mean=tuple(networks.mean),
        std=tuple(networks.std),
        resize_px=resize_px,
        crop_px=crop_px,
        interpolation=INTERPOLATION,
        um_per_px=tuple(sorted(set(which.patches.um_per_px))),
        evidence="stated",
        licence="its owner's",
        facts=f"pretrained in study {study.name!r} on {of_what}: {which.method}, {step:,} of {which.n_steps:,} steps of "
        f"{which.batch_size} patches, start: {which.start}",
    )


def write(networks: Networks, this: EncoderCard, folder: Path) -> None:
    """Write a teacher's encoder into ``folder``, its card last; `mfcore.encoders.load` reads it."""
    left_out = {"name", "source", "identifier", "files", "sha256"}  # `catalogue.folder_card` adds these
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in networks.teacher.encoder.state_dict().items()}
    with store.replacing(folder / "weights.safetensors") as aside:
        safetensors.torch.save_file(tensors, aside)
    content = {key: value for key, value in vars(this).items() if key not in left_out}
    store.write_json(folder / "card.json", content)
