"""Encoders: from a name to a frozen network, and from patches to embeddings.

A name is one of `names`, or says where to look: ``timm:NAME`` (with timm's ImageNet or other published weights),
``hf-hub:OWNER/REPOSITORY[@REVISION]`` (timm's format), ``folder:PATH`` (``card.json`` and ``weights.safetensors``), or
``random:ARCHITECTURE`` (timm's, no weights); or a study's own record has it. A card made in Python serves as well as a name.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import patches
from mfcore.encoders import preprocess
from mfcore.encoders.build import build, read_out, seeded
from mfcore.encoders.card import EncoderCard, cards, released_cards
from mfcore.encoders.cards_other import folder_card, own_card, timm_card
from mfcore.encoders.weights import EncoderError
from mfcore.study import pretrained
from mfcore.study.config import ConfigError, Study

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
    "computes_bfloat16",
    "embeddings_config",
    "find_embeddings",
    "load",
    "names",
    "of",
    "of_network",
    "read_out",
]

SCHEMES = ("timm", "hf-hub", "folder", "random")


def names() -> list[str]:
    """The encoders that have a card of their own."""
    return list(cards())


def card(name: str) -> EncoderCard:
    """The card of encoder ``name``.

    For ``timm:`` the facts are timm's, for ``hf-hub:`` the repository's ``config.json``, which is fetched. Raises
    EncoderError for a name that nobody knows, with the nearest ones.
    """
    if name in cards():
        return cards()[name]
    scheme, _, rest = name.partition(":")
    if scheme not in SCHEMES or not rest:
        near = difflib.get_close_matches(name, cards(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(cards())}"
        raise EncoderError(f"unknown encoder {name!r}: {hint}; any other by {', '.join(f'{s}:...' for s in SCHEMES)}")
    if scheme == "folder":
        return folder_card(name, Path(rest))
    return timm_card(name, scheme, rest)


def of(study: Study, name: str, results: str | Path | None = None) -> EncoderCard:
    """The card by which a study embeds with one of its encoders.

    The study's own record where it gives one, that of the encoder (or snapshot) which the study pretrained, found in its
    ``results``, else as `card` has it; or, under ``switches.encoder_input: released``, the variant that does as the released
    code, where that departs. Raises EncoderError for a record that can't be, naming it, and for an encoder that isn't
    pretrained yet.
    """
    if not pretrained.is_of(study, name):
        return _of(study, name, released_cards("embedding"))
    if name.partition("@")[0] in cards():
        raise EncoderError(f"pretraining[{name.partition('@')[0]}].name: the name of a known encoder; call it something else")
    if results is None:
        raise EncoderError(f"encoder {name!r} is pretrained by the study: its card is among the study's results")
    try:
        return folder_card(name, pretrained.folder_of(study, name, results))
    except (store.StoreError, ConfigError) as error:
        raise EncoderError(f"encoder {name!r} isn't there: {error}") from None


def of_network(study: Study, architecture: str) -> EncoderCard:
    """The card by which a study trains an architecture; as `of`, but for how the released code normalises for training."""
    return _of(study, architecture, released_cards("training"))


def _of(study: Study, name: str, released: Mapping[str, str]) -> EncoderCard:
    for record in study.own_encoders:
        if record.name == name:
            return own_card(record)
    return card(released.get(name, name) if study.switches.encoder_input == "released" else name)


def embeddings_config(study: Study, name: str, results: str | Path) -> dict:
    """What decides embeddings, besides the patches: the encoder's card and the crop that it sees."""
    return {"card": of(study, name, results).identity(), "size_px": study.patches.size_px}


def find_embeddings(study: Study, name: str, results: str | Path) -> store.Run:
    """The finished embeddings of the study's patches by an encoder; raises StoreError where there are none.

    No model and no hub is asked: of an encoder without a card of its own, those that were opened last.
    """
    source = {"patches": patches.find(study, results).key}
    if name in [*names(), *(own.name for own in study.own_encoders)] or pretrained.is_of(study, name):
        return store.find_run(results, "embeddings", name, embeddings_config(study, name, results), source)
    return store.find_known(results, "embeddings", name, {"size_px": study.patches.size_px, **source})


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
        "trained at": f"{resolution} µm/px" if resolution else "no µm/px is known",
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


def computes_bfloat16(device: "torch.device") -> bool:
    """Whether to train in bfloat16: on a GPU that has it. Others train in float32, as float16 would need its loss scaled."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def load(encoder: str | EncoderCard, device: str = "cpu") -> "Encoder":
    """Load an encoder, by name or card, frozen, in evaluation mode, on ``device`` (as `choose_device`), checked by its card.

    Raises EncoderError where the weights can't be had (see `weights.hub_file`) or the network isn't what the card says.
    """
    this, where = card(encoder) if isinstance(encoder, str) else encoder, choose_device(device)
    model, revision = build(this, pretrained=True, seed=0)
    model.requires_grad_(False).eval().to(where)
    return Encoder(this, model, where, revision)


def build_network(
    encoder: str | EncoderCard, n_classes: int = 1, pretrained: bool = True, seed: int | None = None
) -> "torch.nn.Module":
    """The architecture of an encoder, by name or card, with a new linear head, to be trained end to end; ``.card`` is its card.

    Takes float32 (n, 3, height, width), normalised by the card's mean and std, and gives logits (n, n_classes). The head
    sits on the class token, or on a convolutional network's pooled features. Without ``pretrained`` every weight is drawn,
    else only the head: by ``seed`` and the name alone, or by torch's generator as it stands where ``seed`` is None. Raises
    EncoderError where weights can't be had.
    """
    this = card(encoder) if isinstance(encoder, str) else encoder
    try:
        model, _ = build(this, pretrained, seed)
    except EncoderError as error:
        raise EncoderError(f"{error}. To train from random weights instead, set pretrained: false in the network") from error
    with seeded(seed, "head", this.name):
        if not this.readout.startswith("class"):
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

        with torch.inference_mode(), preprocess.exact_float32(self.device):
            return self.network(self.transform(patches))

    def network(self, images: "torch.Tensor") -> "torch.Tensor":
        """The second half of `compute`, of what `transform` gives; to be called as there."""
        import torch

        mixed = self.precision != "float32"
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
