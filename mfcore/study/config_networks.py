"""What a study may say of a network: numbers that can be, patches wide enough for it, arguments that only shape it."""

import difflib
import math
import re
from collections.abc import Mapping

import yaml

from mfcore.study.config_schema import Lora, Network, Study

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
    problems = []
    for key, value in arguments.items():
        if key not in ARGUMENTS:
            near = difflib.get_close_matches(str(key), ARGUMENTS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems.append(f"{place}.{key}: an architecture isn't told this; {hint}It may be told {', '.join(ARGUMENTS)}")
        elif isinstance(value, str) and key in _NAMES.split():
            if not re.fullmatch(r"[\w.()=-]*", value):
                problems.append(f"{place}.{key}: {value!r} must be the name of one of timm's choices")
        elif isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.IGNORECASE):
            number = yaml.safe_dump(float(value)).split()[0]
            problems.append(f"{place}.{key}: {value!r} is text to YAML; for a number write {number}")
        elif not _is_number(value):
            problems.append(f"{place}.{key}: {value!r} must be a number, true, false, null or a list of these")
    return problems


def _is_number(value: object) -> bool:
    """Whether ``value`` is a number, true, false or None, or a list of these, however deep."""
    return all(map(_is_number, value)) if isinstance(value, list | tuple) else isinstance(value, int | float | None)


def problems_of(network: Network, study: Study) -> list[str]:
    """All that is wrong with one network of a study, each with its key and what it may be; empty where nothing is."""
    place = f"networks[{network.name}]"
    problems = [] if network.name.strip() else [f"{place}.name: an arm needs one"]
    for key in ("input_px", "n_epochs", "patches_per_epoch", "batch_size", "max_lr", "accumulate", "clip_norm", "patience"):
        value = getattr(network, key)
        if value is not None and not 0 < value < math.inf:
            problems.append(f"{place}.{key}: {value} must be a number above 0")
    if network.shift_px < 0:
        problems.append(f"{place}.shift_px: {network.shift_px} must be 0 or more")
    shares = dict.fromkeys(("colour_probability", "blur_probability", "rotation_probability"), 1)
    for key, most in {**shares, "colour_jitter": MAX_HUE_TURNS}.items():
        if not 0 <= getattr(network, key) <= most:
            problems.append(f"{place}.{key}: {getattr(network, key)} must lie in [0, {most}]")
    problems += [] if network.lora is None else _wrong_lora(network.lora, f"{place}.lora")
    foreign = sorted(set(network.sizes or ()) - set(study.splits.sizes))
    if foreign or network.sizes == ():
        problems.append(f"{place}.sizes: {foreign or 'none'}; name some of splits.sizes {list(study.splits.sizes)}")
    if not problems and network.needed_px > study.stored_px:
        problems.append(
            f"{place}: rotating and shifting a crop of {network.input_px} px needs stored patches of {network.needed_px} px, "
            f"these have {study.stored_px}; lower input_px or shift_px, or raise patches.stored_px"
        )
    return problems


def _wrong_lora(lora: Lora, place: str) -> list[str]:
    problems = [] if lora.rank >= 1 else [f"{place}.rank: {lora.rank} must be 1 or more; leave lora out to train every weight"]
    if not 0 < lora.alpha < math.inf:
        problems.append(f"{place}.alpha: {lora.alpha} must be a number above 0")
    if not 0 <= lora.dropout < 1:
        problems.append(f"{place}.dropout: {lora.dropout} must lie in [0, 1)")
    if not lora.targets or not all(target.strip() for target in lora.targets):
        default = list(Lora.targets)
        problems.append(f"{place}.targets: {list(lora.targets)} must name ends of layers' names, say {default}")
    return problems
