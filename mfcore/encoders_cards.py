"""Cards of encoders that aren't in the table: a study's own records, folders, and what timm or a hub says of a model."""

import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfcore.cards import CARDS, EncoderCard
from mfcore.config import OwnEncoder, as_dict
from mfcore.encoders_build import create, n_parameters, width
from mfcore.store import file_sha256, read_json
from mfcore.weights import EncoderError, hub_file


def own_card(record: OwnEncoder) -> EncoderCard:
    """The card of a study's own record; what it doesn't say of the network is read off the network, built without weights.

    Raises EncoderError for a record that can't be, naming encoder and key.
    """
    return _own_card(json.dumps(as_dict(record), sort_keys=True))


@functools.lru_cache(maxsize=64)
def _own_card(text: str) -> EncoderCard:
    record = json.loads(text)
    name, like, weights = record["name"], record.pop("like"), record.pop("weights")
    if name in CARDS:
        raise EncoderError(f"encoder {name!r} of the study has the name of a known one; call it something else")
    said = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items() if v is not None}
    if like:
        return _departing(name, like, weights, said)
    lacking = [key for key in ("architecture", "mean", "std") if key not in said]
    if lacking or not weights:
        lacking += [] if weights else ["weights"]
        raise EncoderError(f"encoder {name!r} lacks {', '.join(lacking)}; or say 'like: NAME' of a known one and what differs")
    said |= _where(name, weights)
    built = _built(name, said)
    return _card(name, {"licence": "its owner's", "facts": "the study's own record", **built, **said})


def _departing(name: str, like: str, weights: str, said: dict[str, Any]) -> EncoderCard:
    """The card ``like``, but for what a record says otherwise."""
    if like not in CARDS:
        near = difflib.get_close_matches(like, CARDS, n=3)
        raise EncoderError(f"encoder {name!r}: like {like!r}, which has no card; the nearest names are {near}")
    base = {field.name: getattr(CARDS[like], field.name) for field in dataclasses.fields(EncoderCard)}
    departs = ", ".join(f"{key} {value}" for key, value in said.items() if key not in ("name", "departs"))
    said = {"variant_of": like, "departs": f"the study's own: {departs}" if departs else "the study's own name", **said}
    said |= {**_where(name, weights), "revision": _where(name, weights).get("revision", "")} if weights else {}
    if {"architecture", "arguments", "readout"} & set(said):
        built = _built(name, {**base, **said})
        base |= built
    return _card(name, {**base, **said})


def _where(name: str, weights: str) -> dict[str, Any]:
    """Source, identifier and the like of weights given as a file, a folder with one, a repository, or "random"."""
    if weights == "random":
        return {"source": "random", "identifier": "none", "revision": "seed 0"}
    path = Path(weights).expanduser()
    if path.is_absolute():
        if not path.is_file():
            raise EncoderError(f"encoder {name!r}: its weights {path} aren't there")
        return {"source": "file", "identifier": str(path), "files": (path.name,), "sha256": file_sha256(path), "revision": ""}
    repository, _, revision = weights.partition("@")
    if repository.count("/") != 1:
        raise EncoderError(
            f"encoder {name!r}: weights {weights!r} must be OWNER/REPOSITORY[@REVISION] on the hub, a path that begins with / "
            "or ./ (from the study file) to safetensors or PyTorch tensors under timm's names, or random"
        )
    return {"source": "hub", "identifier": repository, "revision": revision, "sha256": ""}


def _built(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, prefix tokens, readout and dimension of an architecture, from building it on the meta device."""
    import timm
    import torch

    architecture = said["architecture"]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise EncoderError(f"encoder {name!r}: timm has no architecture {architecture!r}; the nearest names are {near}")
    try:
        with torch.device("meta"):
            model = create(architecture, said.get("arguments", {}))
        n_prefix = int(getattr(model, "num_prefix_tokens", 0))
        readout = said.get("readout") or ("class" if n_prefix else "pooled")
        found = {"n_prefix_tokens": n_prefix, "readout": readout, "n_dims": width(model, readout)}
    except (TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise EncoderError(f"encoder {name!r}: {architecture} can't be built so: {error}") from error
    return found | {"n_parameters": n_parameters(model)}


def _card(name: str, said: Mapping[str, Any]) -> EncoderCard:
    try:
        return EncoderCard(**said)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"encoder {name!r}: {error}") from error


def folder_card(name: str, folder: Path) -> EncoderCard:
    """The card in ``folder/card.json``, with the weights' own checksum."""
    known = {field.name for field in dataclasses.fields(EncoderCard)}
    if not (folder / "card.json").is_file():
        raise EncoderError(f"encoder {name!r}: {folder / 'card.json'} is missing; it stands beside weights.safetensors")
    content = read_json(folder / "card.json")
    if unknown := sorted(set(content) - known):
        raise EncoderError(f"{folder / 'card.json'}: unknown keys {unknown}; known: {sorted(known)}")
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise EncoderError(f"encoder {name!r}: {weights} is missing")
    tuples = {key: tuple(content[key]) for key in ("mean", "std", "um_per_px") if key in content}
    found = {"name": name, "source": "folder", "identifier": str(folder), "files": (weights.name,)}
    try:
        return EncoderCard(**{**content, **tuples, **found, "sha256": file_sha256(weights)})
    except (TypeError, ValueError) as error:
        raise EncoderError(f"{folder / 'card.json'}: {error}") from error


@functools.cache
def timm_card(name: str, scheme: str, rest: str) -> EncoderCard:
    """A card from what timm, or a repository in timm's format, says of a model; n_dims from building it without weights."""
    import torch

    facts = _hub_facts(rest) if scheme == "hf-hub" else _timm_facts(rest, weights=scheme == "timm")
    if not all(facts.get(key) for key in ("mean", "std", "input_size")):
        raise EncoderError(f"{name!r}: mean, std or input size aren't known, so there is no saying what it should see")
    size_px = int(facts["input_size"][-1])
    with torch.device("meta"):
        model = create(facts["architecture"], facts["arguments"]).eval()
        embedding = model(torch.zeros(1, 3, size_px, size_px))
    if embedding.ndim != 2:
        raise EncoderError(
            f"{name!r} gives {tuple(embedding.shape)} for one image, not one vector; it needs a card with a readout"
        )
    return EncoderCard(
        name=name,
        source="random" if scheme == "random" else "hub",
        identifier=facts["architecture"] if scheme == "random" else facts["repository"],
        revision=facts["revision"],
        architecture=facts["architecture"],
        arguments=facts["arguments"],
        resize_px=size_px,
        crop_px=size_px,
        interpolation=facts["interpolation"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        n_prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        readout="pooled",
        n_dims=int(embedding.shape[1]),
        n_parameters=n_parameters(model),
        licence=str(facts.get("license") or "see the model's page"),
        facts="timm's configuration; the whole patch, without the crop that photographs get",
    )


def _hub_facts(rest: str) -> dict[str, Any]:
    """What ``config.json`` of the repository OWNER/NAME[@REVISION] says; its commit is the revision."""
    repository, _, revision = rest.partition("@")
    path = hub_file(repository, ["config.json"], revision)
    config = read_json(path)
    if "architecture" not in config:
        raise EncoderError(f"{repository}: its config.json names no architecture of timm's; it needs a card of its own")
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
    known = {"interpolation": "bicubic", **config, **config.get("pretrained_cfg", {})}
    return {**known, "repository": repository, "revision": path.parent.name, "arguments": arguments}


def _timm_facts(rest: str, weights: bool) -> dict[str, Any]:
    """What timm says of ``rest``, an architecture with or without the tag of published weights."""
    import timm

    architecture = rest.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise EncoderError(f"timm has no model {architecture!r}; the nearest names are {near}")
    try:
        known = timm.get_pretrained_cfg(rest)
    except RuntimeError:
        known = None
    if known is None or (weights and not known.hf_hub_id):
        tags = timm.list_pretrained(f"{architecture}.*")
        raise EncoderError(f"timm has no weights {rest!r} on the hub, only {tags}; without weights: 'random:{architecture}'")
    revision = "" if weights else "seed 0"
    return {**known.to_dict(), "repository": known.hf_hub_id, "revision": revision, "arguments": {}}
