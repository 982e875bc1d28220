"""Networks: how one is trained, and what the architecture of a network may be told."""

import difflib
import math
import re
from collections.abc import Mapping
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field, field_validator

from mfcore.store.options import Count, Flag, Number, Positive, PositiveShare, Share, Whole, options, refuse

MAX_HUE_TURNS = 0.5  # half a turn of the colour circle reaches every hue

# What the architectures of timm may be told: shapes, rates and switches of a ViT or a convolutional network. timm takes more,
# by which it reads a file, fetches one or unpickles one; none of that stands here.
_NUMBERS = """
    always_partition attn_drop_rate avg_down base_width block_config bn_size cardinality channels class_token conv_bias conv_mlp
    depth depths dims drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim embed_dims fc_norm final_norm
    growth_rate head_dim head_hidden_size head_init_scale head_norm_first img_size in_chans init_values kernel_sizes
    layer_scale_init_value layers ls_init_value mlp_ratio mlp_ratios no_embed_class norm_eps num_features num_heads num_kv_heads
    num_reg_tokens output_stride patch_drop_rate patch_size pos_drop_rate pre_norm proj_bias proj_drop_rate qk_norm qkv_bias
    qkv_fused ref_feat_shape reg_tokens rope_grid_offset rope_rotate_half rope_temperature scale_attn_inner scale_attn_norm
    scale_mlp scale_mlp_norm stem_size stem_width strict_img_size swiglu_align_to swiglu_mlp use_abs_pos_emb use_fc_norm use_grn
    use_post_norm use_post_transformer_norm use_pre_transformer_norm use_rel_pos_bias use_rot_pos_emb use_shared_rel_pos_bias
    width_factor window_ratio window_size
"""
_NAMES = "act_layer attn_type embed_layer global_pool mlp_layer norm_layer pos_embed rope_type stem_type"  # of timm's choices
ARGUMENTS = tuple(sorted([*_NUMBERS.split(), *_NAMES.split()]))


def problems_of_arguments(arguments: object, place: str) -> list[str]:
    """All that an architecture may not be told, each with its key and what may be said; empty where nothing is wrong.

    Only `ARGUMENTS` may be said, and of them only numbers, true and false, null, lists of these, and for layers and the like
    a name.
    """
    if not isinstance(arguments, Mapping):
        return [f"{place}: expected a mapping, got {arguments!r}"]
    return [f"{place}.{key}: {text}" for key, text in _wrong(arguments).items()]


def _wrong(arguments: Mapping) -> dict[str, str]:
    """What is wrong with arguments of an architecture, by key."""
    problems = {}
    for key, value in arguments.items():
        if key not in ARGUMENTS:
            near = difflib.get_close_matches(str(key), ARGUMENTS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems[key] = f"an architecture isn't told this; {hint}It may be told {', '.join(ARGUMENTS)}"
        elif isinstance(value, str) and key in _NAMES.split():
            if not re.fullmatch(r"[\w.()=-]*", value):
                problems[key] = f"{value!r} must be the name of one of timm's choices"
        elif isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.IGNORECASE):
            number = yaml.safe_dump(float(value)).split()[0]
            problems[key] = f"{value!r} is text to YAML; for a number write {number}"
        elif not _is_number(value):
            problems[key] = f"{value!r} must be a number, true, false, null or a list of these"
    return problems


def _is_number(value: object) -> bool:
    """Whether ``value`` is a number, true, false or None, or a list of these, however deep."""
    return all(map(_is_number, value)) if isinstance(value, list | tuple) else isinstance(value, int | float | None)


def _checked(arguments: dict) -> dict:
    refuse(_wrong(arguments))
    return arguments


Arguments = Annotated[dict[str, object], AfterValidator(_checked)]  # of an architecture


def encoder_name(signs: str) -> AfterValidator:
    """Refuses what can't be the name of an encoder: "random", where a pretraining may start, or one of ``signs``.

    A ":" ends the place where an encoder is looked for; "@" begins the step of a snapshot.
    """

    def check(name: str) -> str:
        if not name.strip() or name == "random" or set(signs) & set(name):
            raise ValueError(f"{name!r}: an encoder's name isn't 'random' and has none of {' '.join(signs)}")
        return name

    return AfterValidator(check)


@options
class Lora:
    """Low-rank adaptation (Hu et al. 2021) of a frozen transformer: small matrices are trained, and the head.

    Defaults: Ammeling et al. 2025, as released. targets: ends of the names of the layers that get a pair of matrices.
    """

    rank: Count = 16
    alpha: Positive = 16.0
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")

    @field_validator("targets")
    @classmethod
    def _name_layers(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or not all(target.strip() for target in targets):
            raise ValueError(f"{list(targets)} must name ends of layers' names, say {list(cls.targets)}")
        return targets


@options
class Network:
    """A network trained end to end, or by LoRA, and how.

    name: what tables and figures call the arm. architecture: an encoder's name, built with one logit.
    input_px: side of the central crop that the network sees, in px of the stored patch.
    patches_per_epoch: patches drawn with replacement each epoch, uniform over slides, then over the two classes; None
        means every training patch once. max_lr: peak of the one-cycle schedule.
    shift_px: largest random shift of the crop. rotation: any angle; the stored patch must be wide enough for it.
    lora: train only low-rank matrices and the head; None trains every weight.
    accumulate: batches whose gradients are added up for one step. clip_norm: largest norm of a step's gradient; None: any.
    patience: epochs without a lower validation loss after which training ends; None: all of ``n_epochs``.
    sizes, by_domain: at which of the study's sizes it is trained (None: all), and whether on single domains too.
    """

    name: str
    architecture: str = "resnet50"
    lora: Lora | None = None
    input_px: Count = 224
    n_epochs: Count = 100
    patches_per_epoch: Count | None = 1280
    batch_size: Count = 16
    max_lr: Positive = 1e-4
    shift_px: Annotated[Whole, Field(ge=0)] = 0
    colour_jitter: Annotated[Number, Field(ge=0, le=MAX_HUE_TURNS)] = 0.1
    colour_probability: Share = 0.5
    blur_probability: Share = 0.1
    rotation_probability: Share = 0.5
    pretrained: Flag = True
    accumulate: Count = 1
    clip_norm: Positive | None = None
    patience: Count | None = None
    sizes: Annotated[tuple[PositiveShare, ...], Field(min_length=1)] | None = None
    by_domain: Flag = True

    @field_validator("name")
    @classmethod
    def _has_a_name(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("an arm needs one")
        return name

    @property
    def needed_px(self) -> int:
        """Side of the stored patch, in px, from which any rotation and shift of the crop has no corner without image."""
        diagonal_px = math.ceil(math.sqrt(2) * self.input_px)
        return (diagonal_px if self.rotation_probability else self.input_px) + 2 * self.shift_px
