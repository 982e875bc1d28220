"""Preprocessing against torchvision's on PIL images, which the models were made with."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoders import some_patches, tiny_card, use

from mfcore import encoders
from mfcore.encoders import preprocess


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "resize_px", "crop_px"),
    [
        (128, 128, 224, 224),
        (224, 224, 256, 224),
        (300, 300, 224, 224),
        (224, 224, 224, 224),
        (97, 131, 224, 224),
        (301, 200, 35, 32),
    ],
)
def test_preprocessing_is_torchvisions_on_pil_images_to_the_last_bit(
    monkeypatch, interpolation, height, width, resize_px, crop_px
):
    from torchvision import transforms as T

    facts = {"interpolation": interpolation, "mean": (0.7, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    card = tiny_card(resize_px=resize_px, crop_px=crop_px, **facts)
    patches = some_patches(2, 301)[:, :height, :width]
    patches[1] = np.random.default_rng(1).integers(0, 256, patches[1].shape)  # the hardest case: noise
    reference = T.Compose(
        [
            T.Resize(resize_px, T.InterpolationMode(interpolation)),
            T.CenterCrop(crop_px),
            T.ToTensor(),
            T.Normalize(card.mean, card.std),
        ]
    )
    expected = torch.stack([reference(Image.fromarray(patch)) for patch in patches])
    ours = encoders.load(use(monkeypatch, card)).transform(patches)
    levels = (ours - expected).abs() * torch.tensor(card.std).view(3, 1, 1) * 255  # difference in grey levels
    assert levels.max() < 1e-4


def test_patches_of_a_read_only_file_are_taken_without_a_warning(monkeypatch, recwarn):
    patches = some_patches(2, 32)
    patches.setflags(write=False)
    encoders.load(use(monkeypatch, tiny_card())).embed(patches)
    assert not recwarn.list


def test_a_gpu_computes_float32_in_float32_and_is_left_as_it_was():
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    with preprocess.exact_float32(torch.device("cuda")):
        assert [setting.allow_tf32 for setting in settings] == [False, False]
        with preprocess.exact_float32(torch.device("cuda")):
            pass
        assert [setting.allow_tf32 for setting in settings] == [False, False]
    assert [setting.allow_tf32 for setting in settings] == before and before[0]  # torch's own default for convolutions
