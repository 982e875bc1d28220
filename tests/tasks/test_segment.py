"""Judging encoders by a decoder: Dice and its loss against counts by hand, the decoder's shape, kills, and what is refused."""

import dataclasses

import made_tasks
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_encoders import some_patches, tiny_card, use

from mfcore import encoders
from mfcore.encoders import EncoderError, preprocess
from mfcore.encoders.preprocess import square
from mfcore.measures import masks
from mfcore.measures.masks import IGNORED
from mfcore.study import tasks as study_tasks
from mfcore.study.config import TaskOptions
from mfcore.tasks import segment, segment_decoder
from mfcore.tasks.task import Protocol, TaskError

TASK = TaskOptions("synthetic_nuclei", n_runs=2, n_steps=12, batch_size=6, max_lr=0.02, size_px=16)


# ---- Dice ----


def test_dice_is_what_counting_pixel_by_pixel_gives():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, (2, 5, 7, 6), dtype=np.uint8)
    true[0][true[0] == 2] = 0  # a mask without class 2
    true[1, :2], true[3] = IGNORED, 0  # pixels that don't count, and a mask without nuclei
    counts = masks.overlaps(true, predicted, 4)
    of_mask = []
    for i in range(5):
        of_class = []
        for c in range(1, 4):
            n_true = n_predicted = n_both = 0
            for y in range(7):
                for x in range(6):
                    if true[i, y, x] != IGNORED:
                        n_true += true[i, y, x] == c
                        n_predicted += predicted[i, y, x] == c
                        n_both += true[i, y, x] == predicted[i, y, x] == c
            assert counts[i, c].tolist() == [n_true, n_predicted, n_both]
            if n_true:
                of_class.append(2 * n_both / (n_true + n_predicted))
        if of_class:
            of_mask.append(np.mean(of_class))
    assert len(of_mask) == 4 and masks.mean_dice(counts) == pytest.approx(np.mean(of_mask))
    assert masks.mean_dice(masks.overlaps(true[:1], true[:1], 4)) == 1
    assert np.isnan(masks.mean_dice(masks.overlaps(true[3:4], predicted[3:4], 4)))


def test_the_loss_is_one_less_dice_of_probabilities_over_the_batch():
    rng = np.random.default_rng(1)
    logits, masks = rng.normal(size=(3, 4, 5, 6)), rng.integers(0, 4, (3, 5, 6))
    masks[1, 2] = IGNORED
    losses = []
    for c in range(4):
        both = total = 0.0
        for i in range(3):
            for y in range(5):
                for x in range(6):
                    if masks[i, y, x] == IGNORED:
                        continue
                    p = np.exp(logits[i, c, y, x]) / np.exp(logits[i, :, y, x]).sum()
                    both += p * (masks[i, y, x] == c)
                    total += p + (masks[i, y, x] == c)
        losses.append(1 - (2 * both + 1e-5) / (total + 1e-5))
    found = segment_decoder.dice_loss(torch.from_numpy(logits), torch.from_numpy(masks))
    assert float(found) == pytest.approx(np.mean(losses), abs=1e-9)


# ---- decoder ----


def test_the_decoder_is_evas():
    """As many numbers as its layers have, any map and image size, and both inputs count."""
    decoder = segment_decoder.Decoder(24, 5)

    def convolution(n_in, n_out):
        return n_in * n_out * 9 + n_out + 2 * n_out  # and the normalisation's

    expected = convolution(24, 64) + convolution(67, 32) + convolution(32, 32) + 32 * 5 + 5
    assert sum(parameter.numel() for parameter in decoder.parameters()) == expected
    maps, images = torch.randn(2, 24, 3, 3), torch.randn(2, 3, 20, 20)
    logits = decoder.eval()(maps, images)
    assert logits.shape == (2, 5, 20, 20)
    assert not torch.allclose(logits, decoder(maps + 1, images)) and not torch.allclose(logits, decoder(maps, images + 1))


def test_a_decoder_learns_to_tell_nuclei_from_maps_alone():
    """Where only the map says what a place is, the decoder finds it; the best weights are those kept."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, (12, 4, 4))
    maps = np.eye(3, dtype=np.float32)[coarse].transpose(0, 3, 1, 2)
    true = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    material = segment_decoder.Material(
        torch.from_numpy(np.ascontiguousarray(maps)), torch.zeros(12, 3, 16, 16), torch.from_numpy(true)
    )
    protocol = Protocol("segmentation", 1, 60, 8, 0.02, n_slow_epochs=0, patience=100)
    rows, validation = np.arange(8), np.arange(8, 12)
    decoder, progress = segment_decoder.train(
        material, 3, rows, validation, protocol.schedule, np.random.default_rng(0), "test"
    )
    again = masks.mean_dice(segment_decoder.overlaps(decoder, material, validation, 2))
    assert again == pytest.approx(progress.best) and again > 0.8 and progress.ended == "limit"
    _, stopped = segment_decoder.train(
        material, 3, rows, validation, dataclasses.replace(protocol, patience=1).schedule, np.random.default_rng(0), "test"
    )
    assert stopped.ended == "early" and stopped.n_steps < 60


def test_maps_are_those_of_the_whole_patch():
    """A card that crops its input's border away for an embedding doesn't for a map; the map is the last block's, by place."""
    card = tiny_card(resize_px=48, crop_px=32)
    encoder, images = encoders.load(card), some_patches(2, 64)
    maps = segment.maps_of(encoder, images)
    assert maps.shape == (2, 24, 2, 2)
    plain = encoders.load(tiny_card())
    with torch.inference_mode():
        tokens = plain.model.patch_embed(plain.transform(images))
        tokens = plain.model._pos_embed(tokens)
        tokens = plain.model.blocks(plain.model.norm_pre(tokens))  # (2, 3 + 4, 24), not normalised
    assert torch.allclose(maps, tokens[:, 3:].transpose(1, 2).reshape(2, 24, 2, 2), atol=1e-5)


def test_a_convolutional_network_gives_maps_too():
    card = tiny_card(
        architecture="resnet18", arguments={}, n_prefix_tokens=0, readout="pooled", n_dims=512, n_parameters=11_176_512,
        resize_px=64, crop_px=64,
    )  # fmt: skip
    assert segment.maps_of(encoders.load(card), some_patches(1, 64)).shape == (1, 512, 2, 2)


def test_an_encoder_that_ends_at_layer_3_gives_that_layers_map():
    """The same network read out at its end has another one."""
    facts = {"architecture": "resnet18", "arguments": {}, "n_prefix_tokens": 0, "n_parameters": 11_176_512}
    card = tiny_card(**facts, readout="layer3", n_dims=256, resize_px=64, crop_px=64)
    encoder, images = encoders.load(card), some_patches(1, 64)
    maps = segment.maps_of(encoder, images)
    assert maps.shape == (1, 256, 4, 4)
    assert maps.mean(dim=(2, 3)).numpy() == pytest.approx(encoder.embed(images), abs=1e-5)


def test_an_encoder_without_a_grid_is_refused():
    card = tiny_card(arguments={"img_size": 16, "embed_dim": 24, "num_heads": 3, "depth": 1, "reg_tokens": 2},
                     resize_px=16, crop_px=16, n_parameters=25_896)  # fmt: skip
    with pytest.raises(EncoderError, match="no grid to segment by"):
        segment.maps_of(encoders.load(card), some_patches(1, 16))


# ---- runs ----


@pytest.fixture
def made(monkeypatch):
    """A task and an encoder."""
    use(monkeypatch, tiny_card())
    data = made_tasks.nuclei()
    made_tasks.use(monkeypatch, data)
    return data


def test_segmenting_keeps_counts_that_can_be_scored_again(made, tmp_path):
    run = study_tasks.judge(made_tasks.study(TASK), "synthetic_nuclei", "tiny", tmp_path, tmp_path / "results")
    dice = pd.read_parquet(run.path("dice.parquet"))
    tested = made.table.loc[made.table["split"] != "train", "item_id"].tolist()
    assert run.verify().done and len(dice) == 2 * 2 * len(tested) and set(dice["class"]) == {"dark", "red"}
    again = masks.dice(dice["n_px"], dice["n_predicted_px"], dice["n_both_px"])
    assert dice["dice"].to_numpy() == pytest.approx(again, nan_ok=True)
    fits = pd.read_csv(run.path("fits.csv"))
    of_val = dice[(dice["split"] == "val") & (dice["run"] == 1)].groupby("item_id")["dice"].mean().mean()
    assert fits["validation"][1] == pytest.approx(of_val), "the tested weights are the best on validation"
    with np.load(run.path("masks.npz")) as shown:
        assert set(shown["item_id"]) <= set(made.table.loc[made.table["split"] == "test", "item_id"])
        assert shown["image"].shape[1:] == (16, 16, 3) and shown["true"].shape == shown["predicted"].shape
        first = dice[(dice["run"] == 0) & (dice["item_id"] == shown["item_id"][0])].set_index("class")
        assert (shown["predicted"][0] == 1).sum() == first.loc["dark", "n_predicted_px"]
        assert (shown["true"][0] == 2).sum() == first.loc["red", "n_px"]


def test_a_killed_run_goes_on_and_two_runs_agree_bit_for_bit(made, tmp_path, monkeypatch):
    study = made_tasks.study(TASK)
    whole = study_tasks.judge(study, "synthetic_nuclei", "tiny", tmp_path, tmp_path / "a")
    original, calls = segment_decoder.train, []

    def killed(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(segment_decoder, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        study_tasks.judge(study, "synthetic_nuclei", "tiny", tmp_path, tmp_path / "b")
    torch.manual_seed(123)  # what was drawn before doesn't matter
    again = study_tasks.judge(study, "synthetic_nuclei", "tiny", tmp_path, tmp_path / "b")
    assert [title[-1] for title in calls] == ["0", "1", "1"], "the first decoder was kept"
    for name in ("dice.parquet", "masks.npz"):
        assert again.path(name).read_bytes() == whole.path(name).read_bytes()
    monkeypatch.setattr(segment_decoder, "train", None)
    assert study_tasks.judge(study, "synthetic_nuclei", "tiny", tmp_path, tmp_path / "b").done


def test_masks_that_dont_fit_are_refused(made, tmp_path):
    made.masks[2] = made.masks[2][:30]
    with pytest.raises(TaskError, match=r"the mask of 'item002' is \(30, 32\), its image \(32, 32\)"):
        study_tasks.judge(made_tasks.study(TASK), "synthetic_nuclei", "tiny", tmp_path, tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_nuclei_is_refused(made, split, tmp_path):
    for i in np.flatnonzero(made.table["split"] == split):
        made.masks[i] = np.where(made.masks[i] == 1, IGNORED, 0).astype(np.uint8)
    with pytest.raises(TaskError, match=f"'synthetic_nuclei': no mask of the split '{split}' holds a nucleus"):
        study_tasks.judge(made_tasks.study(TASK), "synthetic_nuclei", "tiny", tmp_path, tmp_path)


@pytest.mark.parametrize(("named", "by"), [("", "bicubic"), ("bilinear", "bilinear")])
def test_images_are_resized_as_the_task_says_or_else_as_the_encoder_has_it(named, by):
    data, card = made_tasks.nuclei(n=6), tiny_card(interpolation="bicubic")
    data.task = dataclasses.replace(data.task, interpolation=named)
    expected = [square(pixels, 20, by) for pixels in data.pixels]
    seen = dataclasses.replace(card, resize_px=20, crop_px=20)
    expected = preprocess.transform(np.stack(expected), seen, "cpu")
    assert torch.equal(segment.material_of(data, card, "cpu", 20).images, expected)
