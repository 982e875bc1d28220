"""Weights from the hub, the real way: each answer of it gives the encoder, or one error that says what to do."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import COMMIT, EXPIRED, FINE_GRAINED, MEMBER, STRANGER, Repository
from safetensors.torch import save
from tiny_encoders import tiny_card, use

from mfcore import encoders
from mfcore.encoders import EncoderError, network, weights

CARD = tiny_card(source="hub", identifier="local/tiny", revision=COMMIT, files=("model.safetensors", "pytorch_model.bin"))
IMAGES = (np.arange(2 * 40 * 40 * 3) * 29 % 255).astype(np.uint8).reshape(2, 40, 40, 3)
SEEN = [[0.00146, -0.30301, 0.98249], [-0.9204, 0.4075, 1.13277]]  # of vit_tiny_random, with torch 2.15


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    model, _ = network.build(tiny_card(), pretrained=False, seed=0)
    head = {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)}  # a classifier, which an encoder leaves out
    return {**model.state_dict(), **head}


@pytest.fixture(scope="module")
def whole(tensors) -> bytes:
    return save(tensors)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process asks, with no login and an empty cache."""
    with hub_server.serving() as server:
        hub_server.use(monkeypatch, server.url, tmp_path / "cache")
        yield server


def loads(monkeypatch, card: encoders.EncoderCard = CARD) -> bool:
    """Whether the card loads as the network that the hub has: the same as drawn from the seed."""
    loaded = encoders.load(use(monkeypatch, card))
    expected = encoders.load(use(monkeypatch, tiny_card(name="drawn")))
    np.testing.assert_allclose(loaded.embed(IMAGES), expected.embed(IMAGES), atol=1e-5)
    return loaded.revision == COMMIT


def refusal(monkeypatch, card: encoders.EncoderCard = CARD) -> str:
    """What is said where the card doesn't load; one line that names the repository."""
    with pytest.raises(EncoderError) as caught:
        encoders.load(use(monkeypatch, card))
    text = str(caught.value)
    assert card.identifier in text and "\n" not in text
    return text


# ---- it gives ----


def test_a_public_repository_gives_the_encoder_once(hub, whole, monkeypatch):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole})
    assert loads(monkeypatch)
    n_asked = len(hub.asked)
    assert loads(monkeypatch)
    assert len(hub.asked) == n_asked  # a commit's files don't change: the cache has them


def test_the_next_file_is_taken_where_the_first_isn_t_there_and_from_the_cache_offline_too(hub, tensors, monkeypatch, tmp_path):
    torch.save(tensors, tmp_path / "weights.bin")
    hub.repositories["local/tiny"] = Repository({"pytorch_model.bin": (tmp_path / "weights.bin").read_bytes()})
    for revision in (COMMIT, ""):
        card = dataclasses.replace(CARD, revision=revision)
        assert loads(monkeypatch, card)
        n_asked = len(hub.asked)
        if revision:
            assert loads(monkeypatch, card) and len(hub.asked) == n_asked
        with monkeypatch.context() as offline:
            offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
            assert loads(monkeypatch, card) and len(hub.asked) == n_asked
    hub.repositories["local/tiny"].always = 503  # the newest can't be asked for: what is here serves
    assert loads(monkeypatch, dataclasses.replace(CARD, revision=""))


def test_a_gated_repository_gives_to_whom_it_let_in(hub, whole, monkeypatch):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole}, is_gated=True)
    monkeypatch.setenv("HF_TOKEN", MEMBER)
    assert loads(monkeypatch)


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(hub, whole, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole}, n_cuts=2)
    assert loads(monkeypatch)
    starts = [asked for method, _, asked in hub.asked if method == "GET"]
    assert len(starts) == 3 and starts[0] is None and all(asked.startswith("bytes=") for asked in starts[1:])


def test_after_one_that_never_ends_the_next_call_fetches_it_whole(hub, whole, monkeypatch, tmp_path):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole}, n_cuts=-1)
    text = refusal(monkeypatch)
    assert "didn't give model.safetensors" in text and "run again" in text and f"{hub.url}/local/tiny" in text
    assert not weights.state(CARD).is_here
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    hub.repositories["local/tiny"].n_cuts = 0
    assert loads(monkeypatch)


def test_several_files_with_an_index_are_one_state(hub, tensors, monkeypatch):
    names = list(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    files = {part: save({name: tensors[name] for name in held}) for part, held in parts.items()}
    hub.repositories["local/tiny"] = Repository({**files, weights.INDEX: json.dumps(index).encode()})
    huggingface_hub.hf_hub_download("local/tiny", weights.INDEX, revision=COMMIT)
    assert not weights.state(CARD).is_here  # the index alone is not the weights
    assert loads(monkeypatch)
    assert weights.state(CARD).is_here
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert loads(monkeypatch)


# ---- it says no ----


def test_a_gated_repository_says_where_to_ask_and_how_to_log_in(hub, whole, monkeypatch):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole}, is_gated=True)
    text = refusal(monkeypatch)
    for words in (f"{hub.url}/local/tiny", "accept its licence", "`hf auth login`", "HF_TOKEN", f"{hub.url}/settings/tokens"):
        assert words in text
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert "accept its licence" in refusal(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", FINE_GRAINED)
    text = refusal(monkeypatch)
    assert "enable access to public gated repositories" in text and f"{hub.url}/settings/tokens" in text
    monkeypatch.setenv("HF_TOKEN", EXPIRED)
    assert "Invalid credentials" in (text := refusal(monkeypatch)) and f"{hub.url}/settings/tokens" in text
    for token in (STRANGER, FINE_GRAINED, EXPIRED):
        assert token not in text


def test_an_expired_token_is_named_where_nothing_is_gated_too(hub, whole, monkeypatch):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole})
    monkeypatch.setenv("HF_TOKEN", EXPIRED)
    assert "Invalid credentials" in (text := refusal(monkeypatch)) and f"{hub.url}/settings/tokens" in text


def test_what_isn_t_there_is_said(hub, whole, monkeypatch):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole})
    text = refusal(monkeypatch, dataclasses.replace(CARD, revision="f" * 40))
    assert "f" * 40 in text and f"{hub.url}/local/tiny/commits/main" in text
    assert "HF_TOKEN" in (text := refusal(monkeypatch, dataclasses.replace(CARD, identifier="local/nothing")))
    assert "check the name" in text and f"{hub.url}/local/nothing" in text
    text = refusal(monkeypatch, dataclasses.replace(CARD, files=("other.bin",)))
    assert "has none of the files ['other.bin']" in text and f"{hub.url}/local/tiny/tree/main" in text
    assert "OWNER/NAME" in refusal(monkeypatch, dataclasses.replace(CARD, identifier="one/two/three"))
    assert not weights.state(dataclasses.replace(CARD, identifier="one/two/three")).is_here


@pytest.mark.parametrize(
    ("manners", "words"),
    [
        ({"always": 500}, ("500", "run again")),
        ({"always": 429}, ("429", "wait, then run again")),
        ({"always": 404}, ("404", "run again")),  # a proxy's answer, say
        ({"is_short": True}, ("Consistency check failed", "run again")),
    ],
    ids=["hub down", "too many requests", "not the hub", "short body"],
)
def test_a_hub_that_can_t_give_is_asked_again_and_then_said(hub, whole, monkeypatch, manners, words):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole}, **manners)
    text = refusal(monkeypatch)
    words = (*words, f"{hub.url}/local/tiny didn't give model.safetensors")
    for part in (*words, "hf download local/tiny --revision", "folder:PATH"):
        assert part in text
    if "always" in manners and manners["always"] != 404:
        hub.repositories["local/tiny"] = Repository({"model.safetensors": whole}, statuses=[manners["always"]] * 3)
        assert loads(monkeypatch)  # it comes round: the hub's client asks several times


def test_no_network_is_said(hub, monkeypatch, tmp_path):
    hub_server.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # nobody listens there
    text = refusal(monkeypatch)
    assert "ConnectError" in text and "hf download local/tiny" in text and "http://127.0.0.1:9/local/tiny didn't" in text


def test_offline_says_what_to_do_on_another_machine(hub, whole, monkeypatch):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = refusal(monkeypatch)
    assert "HF_HUB_OFFLINE" in text and f"hf download local/tiny --revision {COMMIT}" in text and not hub.asked


def test_a_file_that_isn_t_the_card_s_is_refused_and_fetched_again_once_removed(hub, whole, monkeypatch, tmp_path):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole[:-4] + b"\0\0\0\1"})
    card = dataclasses.replace(CARD, sha256=hashlib.sha256(whole).hexdigest())
    with pytest.raises(EncoderError, match=r"SHA-256 differs.*; remove it and fetch") as caught:
        encoders.load(use(monkeypatch, card))
    (blob,) = [path for path in (tmp_path / "cache").rglob("blobs/*") if str(path) in str(caught.value)]
    blob.unlink()
    hub.repositories["local/tiny"].files["model.safetensors"] = whole
    assert loads(monkeypatch, card)


# ---- whether it is here ----


def test_the_state_of_a_repository_asks_no_network(hub, whole, monkeypatch, tmp_path):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole})
    gated, huge = dataclasses.replace(CARD, gated=True), dataclasses.replace(CARD, n_parameters=1_134_774_272)
    assert weights.state(huge) == (False, "fetched at first use, about 4.5 GB")
    found = weights.state(gated)
    assert not found.is_here
    assert found.text.startswith("gated, and no token is here; fetched at first use")
    for place in ("environment", "file"):
        with monkeypatch.context() as login:
            if place == "environment":
                login.setenv("HF_TOKEN", MEMBER)
            else:
                (tmp_path / "cache").mkdir()
                (tmp_path / "cache" / "token").write_text(MEMBER)
            text = weights.state(gated).text
            assert text.startswith("gated, fetched at first use") and MEMBER not in text
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert weights.state(gated).text == "gated, not here, and HF_HUB_OFFLINE is set"
    assert not hub.asked
    assert loads(monkeypatch)
    n_asked = len(hub.asked)
    assert weights.state(CARD) == (True, "here, in the hub's cache") == weights.state(gated)
    assert not weights.state(dataclasses.replace(CARD, revision="f" * 40)).is_here
    assert len(hub.asked) == n_asked


# ---- it gives what no one should read ----


def touching(file: Path) -> bytes:
    """Weights as PyTorch keeps them that make ``file`` when they are unpickled."""

    class Touching:
        def __reduce__(self):
            return (Path.touch, (file,))

    content = io.BytesIO()
    torch.save({"weight": Touching()}, content)
    return content.getvalue()


def test_a_repository_s_pickle_is_not_executed(hub, tmp_path):
    """Neither its weights nor a file that its config.json has timm read."""
    poison = touching(tmp_path / "ran")
    (tmp_path / "poison.pth").write_bytes(poison)
    config = {"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}}
    told = {**config, "model_args": {"checkpoint_path": str(tmp_path / "poison.pth")}}
    for name, content in (("plain", config), ("told", told)):
        files = {"config.json": json.dumps(content).encode(), "pytorch_model.bin": poison}
        hub.repositories[f"poison/{name}"] = Repository(files)
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin holds more than tensors and isn't read"):
        encoders.load("hf-hub:poison/plain")
    with pytest.raises(EncoderError, match=r"arguments\.checkpoint_path: an architecture isn't told this"):
        encoders.load("hf-hub:poison/told")
    assert not (tmp_path / "ran").exists()


# ---- by the environment alone, in a process of its own ----

ASK = """
import json
import numpy as np
from mfcore import encoders

images = (np.arange(2 * 40 * 40 * 3) * 29 % 255).astype(np.uint8).reshape(2, 40, 40, 3)
answers = {"control": encoders.load("vit_tiny_random").embed(images)[:, :4].tolist()}
for name in ("tiny", "gated", "tiny@v9"):
    try:
        encoder = encoders.load(f"hf-hub:local/{name}")
        answers[name] = [encoder.revision, encoder.card.n_prefix_tokens, encoder.embed(images).tolist()]
    except encoders.EncoderError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def elsewhere(whole, tmp_path_factory) -> dict:
    """What a fresh process computes, and gets from a hub that its environment names."""
    card = tiny_card()
    config = {
        "architecture": card.architecture,
        "num_classes": 7,
        "model_args": dict(card.arguments),
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": card.mean, "std": card.std, "num_classes": 7},
    }
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": whole}
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    with hub_server.serving() as server:
        server.repositories = {"local/tiny": Repository(files), "local/gated": Repository(files, is_gated=True)}
        own = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path_factory.mktemp("home")), "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", ASK], capture_output=True, text=True, env={**kept, **own, "PYTHONHASHSEED": "7"}
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_repository_in_timm_s_format_needs_no_card(elsewhere, monkeypatch):
    revision, n_prefix_tokens, features = elsewhere["tiny"]
    assert (revision, n_prefix_tokens) == (COMMIT, 3)
    expected = encoders.load(use(monkeypatch, tiny_card())).embed(IMAGES)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert "local/gated didn't give" in elsewhere["gated"] and "accept its licence" in elsewhere["gated"]
    assert "v9" in elsewhere["tiny@v9"] and "/commits/main" in elsewhere["tiny@v9"]


def test_the_random_control_is_the_same_in_every_process_and_draws_for_itself_alone(elsewhere):
    state = torch.get_rng_state()
    here = encoders.load("vit_tiny_random").embed(IMAGES)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_allclose(here[:, :4], elsewhere["control"], atol=1e-5)
    np.testing.assert_allclose(here[:, :3], SEEN, atol=1e-3)
    np.testing.assert_array_equal(encoders.load("random:vit_tiny_patch16_224").embed(IMAGES), here)


def test_a_network_to_be_trained_says_how_to_do_without_weights(hub, whole, monkeypatch):
    hub.repositories["local/tiny"] = Repository({"model.safetensors": whole}, is_gated=True)
    with pytest.raises(EncoderError, match=r"accept its licence.*pretrained: false"):
        encoders.build_network(use(monkeypatch, CARD))
