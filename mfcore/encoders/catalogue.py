"""From an encoder's name to its card.

A name is one of `names`, or says where to look: ``timm:NAME`` (with timm's ImageNet or other
published weights), ``hf-hub:OWNER/REPOSITORY[@REVISION]`` (timm's format), ``folder:PATH``
(``card.json`` and ``weights.safetensors``), or ``random:ARCHITECTURE`` (timm's, no weights); or the
user describes it by an `OwnEncoder`.
"""

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from mfcore.encoders import features
from mfcore.encoders.architecture import check_name, create, facts_of
from mfcore.encoders.card import (
    HUB,
    Arguments,
    EncoderCard,
    EncoderError,
    Layout,
    card_from,
    cards,
    unavailable,
    without_card,
)
from mfcore.encoders.features import TOLERANCE_PX
from mfcore.encoders.readout import READOUTS
from mfcore.encoders.weights import hub_file
from mfcore.store import file_sha256, read_json
from mfcore.store.files import Fingerprints
from mfcore.store.options import Flag, Number, Positive, Whole, nearest, options

SCHEMES = ("timm", "hf-hub", "folder", "random")
WEIGHTS_FILES = (".safetensors", ".onnx", ".pth", ".pt", ".bin", ".ckpt")
NEW = {"licence": "its owner's", "facts": "the study's own record"}  # of a new encoder
_SEEN = Fingerprints()  # of files of weights, which a process reads once
# what a card says that building the network gives
OF_THE_NETWORK = ("n_prefix_tokens", "n_dims", "n_parameters")


def encoder_name(signs: str) -> AfterValidator:
    """Refuses what can't be an encoder's name: "random", and a text with one of ``signs``.

    A pretraining may start from "random". A ":" ends the place where an encoder is looked for; "@"
    begins the step of a snapshot.
    """

    def check(name: str) -> str:
        if not name.strip() or name == "random" or set(signs) & set(name):
            raise ValueError(
                f"{name!r}: an encoder's name isn't 'random' and has none of {' '.join(signs)}"
            )
        return name

    return AfterValidator(check)


def path_of(weights: str) -> Path | None:
    """The file that ``weights`` names; None where it names none."""
    is_path = weights.startswith(("/", "./", "../", "~")) or weights.endswith(WEIGHTS_FILES)
    return Path(weights).expanduser() if is_path else None


@options
class OwnEncoder:
    """An encoder that the user describes: a new one, or a known one under other conventions.

    name: its name. weights: OWNER/REPOSITORY[@REVISION] on the hub, "random", or a file of tensors
    under timm's names (``tensors`` says else); a relative path starts from the study file's folder.
    like: a known encoder, whose card holds for every key that is left out. The
    other keys are those of the encoders' cards (`mfcore.encoders.card`); a new encoder needs
    architecture, mean and std; dimension, readout and parameters are read off the architecture.
    features: instead of all of these, a folder or file of embeddings made elsewhere
    (`mfcore.encoders.features`). tolerance_px: how far, in level-0 px, the centre of a patch may
    lie from that of its features.
    """

    name: Annotated[str, encoder_name(":@")]
    like: str = ""
    weights: str = ""
    architecture: str | None = None
    arguments: Arguments | None = None
    mean: tuple[Number, ...] | None = None
    std: tuple[Number, ...] | None = None
    resize_px: Whole | None = None
    crop_px: Whole | None = None
    interpolation: str | None = None
    readout: str | None = None
    n_prefix_tokens: Whole | None = None
    n_dims: Whole | None = None
    n_parameters: Whole | None = None
    um_per_px: tuple[Number, ...] | None = None
    evidence: str | None = None
    learnt_from: str | None = None
    precision: str | None = None
    licence: str | None = None
    gated: Flag | None = None
    facts: str | None = None
    departs: str | None = None
    source: str | None = None
    files: tuple[str, ...] | None = None
    sha256: str | None = None
    tensors: Layout | None = None
    features: str = ""
    tolerance_px: Positive = TOLERANCE_PX

    @property
    def weights_path(self) -> Path | None:
        """The file or folder that ``weights`` or ``features`` names; None where they name none."""
        return Path(self.features) if self.features else path_of(self.weights)


def names() -> list[str]:
    """The encoders that have a card of their own."""
    return list(cards())


def card_of(
    name: str, own: Iterable[OwnEncoder] = (), variants: Mapping[str, str] = {}
) -> EncoderCard:
    """The card of encoder ``name``.

    own: encoders that the user describes; they go before the known ones. variants: by the name of a
    known encoder, the known one that stands in for it (`mfcore.encoders.card.released_cards`). For
    ``timm:`` the facts are timm's, for ``hf-hub:`` the repository's ``config.json``, which is
    fetched. Raises EncoderError for a name that nobody knows, with the nearest ones, for a
    published encoder without a card, with the reason, and for a description that can't be.
    """
    for record in own:
        if record.name == name:
            return own_card(record)
    name = variants.get(name, name)
    if name in cards():
        return cards()[name]
    scheme, _, rest = name.partition(":")
    if scheme not in SCHEMES or not rest:
        if name in unavailable():
            raise EncoderError(without_card(name))
        hint = nearest(name, [*cards(), *unavailable()]) or f"; there are {', '.join(cards())}"
        raise EncoderError(
            f"unknown encoder {name!r}{hint}; any other by {', '.join(f'{s}:...' for s in SCHEMES)}"
        )
    if scheme == "folder":
        return folder_card(name, Path(rest))
    return timm_card(name, scheme, rest)


# ---- encoders without an entry of their own ----


def own_card(record: OwnEncoder) -> EncoderCard:
    """The card of an encoder that the user describes.

    What the description lacks of the network is read off the network, built without weights. Raises
    EncoderError for a record that can't be, naming encoder and key.
    """
    place = f"encoder {record.name!r}"
    if record.name in cards():
        raise EncoderError(f"{place} of the study has the name of a known one; call it otherwise")
    if record.features:
        return _card_of_features(record, place)
    is_on_hub = record.weights not in ("", "random") and record.weights_path is None
    if record.source and not (is_on_hub and record.source in HUB):
        raise EncoderError(
            f"{place}: source {record.source!r} must be one of {list(HUB)}, of weights on the hub"
        )
    given = {
        key: value
        for key, value in vars(record).items()
        if value is not None and key not in ("like", "weights", "features", "tolerance_px")
    }
    facts = _like(record, given, place) if record.like else dict(NEW)
    if record.weights:
        facts |= _where(record, facts.get("source", "hub"), place)
    facts |= given
    needed = {"architecture": "", "mean": "", "std": "", "source": "weights"}
    if lacking := [word or key for key, word in needed.items() if key not in facts]:
        raise EncoderError(
            f"{place} lacks {', '.join(lacking)}; or say 'like: NAME' and what differs"
        )
    if not {*OF_THE_NETWORK, "readout"} <= set(facts):
        facts = _built(place, facts) | facts
    return card_from(facts, place)


def _card_of_features(record: OwnEncoder, place: str) -> EncoderCard:
    """The card of embeddings made elsewhere: their files' checksum and width, and no network."""
    others = {"name", "features", "tolerance_px", "licence", "um_per_px", "evidence"}
    if also := [key for key, value in vars(record).items() if value and key not in others]:
        raise EncoderError(
            f"{place}: features are made elsewhere, so that {', '.join(also)} mean nothing; remove"
            " these keys"
        )
    try:
        n_dims, sha256 = features.contract(Path(record.features))
    except EncoderError as error:
        raise EncoderError(f"{place}: {error}") from None
    facts = {
        "name": record.name,
        "source": "features",
        "identifier": record.features,
        "sha256": sha256,
        "architecture": "none",
        "n_dims": n_dims,
        "n_parameters": 0,
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "n_prefix_tokens": 0,
        "readout": "pooled",
        "licence": record.licence or "its maker's",
        "facts": "embeddings made elsewhere",
        "um_per_px": record.um_per_px or (),
        "evidence": record.evidence or "",
    }
    return card_from(facts, place)


def _like(record: OwnEncoder, given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What ``record`` takes over from the card that it is like; it says ``given`` itself."""
    if record.like in unavailable():
        raise EncoderError(f"{place}: like: {without_card(record.like)}")
    if (known := cards().get(record.like)) is None:
        hint = nearest(record.like, cards())
        raise EncoderError(f"{place}: like {record.like!r}, which has no card{hint}")
    ways = [f"{key} {value}" for key, value in given.items() if key in known.identity()]
    ways += [f"weights {record.weights}"] if record.weights else []
    is_another = {"architecture", "arguments", "readout"} & set(given)
    dropped = OF_THE_NETWORK if is_another else ()
    facts = {key: value for key, value in vars(known).items() if key not in dropped}
    if record.weights:
        facts["learnt_from"] = ""
    departs = f"the study's own: {', '.join(ways)}" if ways else "the study's own name"
    return facts | {"variant_of": record.like, "departs": departs}


def _where(record: OwnEncoder, source: str, place: str) -> dict[str, Any]:
    """Where a record's weights are, as a card says it; ``source`` is their format on the hub."""
    if record.weights == "random":
        where = {"source": "random", "identifier": "none", "revision": "seed 0", "sha256": ""}
    elif record.weights_path is not None:
        where = {"source": "file", "revision": "", **_file(record, place)}
    else:
        repository, _, revision = record.weights.partition("@")
        if repository.count("/") != 1:
            raise EncoderError(
                f"{place}: weights {record.weights!r} must be OWNER/REPOSITORY[@REVISION] on the"
                f" hub, random, or a file that ends with one of {', '.join(WEIGHTS_FILES)}"
            )
        where = {"identifier": repository, "revision": revision, "sha256": ""}
        where |= {"source": source if source in HUB else "hub", "files": EncoderCard.files}
    if where["source"] not in HUB:  # unless the record says else, under timm's names
        where["tensors"] = EncoderCard.tensors
    return where


def _file(record: OwnEncoder, place: str) -> dict[str, Any]:
    """The record's file of weights with its checksum."""
    path, sha256 = record.weights_path.resolve(), record.sha256
    if not sha256 and not path.is_file():
        raise EncoderError(
            f"{place}: its weights {path} aren't there; where the record gives their sha256, they"
            " may be absent until they are needed"
        )
    sha256 = sha256 or _SEEN.of(path, whole=True)[1]
    return {"identifier": str(path), "files": (path.name,), "sha256": sha256}


def _built(place: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters, prefix tokens, readout and dimension of an architecture.

    It is built on the meta device.
    """
    architecture = facts["architecture"]
    arguments = json.dumps(facts.get("arguments", {}), sort_keys=True)
    try:
        return _built_once(architecture, arguments, facts.get("readout", ""))
    except (TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise EncoderError(f"{place}: {architecture} can't be built so: {error}") from error


@functools.lru_cache(maxsize=64)
def _built_once(architecture: str, arguments: str, readout: str) -> Mapping[str, Any]:
    import torch

    with torch.device("meta"):
        model = create(architecture, json.loads(arguments))
    readout = readout or ("class" if getattr(model, "num_prefix_tokens", 0) else "pooled")
    if readout not in READOUTS:  # the card refuses it
        return dict.fromkeys(OF_THE_NETWORK, 1)
    return {"readout": readout, **facts_of(model, readout)}


def folder_card(name: str, folder: Path) -> EncoderCard:
    """The card in ``folder/card.json``, with the weights' checksum; raises EncoderError without."""
    file, weights = folder / "card.json", folder / "weights.safetensors"
    for path in (file, weights):
        if not path.is_file():
            raise EncoderError(
                f"encoder {name!r}: {path} is missing; a folder has {file.name} and {weights.name}"
            )
    place = {"name": name, "source": "folder", "identifier": str(folder), "files": (weights.name,)}
    return card_from({**read_json(file), **place, "sha256": file_sha256(weights)}, str(file))


@functools.cache
def timm_card(name: str, scheme: str, rest: str) -> EncoderCard:
    """A card of what timm or a repository in its format says; raises EncoderError for a gap."""
    facts = _hub_facts(rest) if scheme == "hf-hub" else _timm_facts(scheme, rest)
    if not all(facts.get(key) for key in ("mean", "std", "input_size")):
        raise EncoderError(
            f"{name!r}: mean, std or input size isn't known; describe the encoder in a study file"
        )
    taken = ("identifier", "revision", "architecture", "arguments", "interpolation", "mean", "std")
    card = {
        "name": name,
        "source": "random" if scheme == "random" else "hub",
        **{key: facts[key] for key in taken},
        **dict.fromkeys(("resize_px", "crop_px"), int(facts["input_size"][-1])),
        "readout": "pooled",
        "licence": str(facts.get("license") or "see the model's page"),
        "facts": "timm's configuration; the whole patch, without the crop that photographs get",
    }
    return card_from({**_built(name, card), **card}, name)


def _hub_facts(rest: str) -> dict[str, Any]:
    """What ``config.json`` of OWNER/NAME[@REVISION] says; its commit is the revision."""
    repository, _, revision = rest.partition("@")
    path = hub_file(repository, ["config.json"], revision)
    config = read_json(path)
    if "architecture" not in config:
        raise EncoderError(
            f"{repository}: its config.json names no architecture of timm's; it needs a card"
        )
    arguments = dict(config.get("model_args") or {})
    arguments.pop("num_classes", None)
    place = {"identifier": repository, "revision": path.parent.name, "arguments": arguments}
    return {"interpolation": "bicubic", **config, **config.get("pretrained_cfg", {}), **place}


def _timm_facts(scheme: str, rest: str) -> dict[str, Any]:
    """What timm says of ``rest``, an architecture with or without the tag of published weights."""
    import timm

    architecture = rest.partition(".")[0]
    check_name(architecture)
    known = None
    with contextlib.suppress(RuntimeError):
        known = timm.get_pretrained_cfg(rest)
    if scheme == "random" and known is not None:
        place = {"identifier": known.architecture, "revision": "seed 0"}
    elif known is not None and known.hf_hub_id:
        place = {"identifier": known.hf_hub_id, "revision": ""}
    else:
        tags = timm.list_pretrained(f"{architecture}.*")
        without = f"without weights: 'random:{architecture}'"
        raise EncoderError(f"timm has no weights {rest!r} on the hub, only {tags}; {without}")
    return {**known.to_dict(), **place, "arguments": {}}
