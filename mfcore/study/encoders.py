"""A study's encoders: their cards, and the embeddings of its patches."""

from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import encoders, store
from mfcore.data import patches
from mfcore.encoders.card import EncoderCard, EncoderError, cards, released_cards, variants_of
from mfcore.encoders.catalogue import folder_card
from mfcore.study import data, pretrained
from mfcore.study.config import ConfigError, OwnEncoder, Settings


def card_of(study: Settings, name: str, results: Path = Path()) -> EncoderCard:
    """The card by which a study embeds with one of its encoders.

    That of the encoder (or snapshot) which the study pretrained, found in its ``results``; else as
    `encoders.card_of`. Under ``switches.encoder_input: released`` the card that does as the
    released code, where that departs. Raises EncoderError for a description that can't be, and for
    an encoder that isn't pretrained yet.
    """
    if not pretrained.is_of(study, name):
        return encoders.card_of(name, study.own_encoders, _variants(study, "embedding"))
    try:
        return folder_card(name, pretrained.folder_of(study, name, results))
    except (store.StoreError, ConfigError) as error:
        raise EncoderError(f"encoder {name!r} isn't there: {error}") from None


def training_card_of(study: Settings, architecture: str) -> EncoderCard:
    """The card by which a study trains an architecture, as `encoders.card_of`.

    The released code normalises otherwise for training than for embedding.
    """
    return encoders.card_of(architecture, study.own_encoders, _variants(study, "training"))


def _variants(study: Settings, purpose: str) -> dict[str, str]:
    return released_cards(purpose) if study.switches.encoder_input == "released" else {}


def has_card_here(study: Settings, name: str) -> bool:
    """Whether an encoder's card is known without a look at the user's weights or at the hub."""
    return name in cards() or pretrained.is_of(study, name)


# ---- embeddings ----


def embeddings_config(study: Settings, name: str, results: Path) -> dict:
    """What decides embeddings, besides the patches: the encoder's card and the crop it sees."""
    card = card_of(study, name, results)
    return {"card": card.identity(), "size_px": study.patches.size_px}


def find_embeddings(study: Settings, name: str, results: Path) -> store.Run:
    """The finished embeddings of the study's patches by an encoder.

    The current ones where the card isn't known here (`has_card_here`). Raises StoreError where
    there are none.
    """
    if not has_card_here(study, name):
        inputs = {"patches": data.find_patches(study, results).key}
        known = {"size_px": study.patches.size_px, **inputs}
        return store.find_run(results, "embeddings", name, known)
    try:
        made_of = embeddings_run(study, name, results).identity
    except EncoderError as error:  # not pretrained yet
        raise store.StoreError(str(error)) from error
    return store.find_run(results, **made_of)


def embeddings_run(study: Settings, name: str, results: Path) -> store.Run:
    """The run of an encoder's embeddings by the card that the study has now, made or not."""
    config = embeddings_config(study, name, results)
    source = {"patches": data.find_patches(study, results).key}
    return store.run_by(results, "embeddings", name, config, source)


def embed(
    study: Settings, name: str, results: Path, device: str = "cpu", batch_size: int = 0
) -> store.Run:
    """Embed the study's patches by one of its encoders, as `mfcore.encoders.embed.embed`.

    Raises StoreError without patches; EncoderError without the encoder, and where it is another
    one than the run was made with.
    """
    from mfcore.encoders import embed as procedure, features

    card, source, run = _opened(study, name, results)
    if run.done:
        if card.source != "features":
            procedure.check_finished(run, card, device)
        return run
    file, placing = source.path("patches.npy"), data.placing_of(study)
    table, images = patches.load(source)
    if card.source == "features":
        tolerance = next(entry.tolerance_px for entry in study.own_encoders if entry.name == name)
        corners = patches.corners(table, images.shape[1], placing)
        return features.fill(run, card, table, placing, corners, tolerance)
    return procedure.embed(file, table, card, run, placing, device, batch_size)


def embed_share(
    study: Settings,
    name: str,
    results: Path,
    share: int,
    n_shares: int,
    device: str = "cpu",
    batch_size: int = 0,
) -> store.Run:
    """Embed a share of the study's patches, as `mfcore.encoders.embed.embed_share`.

    Raises as `embed`.
    """
    from mfcore.encoders import embed as procedure

    card, source, run = _opened(study, name, results)
    if not run.done:
        patches.load(source)  # raises where they are damaged
    file, size_px = source.path("patches.npy"), study.patches.size_px
    return procedure.embed_share(file, card, run, share, n_shares, size_px, device, batch_size)


def _opened(study: Settings, name: str, results: Path) -> tuple[EncoderCard, store.Run, store.Run]:
    """An encoder's card, the run of the patches, and the opened run of their embeddings."""
    card, source = card_of(study, name, results), data.find_patches(study, results)
    known = {"size_px": study.patches.size_px}
    config, inputs = {"card": card.identity(), **known}, {"patches": source.key}
    return card, source, store.open_run(results, "embeddings", name, config, inputs, known | inputs)


def check_features(study: Settings, table: pd.DataFrame) -> None:
    """Raise EncoderError where embeddings made elsewhere don't match the study's patches.

    table: as `mfcore.study.data.looked_at`.
    """
    from mfcore.encoders import features

    for own in study.own_encoders:
        if own.features:
            place, placing = Path(own.features), data.placing_of(study)
            features.match(place, table, placing, own.tolerance_px)


def feature_files(study: Settings) -> list[Path]:
    """The files of the embeddings made elsewhere that stand as encoders of the study."""
    from mfcore.encoders import features

    places = [Path(one.features) for one in study.own_encoders if one.features]
    return [file for place in places if place.exists() for file in features.files_of(place)]


def all_of(study: Settings) -> list[str]:
    """The encoders that embed the study's patches: its own, then those of other libraries' ways."""
    return [*study.encoders, *variants_of(study.conventions)]


def embed_others(
    study: Settings,
    card: EncoderCard,
    source: store.Run,
    stored: store.Run,
    results: Path,
    device: str,
) -> np.ndarray:
    """Features float32 (n_patches, n_dims) of other patches, cut as the study's own, by the encoder
    of the study's embeddings ``source``.

    stored: the run of the patches. Embeds into a run of its own. Raises EncoderError where the
    encoder isn't any more the one of ``source``.
    """
    from mfcore.encoders import embed as procedure

    procedure.check_finished(source, card, device)  # the contract, and the canary where weights are
    config = embeddings_config(study, card.name, results)
    inputs = {"candidates": stored.key, "embeddings": source.key}
    run = store.open_run(results, "candidate-embeddings", card.name, config, inputs)
    if not run.done:
        table, placing = store.read_parquet(stored.path("labels.parquet")), data.placing_of(study)
        procedure.embed(stored.path("patches.npy"), table, card, run, placing, device)
    return procedure.load(run)[0]


def read_elsewhere(
    study: Settings, card: EncoderCard, stored: store.Run, elsewhere: OwnEncoder | None
) -> np.ndarray:
    """Features float32 (n_patches, n_dims) of other patches, made elsewhere as the study's were.

    stored: the run of the patches. elsewhere: where their features are. Raises EncoderError where
    there are none, where they don't match, and for another width than the study's own.
    """
    from mfcore.encoders import features

    if elsewhere is None:
        raise EncoderError(
            f"{card.name}: its embeddings were made elsewhere; mfcore can't embed other patches by"
            " it. Those of an external set's patches stand in that set's study file: encoders:"
            f" [{{name: {card.name}, features: FOLDER}}]"
        )
    place, table = Path(elsewhere.features), store.read_parquet(stored.path("labels.parquet"))
    values = features.match(place, table, data.placing_of(study), elsewhere.tolerance_px).features
    if values.shape[1] != card.n_dims:
        raise EncoderError(
            f"{place}: features have {values.shape[1]} dimensions, those of {card.name} in study"
            f" {study.name!r} have {card.n_dims}; take both from one encoder"
        )
    return values
