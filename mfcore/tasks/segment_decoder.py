"""The decoder of a nuclei segmentation, its loss and its training: on frozen feature maps and the image itself, as eva does.

eva's ConvDecoderWithImage, with which its leaderboard was made: features twice as large, a convolution; as large as the image,
which is laid beside them; two convolutions; a class a pixel. Each convolution but the last is 3 x 3 with batch normalisation
and ReLU.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from mfcore.measures import masks
from mfcore.tasks.protocol import Protocol
from mfcore.tasks.schema import IGNORED

WIDTHS = (64, 32, 32)  # channels after each convolution
SMOOTH = 1e-5  # of MONAI's Dice loss, above and below the line


class Decoder(nn.Module):
    """Feature maps (n, n_dims, h, w) and images (n, 3, H, W) to logits (n, n_classes, H, W), float32."""

    def __init__(self, n_dims: int, n_classes: int):
        super().__init__()
        self.of_features = _convolution(n_dims, WIDTHS[0])
        self.of_both = nn.Sequential(_convolution(WIDTHS[0] + 3, WIDTHS[1]), _convolution(WIDTHS[1], WIDTHS[2]))
        self.classes = nn.Conv2d(WIDTHS[2], n_classes, kernel_size=1)

    def forward(self, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Logits of each pixel's classes."""
        wide = self.of_features(functional.interpolate(features, scale_factor=2.0, mode="nearest"))  # (n, 64, 2 h, 2 w)
        wide = functional.interpolate(wide, images.shape[-2:], mode="bilinear", align_corners=False)  # (n, 64, H, W)
        return self.classes(self.of_both(torch.cat([wide, images], dim=1)))


def _convolution(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel_size=3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One less the Dice of softmax and mask over the whole batch, mean over the classes, the background one of them.

    logits: (n, n_classes, H, W); masks: classes int64 (n, H, W), pixels that are IGNORED counting for nothing. Milletari et al.
    2016 (V-Net), section 3, without squares below the line, as MONAI has it.
    """
    counted = (masks != IGNORED).unsqueeze(1)  # (n, 1, H, W)
    p = logits.softmax(dim=1) * counted
    true = functional.one_hot(masks.where(counted[:, 0], 0), logits.shape[1]).permute(0, 3, 1, 2) * counted
    both, total = (p * true).sum(dim=(0, 2, 3)), (p + true).sum(dim=(0, 2, 3))  # (n_classes,)
    return (1 - (2 * both + SMOOTH) / (total + SMOOTH)).mean()


@dataclass(frozen=True)
class Material:
    """What a decoder learns from and is judged by, row for row, on the device where it is trained.

    maps: float32 (n, n_dims, h, w); images: float32 (n, 3, size_px, size_px), normalised; masks: uint8, the same places.
    """

    maps: torch.Tensor
    images: torch.Tensor
    masks: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where decoders are trained."""
        return self.images.device


@dataclass(frozen=True)
class Fitted:
    """A trained decoder with the weights that did best on validation, and how its training ended ("early" or "limit")."""

    decoder: Decoder
    best: float
    best_step: int
    n_steps: int
    ended: str


def train(
    material: Material,
    n_classes: int,
    rows: np.ndarray,
    validation: np.ndarray,
    protocol: Protocol,
    draw: np.random.Generator,
    title: str,
) -> Fitted:
    """Train one decoder on some rows by the Dice loss and AdamW, judged by its Dice on ``validation`` as the protocol says.

    The weights at the start and the order of the rows come from ``draw`` alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(draw.integers(2**63)))  # the GPUs' draws go on as they were
        decoder = Decoder(material.maps.shape[1], n_classes)
    decoder = decoder.to(material.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=protocol.max_lr, weight_decay=protocol.weight_decay)
    every = protocol.n_batches(len(rows)) * protocol.epochs_a_validation  # steps
    patience, without_gain, ended = protocol.patience_of(len(rows)), 0, "limit"
    best, best_step, kept, batches = -math.inf, 0, copy.deepcopy(decoder.state_dict()), _batches(rows, protocol, draw)
    with tqdm(total=protocol.n_steps, desc=title, unit="step", leave=False) as bar:
        for step in range(1, protocol.n_steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = protocol.learning_rate(step - 1, len(rows))
            here = torch.from_numpy(next(batches)).to(material.device)
            decoder.train()
            loss = dice_loss(decoder(material.maps[here], material.images[here]), material.masks[here].long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.update()
            if step % every and step < protocol.n_steps:
                continue
            score = masks.mean_dice(overlaps(decoder, material, n_classes, validation, protocol.batch_size))
            without_gain = 0 if score > best + protocol.min_gain else without_gain + 1
            if score > best:
                best, best_step, kept = score, step, copy.deepcopy(decoder.state_dict())
            if without_gain >= patience:
                ended = "early"
                break
    decoder.load_state_dict(kept)
    return Fitted(decoder.eval(), best, best_step, step, ended)


def _batches(rows: np.ndarray, protocol: Protocol, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of one batch after another, each row once an epoch, without end."""
    while True:
        order = draw.permutation(rows)
        yield from (order[first : first + protocol.batch_size] for first in range(0, len(order), protocol.batch_size))


def predict(decoder: Decoder, material: Material, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """The class given to each pixel of some rows, uint8 (n, size_px, size_px)."""
    decoder.eval()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(rows), batch_size):
            here = torch.from_numpy(rows[first : first + batch_size]).to(material.device)
            parts.append(decoder(material.maps[here], material.images[here]).argmax(dim=1).to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)


def overlaps(decoder: Decoder, material: Material, n_classes: int, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """`masks.overlaps` of what a decoder makes of some rows, int64 (n, n_classes, 3)."""
    true = material.masks[torch.from_numpy(rows).to(material.device)].cpu().numpy()
    return masks.overlaps(true, predict(decoder, material, rows, batch_size), n_classes)
