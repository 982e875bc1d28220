"""The decoder of a nuclei segmentation, its loss and its training: on frozen feature maps and the
image itself, as eva does.

eva's ConvDecoderWithImage, with which its leaderboard was made: features twice as large, a
convolution; as large as the image, which is added as three channels; two convolutions; a class a
pixel. Each convolution but the last is 3 x 3 with batch normalisation and ReLU.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from mfcore.measures import masks
from mfcore.measures.masks import IGNORED
from mfcore.training import heads

WIDTHS = (64, 32, 32)  # channels after each convolution
SMOOTH = 1e-5  # of MONAI's Dice loss, above and below the line


class Decoder(nn.Module):
    """Feature maps (n, n_dims, h, w) and images (n, 3, H, W) to logits (n, n_classes, H, W),
    float32.
    """

    def __init__(self, n_dims: int, n_classes: int):
        super().__init__()
        self.of_features = _convolution(n_dims, WIDTHS[0])
        self.of_both = nn.Sequential(
            _convolution(WIDTHS[0] + 3, WIDTHS[1]), _convolution(WIDTHS[1], WIDTHS[2])
        )
        self.classes = nn.Conv2d(WIDTHS[2], n_classes, kernel_size=1)

    def forward(self, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Logits of each pixel's classes."""
        # (n, 64, 2 h, 2 w)
        maps = self.of_features(functional.interpolate(features, scale_factor=2.0, mode="nearest"))
        # (n, 64, H, W)
        maps = functional.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)
        return self.classes(self.of_both(torch.cat([maps, images], dim=1)))


def _convolution(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )


def dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One less the Dice of softmax and mask over the whole batch, mean over the classes, the
    background one of them.

    logits: (n, n_classes, H, W); masks: classes int64 (n, H, W), pixels that are IGNORED counting
    for nothing. Milletari et al. 2016 (V-Net), section 3, without squares below the line, as MONAI
    has it.
    """
    counted = (masks != IGNORED).unsqueeze(1)  # (n, 1, H, W)
    p = logits.softmax(dim=1) * counted
    true = (
        functional.one_hot(masks.where(counted[:, 0], 0), logits.shape[1]).permute(0, 3, 1, 2)
        * counted
    )
    both, total = (p * true).sum(dim=(0, 2, 3)), (p + true).sum(dim=(0, 2, 3))  # (n_classes,)
    return (1 - (2 * both + SMOOTH) / (total + SMOOTH)).mean()


@dataclass(frozen=True)
class Material:
    """What a decoder learns from and is judged by, row for row, on the device where it is trained.

    maps: float32 (n, n_dims, h, w); images: float32 (n, 3, size_px, size_px), normalised; masks:
    uint8, the same places.
    """

    maps: torch.Tensor
    images: torch.Tensor
    masks: torch.Tensor

    def of(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The maps, images and masks of some rows."""
        here = torch.tensor(rows, device=self.images.device)
        return self.maps[here], self.images[here], self.masks[here]


def train(
    material: Material,
    n_classes: int,
    rows: np.ndarray,
    validation: np.ndarray,
    schedule: heads.Schedule,
    draw: np.random.Generator,
    title: str,
) -> tuple[Decoder, heads.Progress]:
    """Train one decoder on some rows by the Dice loss and AdamW, judged by its Dice on
    ``validation`` as the schedule says.

    The weights at the start and the order of the rows come from ``draw`` alone. Returns the decoder
    with the weights that did best on validation, and how its training ended.
    """
    with torch.random.fork_rng(devices=[]):
        # the GPUs' draws go on as they were
        torch.default_generator.manual_seed(int(draw.integers(2**63)))
        decoder = Decoder(material.maps.shape[1], n_classes)
    decoder = decoder.to(material.images.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    progress, kept = schedule.progress(len(rows)), copy.deepcopy(decoder.state_dict())
    with tqdm(total=progress.limit, desc=title, unit="step", leave=False) as bar:
        for batch in heads.batches(lambda: draw.permutation(rows), schedule.batch_size):
            optimizer.param_groups[0]["lr"] = schedule.rate(progress.n_steps, len(rows))
            maps, images, true = material.of(batch)
            loss = dice_loss(decoder.train()(maps, images), true.long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.update()
            if progress.step():
                counts = overlaps(decoder, material, validation, schedule.batch_size)
                if progress.validate(masks.mean_dice(counts)):
                    kept = copy.deepcopy(decoder.state_dict())
            if progress.ended:
                break
    decoder.load_state_dict(kept)
    return decoder, progress


@torch.inference_mode()
def predict(decoder: Decoder, material: Material, rows: np.ndarray) -> np.ndarray:
    """The class given to each pixel of some rows, uint8 (n, size_px, size_px)."""
    maps, images, _ = material.of(rows)
    return decoder.eval()(maps, images).argmax(dim=1).to(torch.uint8).cpu().numpy()


def overlaps(decoder: Decoder, material: Material, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """`masks.overlaps` of what a decoder makes of some rows, int64 (n, n_classes, 3)."""
    counts = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        true, predicted = material.of(batch)[2].cpu().numpy(), predict(decoder, material, batch)
        counts.append(masks.overlaps(true, predicted, decoder.classes.out_channels))
    return np.concatenate(counts)
