"""From a card to its network: built by timm, filled with weights, checked; and its embeddings."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mfcore.data.slides.reader import colour_problem
from mfcore.encoders import preprocess
from mfcore.encoders.architecture import create, facts_of, seeded
from mfcore.encoders.card import EncoderCard, EncoderError
from mfcore.encoders.catalogue import card_of
from mfcore.encoders.readout import READOUTS
from mfcore.encoders.weights import formats, read_weights

if TYPE_CHECKING:
    import torch

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # suffixes of what is embedded in a folder


def read_out(model: Any, this: EncoderCard, images: "torch.Tensor") -> "torch.Tensor":
    """The embedding (n, n_dims) of normalised ``images`` (n, 3, height, width)."""
    return READOUTS[this.readout].read(model, this.n_prefix_tokens, images)


def build(this: EncoderCard, pretrained: bool, seed: int | None) -> tuple[Any, str]:
    """A card's network without a classifier, and its weights' revision.

    Raises EncoderError as `read_weights` and `check_card`, and for weights that don't fit.
    """
    if pretrained and this.source != "random":
        state, revision = read_weights(this)
        model = _with_weights(this, state)
    else:
        with seeded(seed, "weights", this.architecture):
            model, revision = create(this.architecture, this.arguments), f"seed {seed}"
    check_card(this, model)
    return model, revision


def _with_weights(this: EncoderCard, state: "dict[str, torch.Tensor]") -> Any:
    """The network with all of ``state`` but a classifier; timm resizes position embeddings."""
    import timm

    default = timm.get_pretrained_cfg(this.architecture)
    classifier = (default and default.classifier) or ()
    heads = tuple(
        f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier)
    )
    state = {key: tensor for key, tensor in state.items() if not (heads and key.startswith(heads))}
    if not state:  # timm would take it for none given, and fetch or read weights of its own
        raise EncoderError(
            f"encoder {this.name!r}: its weights hold no tensor of {this.architecture}"
        )
    # timm loads strictly only where the weights' number of classes (here: none) is the model's
    overlay = {"state_dict": state, "num_classes": 0, "label_offset": 0, "custom_load": False}
    try:
        return create(
            this.architecture, this.arguments, pretrained=True, pretrained_cfg_overlay=overlay
        )
    except (RuntimeError, KeyError) as error:
        what = " ".join(str(error).split())[:400]
        raise EncoderError(
            f"encoder {this.name!r}: its weights don't fit {this.architecture}: {what}; "
            f"they are {formats.some(state)}"
        ) from error


def check_card(this: EncoderCard, model: Any) -> None:
    """Raise EncoderError, naming each key, where a built network isn't what its card says."""
    wrong = [
        f"{key} is {value}, the card says {getattr(this, key)}"
        for key, value in facts_of(model, this.readout).items()
        if value != getattr(this, key)
    ]
    if wrong:
        raise EncoderError(
            f"encoder {this.name!r} isn't what its card says: {'; '.join(wrong)}; correct them"
        )


def choose_device(name: str) -> "torch.device":
    """The torch device ``name``; "auto" is cuda where there is one, else cpu.

    Raises EncoderError for one that isn't there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(
            f"device {name!r} can't be used ({str(error).splitlines()[0]}); use 'auto' or 'cpu'"
        ) from None
    return device


def computes_bfloat16(device: "torch.device") -> bool:
    """Whether to train in bfloat16: on a GPU that has it.

    Others train in float32, as float16 would need its loss scaled.
    """
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def load(encoder: str | EncoderCard, device: str = "cpu") -> "Encoder":
    """Load an encoder, by name or card: frozen, in evaluation mode, checked by its card.

    Raises EncoderError where the weights are missing (see `weights.hub_file`) or the network isn't
    what the card says.
    """
    this, where = card_of(encoder) if isinstance(encoder, str) else encoder, choose_device(device)
    if this.source == "features":
        raise EncoderError(
            f"encoder {this.name!r}: its embeddings were made elsewhere; mfcore can't embed by it"
        )
    model, revision = build(this, pretrained=True, seed=0)
    model.requires_grad_(False).eval().to(where)
    return Encoder(this, model, where, revision)


def build_network(
    encoder: str | EncoderCard, n_classes: int = 1, pretrained: bool = True, seed: int | None = None
) -> "torch.nn.Module":
    """An encoder's architecture with a new linear head, to be trained end to end.

    encoder: a name or a card, which becomes ``.card`` of the network. Takes float32 (n, 3, height,
    width), normalised by the card's mean and std, and gives logits (n, n_classes). The head sits on
    the class token, or on a convolutional network's pooled features. Without ``pretrained`` every
    weight is drawn, else only the head: by ``seed`` and the name alone, or by torch's generator as
    it stands where ``seed`` is None. Raises EncoderError where weights are missing.
    """
    this = card_of(encoder) if isinstance(encoder, str) else encoder
    try:
        model, _ = build(this, pretrained, seed)
    except EncoderError as error:
        raise EncoderError(
            f"{error}. To train from random weights instead, set pretrained: false in the network"
        ) from error
    with seeded(seed, "head", this.name):
        if READOUTS[this.readout].begins_with_class_token:
            model.reset_classifier(n_classes, "token")
        else:
            model.reset_classifier(n_classes)
    model.card = this
    return model.train()


def embed_images(
    images: "str | Path | Sequence[str | Path] | np.ndarray",
    encoder: "str | EncoderCard | Encoder",
    device: str = "auto",
    batch_size: int = 16,
) -> "tuple[np.ndarray, list[Path]]":
    """Embed images: features float32 (n, n_dims), and the images' files.

    images: a folder (all PNG, JPEG and TIFF below it, sorted by path), files, or uint8 (n, height,
    width, 3), which has no files. Images may differ in size: each is resized as the encoder's card
    says. encoder: a name, a card, or a loaded one. batch_size: images at once, 1 or more. Raises
    EncoderError where weights are missing, ValueError for an image that isn't 8 bit RGB, and
    where there is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
    files, source = [], images
    if not isinstance(images, np.ndarray):
        files = _image_files(images)
        source = map(_read_image, files)
    if not len(files or images):
        raise ValueError("there are no images to embed; give one or more")
    loaded = encoder if isinstance(encoder, Encoder) else load(encoder, device)
    features = []
    for _, alike in itertools.groupby(source, np.shape):  # images of one size, one after another
        while batch := list(itertools.islice(alike, batch_size)):
            features.append(loaded.embed(np.stack(batch)))
    return np.concatenate(features), files


def _image_files(images: "str | Path | Sequence[str | Path]") -> list[Path]:
    if not isinstance(images, str | Path):
        return [Path(file) for file in images]
    files = sorted(file for file in Path(images).rglob("[!.]*") if file.suffix.lower() in IMAGES)
    if not files:
        raise ValueError(f"{images}: no images ({', '.join(IMAGES)}) in this folder")
    return files


def _read_image(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        if problem := colour_problem(image):
            raise ValueError(f"{file}: {problem}")
        return np.asarray(image)


@dataclass(frozen=True)
class Encoder:
    """A frozen network with its card. revision: the commit or version of its weights."""

    card: EncoderCard
    model: Any
    device: "torch.device"
    revision: str

    @property
    def precision(self) -> str:
        """What the network computes in: the card's precision on a GPU, else float32."""
        return self.card.precision if self.device.type == "cuda" else "float32"

    def transform(self, patches: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """uint8 (n, height, width, 3) to the network's input; see `preprocess.transform`."""
        return preprocess.transform(patches, self.card, self.device)

    def compute(self, patches: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """Embed uint8 (n, height, width, 3); gives float32 (n, n_dims) on the encoder's device."""
        import torch

        with torch.inference_mode(), preprocess.exact_float32(self.device):
            images = self.transform(patches)
            with self.autocast():
                return read_out(self.model, self.card, images).float()

    def autocast(self) -> "torch.autocast":
        """Within it, the network computes in `precision`."""
        import torch

        mixed = self.precision != "float32"
        dtype = getattr(torch, self.precision) if mixed else None
        return torch.autocast(self.device.type, dtype, enabled=mixed)

    def embed(self, patches: np.ndarray) -> np.ndarray:
        """Embed uint8 (n, height, width, 3) in one pass; gives float32 (n, n_dims).

        Raises ValueError for anything but RGB bytes, EncoderError as `checked` does.
        """
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[-1] != 3:
            raise ValueError(
                "patches must be uint8 (n, height, width, 3); "
                f"these are {patches.dtype} {patches.shape}"
            )
        if len(patches) == 0:
            return np.zeros((0, self.card.n_dims), np.float32)
        return self.checked(self.compute(patches).cpu().numpy(), range(len(patches)))

    def checked(self, features: np.ndarray, patch_ids: Sequence[int]) -> np.ndarray:
        """``features`` as they are; raises EncoderError, naming patches, for NaN and infinity."""
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            ids = [int(patch_ids[row]) for row in bad[:5]]
            raise EncoderError(
                f"encoder {self.card.name!r} gives NaN or infinity for patches {ids}{more}; are its"
                " weights whole? float16 may have overflowed, float32 in its card won't"
            )
        return features
