"""Encoders that a study pretrains, as others find them: by name or snapshot, and never taken for another's."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mfcore import encoders, store
from mfcore.analysis.encoders import cards
from mfcore.encoders import embed
from mfcore.study import data as study_data, encoders as study_encoders, predictions as study_predictions, pretrained
from mfcore.study.config import ConfigError, Crops, Data, OnlinePatches, Patches, Pretraining, Settings, Splits
from mfcore.study.study import Study

ARGUMENTS = {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 1}
N_PARAMETERS = 25_872
WHICH = Pretraining(
    "own",
    architecture="vit_tiny_patch16_224",
    arguments=ARGUMENTS,
    crops=Crops(32, 16, 2),
    patches=OnlinePatches(32, (0.25,)),
    n_steps=10,
    batch_size=2,
    n_snapshots=2,
)
STUDY = Settings(
    "t",
    "t",
    Data("synthetic"),
    patches=Patches(32),
    splits=Splits(n_folds=1, sizes=(1.0,), by_domain=False),
    encoders=("own",),
    pretraining=(WHICH,),
)


def pretrain(results, seed: int = 0, study: Settings = STUDY) -> store.Run:
    """Leave a finished pretraining behind, with weights drawn by ``seed``."""
    from safetensors.torch import save_file

    inputs = {"slides": f"those of {seed}"}
    run = store.open_run(results, pretrained.STAGE, "own", pretrained.config_of(study, "own"), inputs)
    card = {"architecture": "vit_tiny_patch16_224", "arguments": ARGUMENTS, "n_dims": 24, "n_parameters": N_PARAMETERS}
    card |= {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_px": 32, "crop_px": 32, "licence": "none", "facts": "for a test"}
    files = []
    for step in pretrained.steps_of(WHICH):
        model = encoders.build_network(_drawn(), pretrained=False, seed=seed + step)
        state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("head.")}
        folder = pretrained.snapshot_folder(run.folder, step)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "weights.safetensors")
        store.write_json(folder / "card.json", card)
        files += [str((folder / name).relative_to(run.folder)) for name in ("card.json", "weights.safetensors")]
    return run.finish(files)


def _drawn() -> encoders.EncoderCard:
    facts = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "licence": "none", "facts": "for a test", "resize_px": 32, "crop_px": 32}
    where = {"source": "random", "architecture": "vit_tiny_patch16_224", "arguments": ARGUMENTS}
    return encoders.EncoderCard("drawn", "none", n_dims=24, n_parameters=N_PARAMETERS, **where, **facts)


@pytest.fixture
def results(tmp_path):
    """The patches of a study, of which each is grey."""
    run = store.open_run(tmp_path, "patches", STUDY.name, study_data.patches_config(STUDY), {"made": "for a test"})
    ids = np.arange(40)
    columns = {
        "slide_id": [f"s{i // 4}" for i in ids],
        "case_id": [f"s{i // 4}" for i in ids],
        "domain": "lung",
        "label": ids % 2,
    }
    columns |= {"patch_x_l0_px": 100.0, "patch_y_l0_px": 200.0, "um_per_px": 0.25}
    store.write_parquet(run.path("labels.parquet"), pd.DataFrame({"patch_id": ids, **columns}))
    made = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.save(run.path("patches.npy"), made)
    run.finish(["labels.parquet", "patches.npy"])
    return tmp_path


def test_snapshots_are_spread_evenly_and_the_last_is_the_encoder(results):
    assert pretrained.steps_of(replace(WHICH, n_steps=10, n_snapshots=3)) == [3, 6, 10]
    assert pretrained.snapshots_of(WHICH) == ["own@5", "own@10"]
    assert pretrained.is_of(STUDY, "own") and pretrained.is_of(STUDY, "own@5") and not pretrained.is_of(STUDY, "owned")
    pretrain(results)
    last, first = (pretrained.folder_of(STUDY, name, results) for name in ("own", "own@5"))
    assert last == pretrained.folder_of(STUDY, "own@10", results) != first
    with pytest.raises(ConfigError, match=r"there are snapshots after \[5, 10\] steps; name one of \['own@5', 'own@10'\]"):
        pretrained.folder_of(STUDY, "own@6", results)


def test_one_that_is_not_pretrained_yet_says_so_with_the_notebook_to_run(results):
    message = r"'own' isn't there: no finished 'pretrain' run 'own' .* notebook 08_pretrain with encoder = 'own'"
    with pytest.raises(encoders.EncoderError, match=message):
        study_encoders.embed(STUDY, "own", results)
    with pytest.raises(store.StoreError, match=message):
        study_encoders.find_embeddings(STUDY, "own", results)
    pretrain(results)
    changed = replace(STUDY, pretraining=(replace(WHICH, n_steps=20),))
    with pytest.raises(encoders.EncoderError, match=r"pretraining.n_steps was 10, is 20. Pretrain it: notebook 08_pretrain"):
        study_encoders.embed(changed, "own", results)


def test_it_is_embedded_like_any_other_and_its_snapshots_apart(results):
    pretrain(results)
    last, first = study_encoders.embed(STUDY, "own", results), study_encoders.embed(STUDY, "own@5", results)
    features, _ = embed.load(last)
    assert features.shape == (40, 24) and not (features == embed.load(first)[0]).any()
    assert (
        study_encoders.find_embeddings(STUDY, "own", results).key == last.key
        and study_encoders.find_embeddings(STUDY, "own@5", results).key == first.key
    )


def test_pretrained_again_it_is_not_taken_for_what_it_was(results):
    """Same config, other slides: other weights, so that neither embeddings nor probe of before are the encoder's."""
    pretrain(results, seed=0)
    before = study_encoders.embed(STUDY, "own", results)
    study_data.write_splits(STUDY, results)
    config, source = STUDY.probe.linear, {"splits": study_data.find_splits(STUDY, results).key}
    probe = store.open_run(results, "probe", "own", config, source | {"embeddings": before.key}, config | source)
    store.write_parquet(probe.path("predictions.parquet"), pd.DataFrame({"score": [0.5]}))
    probe.finish(["predictions.parquet"])
    assert study_predictions.current_runs(STUDY, results)["own"].key == probe.key
    for record in results.glob("pretrain-*/run.json"):
        store.write_json(record, {**store.read_json(record), "finished": "2000-01-01T00:00:00+00:00"})
    pretrain(results, seed=1)
    assert "own" not in study_predictions.current_runs(STUDY, results)
    with pytest.raises(store.StoreError, match=r"card\.sha256 was"):
        study_encoders.find_embeddings(STUDY, "own", results)
    after = study_encoders.embed(STUDY, "own", results)
    assert after.key != before.key and not (embed.load(after)[0] == embed.load(before)[0]).any()


def test_the_exhibit_on_encoders_has_it_before_and_after(results):
    before = cards.encoders_table(Study(STUDY, results)).set_index("encoder").loc["own"]
    assert before["group"] == "own" and "notebook 08_pretrain" in before["state"] and before["is"] == "not here"
    pretrain(results)
    study_encoders.embed(STUDY, "own", results)
    after = cards.encoders_table(Study(STUDY, results)).set_index("encoder").loc["own"]
    assert after["is"] == "embedded" and after["weights"] == "pretrained by this study"
    assert not after.astype(str).str.contains(str(results), regex=False).any()


def test_where_it_lies_decides_nothing(results, tmp_path_factory):
    """Results that are moved keep their embeddings."""
    pretrain(results)
    run = study_encoders.embed(STUDY, "own", results)
    there = tmp_path_factory.mktemp("moved") / "results"
    results.rename(there)
    assert study_encoders.find_embeddings(STUDY, "own", there).folder.name == run.folder.name
