"""Encoders: from a name to a frozen network, and from patches to embeddings.

A name is one of `names`, or says where to look: ``timm:NAME`` (with timm's ImageNet or other published weights),
``hf-hub:OWNER/REPOSITORY[@REVISION]`` (timm's format), ``folder:PATH`` (``card.json`` and ``weights.safetensors``), or
``random:ARCHITECTURE`` (timm's, no weights).
"""

import contextlib
import difflib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mfcore import preprocess
from mfcore.cards import CARDS, EncoderCard
from mfcore.rng import stream_seed
from mfcore.store import file_sha256, read_json
from mfcore.weights import EncoderError, hub_file, read_weights

if TYPE_CHECKING:
    import torch

__all__ = [
    "Encoder",
    "EncoderCard",
    "EncoderError",
    "build_network",
    "card",
    "card_table",
    "choose_device",
    "load",
    "names",
]

SCHEMES = ("timm", "hf-hub", "folder", "random")


def names() -> list[str]:
    """The encoders that have a card of their own."""
    return list(CARDS)


def card(name: str) -> EncoderCard:
    """The card of encoder ``name``.

    For ``timm:`` the facts are timm's, for ``hf-hub:`` the repository's ``config.json``, which is fetched. Raises
    EncoderError for a name that nobody knows, with the nearest ones.
    """
    if name in CARDS:
        return CARDS[name]
    scheme, _, rest = name.partition(":")
    if scheme not in SCHEMES or not rest:
        near = difflib.get_close_matches(name, CARDS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(CARDS)}"
        raise EncoderError(f"unknown encoder {name!r}: {hint}; any other by {', '.join(f'{s}:...' for s in SCHEMES)}")
    if scheme == "folder":
        return _folder_card(name, Path(rest))
    return _timm_card(name, scheme, rest)


def card_table(this: EncoderCard) -> pd.DataFrame:
    """A card for reading: columns ``fact, value``, numbers with their units."""
    resolution = " / ".join(f"{value:g}" for value in this.um_per_px)
    rows = {
        "encoder": this.name,
        "weights": " ".join(part for part in (this.source, this.identifier, this.revision) if part),
        "architecture": f"{this.architecture}, {this.n_parameters / 1e6:.1f} million parameters",
        "input": f"resized to {this.resize_px} px ({this.interpolation}), central {this.crop_px} px",
        "mean, std": "; ".join(", ".join(f"{value:.4g}" for value in values) for values in (this.mean, this.std)),
        "embedding": f"{this.n_dims} dimensions, readout {this.readout!r}, {this.n_prefix_tokens} prefix tokens",
        "trained at": f"{resolution} um/px" if resolution else "no um/px is known",
        "precision on a GPU": this.precision,
        "licence": f"{this.licence}{', to be accepted on the hub' if this.gated else ''}",
        "facts from": this.facts,
    }
    return pd.DataFrame({"fact": list(rows), "value": list(rows.values())})


def choose_device(name: str) -> "torch.device":
    """The torch device ``name``; "auto" is cuda where there is one, else cpu. Raises EncoderError for one that isn't there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(f"device {name!r} can't be used ({str(error).splitlines()[0]}); use 'auto' or 'cpu'") from None
    return device


def load(name: str, device: str = "cpu") -> "Encoder":
    """Load encoder ``name`` frozen, in evaluation mode, on ``device`` (as `choose_device`), and check it against its card.

    Raises EncoderError where the weights can't be had (see `weights.hub_file`) or the network isn't what the card says.
    """
    this, where = card(name), choose_device(device)
    model, revision = _build(this, pretrained=True, seed=0)
    model.requires_grad_(False).eval().to(where)
    return Encoder(this, model, where, revision)


def build_network(name: str, n_classes: int = 1, pretrained: bool = True, seed: int | None = None) -> "torch.nn.Module":
    """The architecture of encoder ``name`` with a new linear head, to be trained end to end; its card is ``.card``.

    Takes float32 (n, 3, height, width), normalised by the card's mean and std, and gives logits (n, n_classes). The head
    sits on the class token, or on a convolutional network's pooled features. Without ``pretrained`` every weight is drawn,
    else only the head: by ``seed`` and the name alone, or by torch's generator as it stands where ``seed`` is None. Raises
    EncoderError where weights can't be had.
    """
    this = card(name)
    try:
        model, _ = _build(this, pretrained, seed)
    except EncoderError as error:
        raise EncoderError(f"{error}. To train from random weights instead, set pretrained: false in the network") from error
    with _seeded(seed, "head", this.name):
        if this.readout == "pooled":
            model.reset_classifier(n_classes)
        else:
            model.reset_classifier(n_classes, "token")
    model.card = this
    return model.train()


@dataclass(frozen=True)
class Encoder:
    """A frozen network with its card. revision: the commit or version that the weights came from."""

    card: EncoderCard
    model: Any
    device: "torch.device"
    revision: str

    @property
    def precision(self) -> str:
        """What the network is computed in here: the card's precision on a GPU, float32 everywhere else."""
        return self.card.precision if self.device.type == "cuda" else "float32"

    def transform(self, patches: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """uint8 (n, height, width, 3) to the network's input, float32 (n, 3, crop_px, crop_px); see `preprocess.transform`."""
        return preprocess.transform(patches, self.card, self.device)

    def compute(self, patches: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """Embed uint8 (n, height, width, 3); gives float32 (n, n_dims) on the encoder's device, maybe still being computed."""
        import torch

        mixed = self.precision != "float32"
        with torch.inference_mode(), preprocess.exact_float32(self.device):
            images = self.transform(patches)
            with torch.autocast(self.device.type, getattr(torch, self.precision) if mixed else None, enabled=mixed):
                return read_out(self.model, self.card, images).float()

    def embed(self, patches: np.ndarray, patch_ids: Sequence[int] | None = None) -> np.ndarray:
        """Embed uint8 (n, height, width, 3) in one pass; gives float32 (n, n_dims).

        Raises ValueError for anything but RGB bytes, EncoderError as `checked` does.
        """
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[-1] != 3:
            raise ValueError(f"patches must be uint8 (n, height, width, 3); these are {patches.dtype} {patches.shape}")
        if len(patches) == 0:
            return np.zeros((0, self.card.n_dims), np.float32)
        return self.checked(self.compute(patches).cpu().numpy(), range(len(patches)) if patch_ids is None else patch_ids)

    def checked(self, features: np.ndarray, patch_ids: Sequence[int]) -> np.ndarray:
        """``features`` as they are; raises EncoderError where they aren't (n_patches, n_dims) or not finite, naming patches."""
        if features.shape != (len(patch_ids), self.card.n_dims):
            raise EncoderError(
                f"encoder {self.card.name!r} gives {features.shape[1:]}, its card says {self.card.n_dims} dimensions"
            )
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            half = self.precision == "float16"
            hint = "; float16 may have overflowed, float32 in its card won't" if half else "; are its weights whole?"
            which = [int(patch_ids[row]) for row in bad[:5]]
            raise EncoderError(f"encoder {self.card.name!r} gives NaN or infinity for patches {which}{more}{hint}")
        return features


def read_out(model: Any, this: EncoderCard, images: "torch.Tensor") -> "torch.Tensor":
    """The embedding (n, n_dims) of normalised ``images`` (n, 3, height, width), by the card's readout."""
    import torch

    if this.readout == "pooled":
        return model(images)
    tokens = model.forward_features(images)  # (n, n_tokens, width), prefix tokens first
    if this.readout == "class":
        return tokens[:, 0]
    # the registers hold no place in the image; the released code of Ganz et al. averages Virchow2's in
    return torch.cat([tokens[:, 0], tokens[:, this.n_prefix_tokens :].mean(dim=1)], dim=1)


# ---- cards that aren't in the table ----


def _folder_card(name: str, folder: Path) -> EncoderCard:
    """The card in ``folder/card.json``, with the weights' own checksum."""
    known = {field.name for field in fields(EncoderCard)}
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
def _timm_card(name: str, scheme: str, rest: str) -> EncoderCard:
    """A card from what timm, or a repository in timm's format, says of a model; n_dims from building it without weights."""
    import torch

    facts = _hub_facts(rest) if scheme == "hf-hub" else _timm_facts(rest, weights=scheme == "timm")
    if not all(facts.get(key) for key in ("mean", "std", "input_size")):
        raise EncoderError(f"{name!r}: mean, std or input size aren't known, so there is no saying what it should see")
    size_px = int(facts["input_size"][-1])
    with torch.device("meta"):
        model = _create(facts["architecture"], facts["arguments"]).eval()
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
        n_parameters=_n_parameters(model),
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


# ---- building ----


def _build(this: EncoderCard, pretrained: bool, seed: int | None) -> tuple[Any, str]:
    """The network of a card without a classifier, checked against the card, and the revision of its weights."""
    if pretrained and this.source != "random":
        state, revision = read_weights(this)
        model = _with_weights(this, state)
    else:
        with _seeded(seed, "weights", this.architecture):
            model, revision = _create(this.architecture, this.arguments), f"seed {seed}"
    _check_card(this, model)
    return model, revision


def _with_weights(this: EncoderCard, state: "dict[str, torch.Tensor]") -> Any:
    """The network with all tensors of ``state`` but a classifier's, and no others; timm resizes position embeddings."""
    import timm

    default = timm.get_pretrained_cfg(this.architecture)
    classifier = (default and default.classifier) or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    state = {key: tensor for key, tensor in state.items() if not (heads and key.startswith(heads))}
    # timm loads strictly only where the weights' number of classes (here: none) is the model's
    overlay = {"state_dict": state, "num_classes": 0, "label_offset": 0, "custom_load": False}
    try:
        return _create(this.architecture, this.arguments, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        what = " ".join(str(error).split())[:400]
        raise EncoderError(f"encoder {this.name!r}: its weights don't fit {this.architecture}: {what}") from error


def _create(architecture: str, arguments: Any, **more: Any) -> Any:
    """timm's model without classifier; layers named by a string are timm's or torch's classes."""
    import timm
    from torch import nn

    exact_norm = functools.partial(nn.LayerNorm, eps=1e-12)
    classes = {"SwiGLUPacked": timm.layers.SwiGLUPacked, "SiLU": nn.SiLU, "LayerNorm(eps=1e-12)": exact_norm}
    resolved = {key: classes.get(value, value) if isinstance(value, str) else value for key, value in dict(arguments).items()}
    return timm.create_model(architecture, num_classes=0, **resolved, **more)


def _check_card(this: EncoderCard, model: Any) -> None:
    """Compare a built network with its card."""
    width = model.head_hidden_size if this.readout == "pooled" else model.num_features
    built = {
        "n_parameters": _n_parameters(model),
        "n_prefix_tokens": int(getattr(model, "num_prefix_tokens", 0)),
        "n_dims": width * (2 if this.readout == "class+mean" else 1),
    }
    said = {key: getattr(this, key) for key in built}
    wrong = [f"{key} is {built[key]}, the card says {said[key]}" for key in built if built[key] != said[key]]
    if wrong:
        raise EncoderError(f"encoder {this.name!r} isn't what its card says: {'; '.join(wrong)}")


def _n_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def _seeded(seed: int | None, *stream: str) -> Iterator[None]:
    """Within it, torch's draws on the CPU come from a named stream, and afterwards go on as before; nothing for seed None."""
    import torch

    if seed is None:
        yield
        return
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(stream_seed(seed, *stream))
    try:
        yield
    finally:
        torch.set_rng_state(before)
