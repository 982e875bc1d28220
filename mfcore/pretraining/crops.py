"""Views of patches for pretraining: multi-crop, and the patch tokens that are masked for iBOT.

**Multi-crop.** From each patch two global and several local crops, each cut, coloured and blurred
at random. The recipe is DINO's (Caron et al. 2021, sections 3.1 and 3.2; the augmentations are
BYOL's), with vertical flips, as slides have no up.

Crops and masks depend on the name of a random stream and on the patch's position in it.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from mfcore import streams as rng
from mfcore.data import augment
from mfcore.pretraining.method import Crops

N_GLOBAL = 2
ASPECT = (3 / 4, 4 / 3)
N_ATTEMPTS = 10  # to place a crop (then the whole patch is taken) or a block
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
BLUR_PROBABILITY = (1.0, 0.1, 0.5)  # first and second global crop, local ones
BLUR_SIGMA_PX = (0.1, 2.0)  # of crops of PUBLISHED_PX; narrower crops are blurred in proportion
PUBLISHED_PX = 224
SOLARISE_PROBABILITY = 0.2  # second global crop only
CUBIC = -0.5  # Keys' parameter, as Pillow has it
LEAST_TOKENS = 4  # of a masked block, unless fewer are left to mask
MOST_SHARE = 0.5  # of the grid, that one masked block may cover
BLOCK_ASPECT = (0.3, 1 / 0.3)


def draw(crops: Crops, n: int, patch_px: int, seed: int, *names: object) -> np.recarray:
    """How n patches of ``patch_px`` are cropped, from the stream ``names`` under ``seed``.

    Records (n, 2 + n_local), global crops first, with the fields top_px, left_px, height_px,
    width_px (the cut from a patch), flip_x, flip_y (mirrored left to right, top to bottom),
    brightness, contrast, saturation (factors, 1 for no change), hue (added, in turns, 0 for no
    change), grey, blur_px (sigma in px of the crop, 0 for no blur), solarise. ``drawn[rows]`` are
    some of the patches, ``drawn[:, number]`` is one crop of each. Row i depends on the stream and
    on i alone; processes that share a batch draw the whole batch and take their rows. crops: no
    scale of them None (`method.in_full`).
    """
    n_crops = N_GLOBAL + crops.n_local
    uniform = rng.generator(seed, *names).random((n, n_crops, 2 * N_ATTEMPTS + 13))
    scales = np.array([crops.global_scale] * N_GLOBAL + [crops.local_scale] * crops.n_local).T
    height_px, width_px = _sides(uniform[..., : 2 * N_ATTEMPTS], scales, patch_px)
    top, left, flip_x, flip_y, coloured, *jitter, grey, blurred, sigma, solarise = np.moveaxis(
        uniform[..., 2 * N_ATTEMPTS :], 2, 0
    )
    colour = [
        np.where(coloured < JITTER_PROBABILITY, reach * (2 * u - 1), 0.0)
        for reach, u in zip(JITTER, jitter, strict=True)
    ]
    first, second, local = BLUR_PROBABILITY
    blur_probability = np.array([first, second] + [local] * crops.n_local)
    low_px, high_px = (sigma_px * crops.global_px / PUBLISHED_PX for sigma_px in BLUR_SIGMA_PX)
    fields = {
        "top_px": np.floor(top * (patch_px - height_px + 1)),
        "left_px": np.floor(left * (patch_px - width_px + 1)),
        "height_px": height_px,
        "width_px": width_px,
        "flip_x": flip_x < 0.5,
        "flip_y": flip_y < 0.5,
        "brightness": 1 + colour[0],
        "contrast": 1 + colour[1],
        "saturation": 1 + colour[2],
        "hue": colour[3],
        "grey": grey < GREY_PROBABILITY,
        "blur_px": np.where(blurred < blur_probability, low_px + (high_px - low_px) * sigma, 0.0),
        "solarise": (solarise < SOLARISE_PROBABILITY) & (np.arange(n_crops) == N_GLOBAL - 1),
    }
    return np.rec.fromarrays(list(fields.values()), names=list(fields))


def _sides(uniform: np.ndarray, scales: np.ndarray, patch_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths in px, (n, n_crops) each.

    The sides of the first attempt that fits into the patch, or the whole patch. uniform: (n,
    n_crops, 2 * N_ATTEMPTS); scales: least and largest share of the patch's area, (2, n_crops).
    """
    share, aspect = uniform[..., :N_ATTEMPTS], uniform[..., N_ATTEMPTS:]
    low, high = scales[..., None]
    area = patch_px**2 * (low + (high - low) * share)
    # of width / height
    root = np.exp((math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspect) / 2)
    height, width = np.rint(np.sqrt(area) / root), np.rint(np.sqrt(area) * root)
    # (n, n_crops, N_ATTEMPTS)
    fits = (height > 0) & (height <= patch_px) & (width > 0) & (width <= patch_px)
    first = fits.argmax(-1)[..., None]
    chosen = (np.take_along_axis(sides, first, -1)[..., 0] for sides in (height, width))
    height, width = (np.where(fits.any(-1), sides, patch_px) for sides in chosen)
    return height, width


def make(
    images: torch.Tensor,
    drawn: np.recarray,
    crops: Crops,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Global crops (2, B, 3, g, g) and local ones (n_local, B, 3, l, l), float32.

    Normalised with ``mean`` and ``std`` (3,). images: uint8 (B, 3, patch_px, patch_px) on any
    device, where everything is done. In this order: cut and resized by bicubic interpolation with
    antialiasing, flipped, colour jittered, made grey, blurred, solarised.
    """
    cut = _cut_by_matrices
    if images.device.type == "cpu":
        cut = _cut_singly
        # is resized five times as fast
        images = images.contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(each, device=images.device)[:, None, None] for each in (mean, std))
    groups = []
    for first, n, side_px in ((0, 2, crops.global_px), (2, crops.n_local, crops.local_px)):
        out = torch.empty((n, len(images), 3, side_px, side_px), device=images.device)
        for number, crop in enumerate(out, start=first):
            cut(images, drawn[:, number], crop)
            _change(drawn[:, number], crop, blur_kernel_px(crops.global_px, side_px))
            crop.sub_(mean).div_(std)
        groups.append(out)
    return groups[0], groups[1]


def _cut_singly(images: torch.Tensor, drawn: np.recarray, out: torch.Tensor) -> None:
    """Resized and flipped cuts into ``out`` (n, 3, side_px, side_px), in 0..1.

    Cut one by one, in bytes.
    """
    for image, one, into in zip(images, drawn, out, strict=True):
        top, left, height, width = (int(one[i]) for i in range(4))
        cut = image[None, :, top : top + height, left : left + width]
        cut = functional.interpolate(cut, out.shape[2:], mode="bicubic", antialias=True)[0]
        axes = [axis for axis, flipped in ((1, one["flip_y"]), (2, one["flip_x"])) if flipped]
        torch.div(cut.flip(axes), 255, out=into)


def _cut_by_matrices(images: torch.Tensor, drawn: np.recarray, out: torch.Tensor) -> None:
    """The same in a few calls for a GPU; rounded to bytes after each axis, too, as Pillow does."""
    patch_px, side_px = images.shape[-1], out.shape[-1]
    rows = resampling(drawn.top_px, drawn.height_px, drawn.flip_y, patch_px, side_px, out.device)
    columns = resampling(drawn.left_px, drawn.width_px, drawn.flip_x, patch_px, side_px, out.device)
    across = images.float() @ columns[:, None].mT  # (n, 3, patch_px, side_px)
    down = rows[:, None] @ across.round_().clamp_(0, 255)  # (n, 3, side_px, side_px)
    torch.div(down.round_().clamp_(0, 255), 255, out=out)


def _change(drawn: np.recarray, out: torch.Tensor, kernel_px: int) -> None:
    """Colour, blur and solarisation of crops (n, 3, side_px, side_px) in 0..1, in place.

    kernel_px: side of the blur's kernel.
    """

    # In one order: torchvision's 24 orders differ from it by half a grey level of 255 on tissue.
    augment.jitter(out, drawn)
    augment.change(out, drawn.grey, _grey)
    blur, sigma_px = partial(augment.blur, kernel_px=kernel_px), drawn.blur_px.astype(np.float32)
    augment.change(out, drawn.blur_px > 0, blur, sigma_px)
    augment.change(out, drawn.solarise, lambda images: torch.minimum(images, 1 - images))


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Images (n, 3, H, W) in shades of grey, (n, 1, H, W)."""
    red, green, blue = (images[:, i] * weight for i, weight in enumerate(augment.GREY))
    return (red + green + blue)[:, None]


def blur_kernel_px(global_px: int, side_px: int) -> int:
    """Side of the blur's kernel, odd.

    It holds two of the widest sigmas each way, and ends within the mirrored edge.
    """
    return 2 * min(math.ceil(2 * BLUR_SIGMA_PX[1] * global_px / PUBLISHED_PX), side_px - 1) + 1


def resampling(
    start_px: np.ndarray,
    length_px: np.ndarray,
    flipped: np.ndarray,
    patch_px: int,
    side_px: int,
    device: torch.device,
) -> torch.Tensor:
    """Matrices, float32 (n, side_px, patch_px), that resample an axis to ``side_px``.

    From ``start_px`` (n,) on, ``length_px`` (n,). Bicubic, widened where it shrinks (antialias), of
    the pixels inside only; as torchvision's and Pillow's resizing of a cut image. A product with
    one matrix for each axis resizes a whole batch, each image in its own way.
    """
    values = np.stack([start_px, length_px, flipped]).astype(np.float32)
    start, length, flip = augment.on_device(values, device)[..., None]  # (n, 1) each
    at = torch.arange(side_px, device=device) + 0.5  # (side_px,)
    scale = length / side_px  # (n, 1)
    centre = torch.where(flip > 0, side_px - at, at) * scale  # (n, side_px), from the cut's start
    inside = torch.arange(patch_px, device=device) + 0.5 - start  # (n, patch_px)
    distance = (inside[:, None, :] - centre[:, :, None]).abs() / scale.clamp(min=1)[..., None]
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = weights * ((inside > 0) & (inside < length))[:, None, :]
    return weights / weights.sum(2, keepdim=True)


# ---- masks ----


def draw_masks(
    n_images: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> np.ndarray:
    """Masks, bool (n_images, rows * columns of ``grid``), of blocks (Bao et al. 2022, algorithm 1).

    int(probability * n_images) images, drawn at random, get a mask. The shares of tokens to mask
    are one from each of as many equal parts of ``ratio``: every batch has about the same number of
    masked tokens (as DINOv2's authors do; Zhou et al. 2021 draw the shares freely). A mask may fall
    short of its share where no further block fits, never exceed it. Processes that share a batch
    draw the whole batch from the same stream, and take their rows.
    """
    rows, columns = grid
    masked = np.zeros((n_images, rows, columns), bool)
    n_masked = int(n_images * probability)
    bounds = np.linspace(*ratio, n_masked + 1)
    for i, image in enumerate(generator.permutation(n_images)[:n_masked]):
        share = generator.uniform(bounds[i], bounds[i + 1])
        _mask(masked[image], int(rows * columns * share), generator)
    return masked.reshape(n_images, rows * columns)


def mask_weights(masked: np.ndarray) -> np.ndarray:
    """Weights, float32 (N,), of the N masked tokens in ``masked``, bool (n_images, n_tokens).

    A weight is 1 / number of masked tokens of the token's image.
    """
    per_image = masked.sum(1, keepdims=True).clip(1)
    return np.broadcast_to(1 / per_image, masked.shape)[masked].astype(np.float32)


def _mask(masked: np.ndarray, n_tokens: int, generator: np.random.Generator) -> None:
    """Mask blocks of ``masked``, bool (rows, columns).

    Ends where ``n_tokens`` are masked or no block fits any more.
    """
    while (left := n_tokens - int(masked.sum())) > 0:
        for _ in range(N_ATTEMPTS):
            block = _block(masked.shape, left, generator)
            if block is not None and 0 < masked[block].size - masked[block].sum() <= left:
                masked[block] = True
                break
        else:
            return


def _block(
    grid: tuple[int, ...], left: int, generator: np.random.Generator
) -> tuple[slice, slice] | None:
    """Rows and columns of a block somewhere in the grid; None for a block as long as a side."""
    most = min(left, MOST_SHARE * math.prod(grid))
    low, high, top, side = generator.random(4)
    area = min(LEAST_TOKENS, most) + low * (most - min(LEAST_TOKENS, most))
    aspect = math.exp(
        math.log(BLOCK_ASPECT[0]) + high * math.log(BLOCK_ASPECT[1] / BLOCK_ASPECT[0])
    )
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < height < grid[0] and 0 < width < grid[1]):
        return None
    first, left_most = int(top * (grid[0] - height + 1)), int(side * (grid[1] - width + 1))
    return slice(first, first + height), slice(left_most, left_most + width)
