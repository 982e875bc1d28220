"""An encoder judged by a task of nuclei segmentation, as eva does: a decoder on its frozen feature
maps, several seeded runs.

A run's folder keeps ``dice.parquet`` (run, step, item_id, split, group, class, dice, and the pixels
that each mask and both have: ``n_px, n_predicted_px, n_both_px``), from which every score is
computed again; ``fits.csv``; and ``masks.npz``, some tested patches with their true masks and what
the first run made of them.
"""

import dataclasses

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mfcore import encoders, store
from mfcore.encoders import preprocess
from mfcore.encoders.card import EncoderCard
from mfcore.encoders.preprocess import square
from mfcore.encoders.readout import READOUTS
from mfcore.measures.masks import IGNORED, dice
from mfcore.streams import generator
from mfcore.tasks import protocol as tasks_protocol, segment_decoder
from mfcore.tasks.segment_decoder import Material
from mfcore.tasks.task import SELECTION, Protocol, TaskData, TaskError

STAGE = "segment"
BATCH = 16  # images through the encoder at once
N_SHOWN = 4  # tested patches that are kept for a figure
WORTH_SHOWING = 0.03  # share of a patch that nuclei cover


def segment(
    data: TaskData,
    card: EncoderCard,
    protocol: Protocol,
    run: store.Run,
    seed: int,
    device: str = "cpu",
) -> store.Run:
    """Judge the encoder of ``card`` by a task's data; fills and finishes ``run``, and a kill loses
    one decoder.

    The shorter side of images and masks is resized to the protocol's ``size_px``, or the encoder's
    input where it says none, and all of the central square goes through the encoder. data: as
    `protocol.check` passes them. seed: of the decoders. Raises TaskError, with all that is wrong,
    for masks that can't be judged by, EncoderError where the encoder is missing or gives no map of
    features.
    """
    if missing := tasks_protocol.missing(run, protocol.n_runs):
        material = material_of(data, card, device, protocol.size_px)
        for number in missing:
            _train(run, data, material, protocol, seed, number)
    return tasks_protocol.finish(run, data, protocol.n_runs, "dice.parquet", ["masks.npz"])


def material_of(data: TaskData, card: EncoderCard, device: str, size_px: int | None) -> Material:
    """A task's images, masks and feature maps by the encoder of ``card``, on ``device``.

    The images are normalised as the encoder has it. Raises as `segment`.
    """
    size_px = size_px or card.crop_px
    pairs = [(data.image(i), data.mask(i)) for i in range(len(data))]
    wrong = [
        f"the mask of {item!r} is {mask.shape}, its image {image.shape[:2]}"
        for item, (image, mask) in zip(data.table["item_id"], pairs, strict=True)
        if image.shape[:2] != mask.shape
    ]
    masks = np.stack(
        [square(mask, size_px, "nearest") for _, mask in pairs]
    )  # (n, size_px, size_px)
    has_nuclei = (
        pd.Series(_nuclei(masks).any(axis=(1, 2)), data.table["split"]).groupby("split").any()
    )
    wrong += [
        f"no mask of the split {split!r} holds a nucleus in the {size_px} px that are seen: "
        "there is nothing to score"
        for split in has_nuclei.index[~has_nuclei]
    ]
    if wrong:
        raise TaskError(f"task {data.task.name!r}: {'; '.join(wrong[:5])}")
    kernel = data.task.interpolation or card.interpolation
    images = np.stack([square(image, size_px, kernel) for image, _ in pairs])
    encoder = encoders.load(card, device)
    bar = tqdm(range(0, len(images), BATCH), f"maps by {card.name}", unit="batch", leave=False)
    maps = [maps_of(encoder, images[first : first + BATCH]) for first in bar]
    seen = dataclasses.replace(card, resize_px=size_px, crop_px=size_px)
    with torch.inference_mode(False):
        normalised = preprocess.transform(images, seen, encoder.device).contiguous(
            memory_format=torch.channels_last
        )
        return Material(torch.cat(maps), normalised, torch.from_numpy(masks).to(encoder.device))


def _nuclei(masks: np.ndarray) -> np.ndarray:
    """Which pixels of masks are of a nucleus, bool."""
    return (masks > 0) & (masks != IGNORED)


def maps_of(encoder: encoders.Encoder, images: np.ndarray) -> torch.Tensor:
    """The last feature map of whole images uint8 (n, H, W, 3): float32 (n, n_channels, h, w).

    As eva takes it: from the last block, before the network's last normalisation; of a ResNet that
    is read out at layer 3, that layer's. Raises EncoderError where the network gives none, or one
    that isn't a grid of at least 2 x 2, or that isn't finite.
    """
    card = encoder.card
    at = READOUTS[card.readout].maps
    whole = dataclasses.replace(encoder, card=dataclasses.replace(card, resize_px=card.crop_px))
    if not hasattr(encoder.model, "forward_intermediates"):
        raise encoders.EncoderError(
            f"encoder {card.name!r}: {card.architecture} gives no feature maps to segment by"
        )
    with torch.inference_mode(), preprocess.exact_float32(encoder.device), encoder.autocast():
        maps = encoder.model.forward_intermediates(
            whole.transform(images), indices=at, intermediates_only=True
        )[0].float()
    if maps.ndim != 4 or min(maps.shape[2:]) < 2:
        raise encoders.EncoderError(
            f"encoder {card.name!r} gives features {tuple(maps.shape[1:])} of {card.crop_px} px: "
            "no grid to segment by; use one with smaller patches or a larger input"
        )
    if not torch.isfinite(maps).all():
        raise encoders.EncoderError(
            f"encoder {card.name!r} gives NaN or infinity in its feature maps"
        )
    return maps


def _train(
    run: store.Run, data: TaskData, material: Material, protocol: Protocol, seed: int, number: int
) -> None:
    """Train one run's decoder, and keep its Dice on what it didn't learn from."""
    table, task = data.table.reset_index(drop=True), data.task
    rows, validation = (np.flatnonzero(table["split"] == split) for split in ("train", SELECTION))
    draw = generator(seed, "segment", task.name, "decoder", number)
    title = f"{run.identity['name']}, run {number}"
    decoder, progress = segment_decoder.train(
        material, len(task.classes), rows, validation, protocol.schedule, draw, title
    )
    tested = table.loc[table["split"] != "train", ["item_id", "split", "group"]]
    counts = segment_decoder.overlaps(
        decoder, material, tested.index.to_numpy(), protocol.batch_size
    )
    parts = []
    for name, pixels in zip(task.classes[1:], counts.transpose(1, 2, 0)[1:], strict=True):
        columns = {"run": number, "step": progress.best_step, "class": name, "dice": dice(*pixels)}
        columns |= zip(("n_px", "n_predicted_px", "n_both_px"), pixels, strict=True)
        parts.append(tested.assign(**columns))
    if number == 0:
        _keep_shown(run, data, material, decoder, seed)
    fit = {"n_train": len(rows), **progress.facts()}
    tasks_protocol.keep(run, number, pd.concat(parts, ignore_index=True), fit)


def _keep_shown(
    run: store.Run, data: TaskData, material: Material, decoder: segment_decoder.Decoder, seed: int
) -> None:
    """Write some tested patches with both masks, the same patches whatever the encoder."""
    splits, size_px = data.table["split"], material.masks.shape[1]
    reported = np.flatnonzero(splits == tasks_protocol.reported_split(splits))
    worth = [row for row in reported if _nuclei(data.mask(row)).mean() >= WORTH_SHOWING] or reported
    rows = generator(seed, "segment", data.task.name, "shown").permutation(worth)[:N_SHOWN]
    with store.replacing(run.path("masks.npz")) as aside, aside.open("wb") as content:
        np.savez_compressed(
            content,
            item_id=data.table["item_id"].iloc[rows].to_numpy(np.str_),
            image=np.stack([square(data.image(row), size_px, "bilinear") for row in rows]),
            true=material.masks.cpu().numpy()[rows],
            predicted=segment_decoder.predict(decoder, material, rows),
        )
