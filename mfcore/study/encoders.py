"""A study's encoders: their cards, and the embeddings of its patches."""

from pathlib import Path

from mfcore import encoders, store
from mfcore.data import patches
from mfcore.encoders.card import EncoderCard, EncoderError, cards, released_cards, variants_of
from mfcore.encoders.catalogue import folder_card
from mfcore.study import data, pretrained
from mfcore.study.config import ConfigError, Settings


def card_of(study: Settings, name: str, results: str | Path | None = None) -> EncoderCard:
    """The card by which a study embeds with one of its encoders.

    The study's own record where it gives one, that of the encoder (or snapshot) which the study pretrained, found in its
    ``results``, else as `encoders.card_of` has it; or, under ``switches.encoder_input: released``, the variant that does as the
    released code, where that departs. Raises EncoderError for a record that can't be, naming it, and for an encoder that isn't
    pretrained yet.
    """
    if not pretrained.is_of(study, name):
        return encoders.card_of(name, study.own_encoders, _variants(study, "embedding"))
    if name.partition("@")[0] in cards():
        raise EncoderError(f"pretraining[{name.partition('@')[0]}].name: the name of a known encoder; call it something else")
    if results is None:
        raise EncoderError(f"encoder {name!r} is pretrained by the study: its card is among the study's results")
    try:
        return folder_card(name, pretrained.folder_of(study, name, results))
    except (store.StoreError, ConfigError) as error:
        raise EncoderError(f"encoder {name!r} isn't there: {error}") from None


def training_card_of(study: Settings, architecture: str) -> EncoderCard:
    """The card by which a study trains an architecture; as `card_of`, but for how the released code normalises for training."""
    return encoders.card_of(architecture, study.own_encoders, _variants(study, "training"))


def _variants(study: Settings, purpose: str) -> dict[str, str]:
    return released_cards(purpose) if study.switches.encoder_input == "released" else {}


def embeddings_config(study: Settings, name: str, results: str | Path) -> dict:
    """What decides embeddings, besides the patches: the encoder's card and the crop that it sees."""
    return {"card": card_of(study, name, results).identity(), "size_px": study.patches.size_px}


def find_embeddings(study: Settings, name: str, results: str | Path) -> store.Run:
    """The finished embeddings of the study's patches by an encoder; raises StoreError where there are none.

    No model and no hub is asked: of an encoder without a card of its own, those that were opened last.
    """
    source = {"patches": data.find_patches(study, results).key}
    if name in [*encoders.names(), *(own.name for own in study.own_encoders)] or pretrained.is_of(study, name):
        return store.find_run(results, "embeddings", name, embeddings_config(study, name, results), source)
    return store.find_known(results, "embeddings", name, {"size_px": study.patches.size_px, **source})


def embed(study: Settings, name: str, results: str | Path, device: str = "cpu", batch_size: int = 0) -> store.Run:
    """Embed the study's patches by one of its encoders, as `mfcore.encoders.embed.embed`.

    Raises StoreError where the patches aren't there, EncoderError where the encoder can't be had or isn't any more the one that
    the run, begun or finished, was made with.
    """
    from mfcore.encoders import embed as procedure

    card, (source, run) = card_of(study, name, results), _open(study, name, results)
    if run.done:
        procedure.check_finished(run, card, device)
        return run
    table, _ = patches.load(source)
    return procedure.embed(source.path("patches.npy"), table, card, run, data.placing_of(study), device, batch_size)


def embed_share(
    study: Settings,
    name: str,
    results: str | Path,
    share: int,
    n_shares: int,
    device: str = "cpu",
    batch_size: int = 0,
) -> store.Run:
    """Embed a share of the study's patches, as `mfcore.encoders.embed.embed_share`; raises what `embed` raises."""
    from mfcore.encoders import embed as procedure

    card, (source, run) = card_of(study, name, results), _open(study, name, results)
    if not run.done:
        patches.load(source)  # which says what is wrong with them
    file, size_px = source.path("patches.npy"), study.patches.size_px
    return procedure.embed_share(file, card, run, share, n_shares, size_px, device, batch_size)


def _open(study: Settings, name: str, results: str | Path) -> tuple[store.Run, store.Run]:
    """The runs of the patches and of their embeddings."""
    source = data.find_patches(study, results)
    config, inputs = embeddings_config(study, name, results), {"patches": source.key}
    known = {"size_px": study.patches.size_px, **inputs}
    return source, store.open_run(results, "embeddings", name, config, inputs, known)


def all_of(study: Settings) -> list[str]:
    """The encoders that embed the study's patches: its own, then those of other libraries' ways."""
    return [*study.encoders, *variants_of(study.conventions)]
