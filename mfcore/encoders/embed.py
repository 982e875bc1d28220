"""Embeddings: every patch of a study through one frozen encoder, once, kept with the encoder's card and canary.

The result is ``embeddings.h5``, row for row the study's label table: ``features`` float32 (n_patches, n_dims), ``coords``
int64 (n_patches, 2), the patch's top left corner in level-0 px as the field's tools read it, ``patch_id``, ``slide_id`` and
``canary`` float32 (8, n_dims), with the versions of torch and timm that made it. The file's attributes hold the card as
JSON and the revision of the weights.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data import patches
from mfcore.encoders import canary, embed_stream, encoders, weights
from mfcore.encoders.card import EncoderCard
from mfcore.store import errors as store_errors
from mfcore.study.config import ConfigError, Study, as_dict, load_study

SHARD = 256  # patches; as many at most are lost by a kill, on each device


def config_of(study: Study, encoder_name: str, results: str | Path) -> dict:
    """What decides the embeddings, besides the patches: the encoder's card and the crop that it sees."""
    return encoders.embeddings_config(study, encoder_name, results)


def embed(study: Study, encoder_name: str, results: str | Path, device: str = "cpu", batch_size: int = 0) -> store.Run:
    """Embed the central ``size_px`` of every patch of ``study``; takes up again where an earlier call or a share stopped.

    device: one, several with commas between, or "auto": every GPU, else the CPU. batch_size: 0 to find it by trying. Raises
    StoreError where the patches aren't there, EncoderError where the encoder can't be had, gives NaN or infinity (naming
    the first patches), or isn't any more the one that the run, begun or finished, was made with.
    """
    card = encoders.of(study, encoder_name, results)
    source, run = _open(study, encoder_name, results)
    if run.done:
        _check_finished(run, card, device)
        return run
    table, _ = patches.load(source)
    with _until_done(run):
        _fill(run, card, study, source, _shards(run, len(table)), device, batch_size)
        _assemble(run, card, table, study)
    return run


def embed_share(
    study: Study,
    encoder_name: str,
    results: str | Path,
    share: int,
    n_shares: int,
    device: str = "cpu",
    batch_size: int = 0,
) -> store.Run:
    """Embed the ``share``-th (from 0) of ``n_shares`` equal parts of the patches and put nothing together; see `embed`.

    Shares may run at the same time, on one machine or on several that see the same folder. Raises ValueError for a share
    that there isn't, and what `embed` raises.
    """
    if n_shares < 1:
        raise ValueError(f"share {share} of {n_shares}: there must be one share or more")
    if not 0 <= share < n_shares:
        raise ValueError(f"share {share} of {n_shares}: shares are counted from 0 to {n_shares - 1}")
    source, run = _open(study, encoder_name, results)
    if not run.done:
        table, _ = patches.load(source)
        shards = list(_shards(run, len(table)).items())
        first, last = (len(shards) * i // n_shares for i in (share, share + 1))
        with _until_done(run):
            _fill(run, encoders.of(study, encoder_name, results), study, source, dict(shards[first:last]), device, batch_size)
    return run


def find(study: Study, encoder_name: str, results: str | Path) -> store.Run:
    """`encoders.find_embeddings`: the finished embeddings of the study's patches by ``encoder_name``."""
    return encoders.find_embeddings(study, encoder_name, results)


def load(run: store.Run) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n_patches, n_dims) and patch ids int64 (n_patches,) of a finished run."""
    if not run.done:
        raise store.StoreError(f"{run.folder} is not finished; embed again, it goes on where it stopped")
    return store.read_embeddings(run)


def _open(study: Study, encoder_name: str, results: str | Path) -> tuple[store.Run, store.Run]:
    """The runs of the patches and of their embeddings."""
    source = patches.find(study, results)
    config, inputs = config_of(study, encoder_name, results), {"patches": source.key}
    known = {"size_px": study.patches.size_px, **inputs}
    return source, store.open_run(results, "embeddings", encoder_name, config, inputs, known)


@contextlib.contextmanager
def _until_done(run: store.Run) -> Iterator[None]:
    """Within it another job may finish the run at any moment and take its units away: then there is nothing left to do."""
    try:
        yield
    except (FileNotFoundError, store.StoreError):
        if not run.done:
            raise
    if run.done:
        shutil.rmtree(run.path("units"), ignore_errors=True)


def _shards(run: store.Run, n_patches: int) -> dict[Path, range]:
    """The file of every shard, and its rows."""
    pieces = [range(first, min(first + SHARD, n_patches)) for first in range(0, n_patches, SHARD)]
    return {run.unit_file(f"rows-{rows.start:09d}-{rows.stop:09d}", ".npy"): rows for rows in pieces}


# ---- a finished run ----


def _check_finished(run: store.Run, card: EncoderCard, device: str) -> None:
    """Refuse embeddings that today's contract or today's encoder doesn't give; without weights only the contract counts."""
    file = run.path("embeddings.h5")
    with h5py.File(file) as content:
        was = json.loads(content.attrs["card"])
        if "canary" in content:
            expected, made_with = content["canary"][:], dict(content["canary"].attrs)
        else:
            expected, made_with = content.attrs["canary"], {}
    now = json.loads(json.dumps(card.identity()))
    differing = store.changes({"card": {key: was[key] for key in now if key in was}}, {"card": now})
    if differing:
        raise store.StoreError(f"{run.folder} holds embeddings of another contract: {'; '.join(differing)}. Remove it.")
    name, state = run.identity["name"], weights.state(card)
    if not state.is_here:
        warnings.warn(
            f"{run.folder.name} is taken as it is: whether {name!r} still gives the same can't be seen here, without its "
            f"weights ({state.text})",
            stacklevel=3,
        )
        return
    try:
        encoder = encoders.load(card, embed_stream.device_names(device)[0])
        canary.compare(encoder, canary.embed(encoder), expected, made_with)
    except encoders.EncoderError as error:
        raise encoders.EncoderError(f"{run.folder}: {error}") from error


# ---- filling shards ----


def _fill(
    run: store.Run,
    card: EncoderCard,
    study: Study,
    source: store.Run,
    shards: Mapping[Path, range],
    device: str,
    batch_size: int,
) -> None:
    """Make those of ``shards`` that aren't there; records how."""
    file_of = {rows.start // SHARD: file for file, rows in shards.items()}
    missing = [rows for file, rows in shards.items() if not file.is_file()]
    if not missing:
        return
    models = [encoders.load(card, name) for name in embed_stream.device_names(device)]
    _settle_canary(run, models)
    stream = embed_stream.Stream(models, batch_size, SHARD)
    parts: dict[int, list[tuple[int, np.ndarray]]] = {}  # the features of begun shards, with their first rows
    n_patches, n_missing = sum(map(len, shards.values())), sum(map(len, missing))
    with tqdm(total=n_patches, initial=n_patches - n_missing, desc=f"embed {card.name}", unit=" patches") as progress:

        def still_missing() -> Iterator[range]:
            for rows in missing:
                if file_of[rows.start // SHARD].is_file() or run.done:  # another job was faster
                    progress.update(len(rows))
                else:
                    yield rows

        with contextlib.closing(stream.run(_reader(source, study), still_missing(), n_missing)) as batches:
            for rows, features in batches:
                shard = rows.start // SHARD
                parts.setdefault(shard, []).append((rows.start, features))
                progress.update(len(rows))
                file = file_of[shard]
                if sum(len(part) for _, part in parts[shard]) == len(shards[file]):
                    done = np.concatenate([part for _, part in sorted(parts.pop(shard), key=lambda item: item[0])])
                    with store.replacing(file) as aside, aside.open("wb") as out:
                        np.save(out, done)  # (n_patches of the shard, n_dims)
    if stream.facts["n_patches"]:
        name = f"done-{missing[0].start:09d}-{missing[-1].stop:09d}"
        store.write_json(run.unit_file(name, ".json"), stream.facts)


def _reader(source: store.Run, study: Study) -> embed_stream.Read:
    """Gives the crops of some rows; the file is mapped anew a shard, so that pages once read don't stay with the process."""
    mapped: dict[int, np.ndarray] = {}

    def read(rows: range) -> np.ndarray:
        shard = rows.start // SHARD
        if shard not in mapped:
            mapped.clear()
            mapped[shard] = np.load(source.path("patches.npy"), mmap_mode="r")
        return patches.centre_crop(mapped[shard][rows.start : rows.stop], study.patches.size_px)

    return read


def _settle_canary(run: store.Run, models: Sequence[encoders.Encoder]) -> None:
    """Keep the canary of a new run, the first of several jobs' at once; compare every model with the one that is kept."""
    file, answers = run.unit_file("canary", ".npz"), [canary.embed(model) for model in models]
    content = io.BytesIO()
    np.savez(content, features=answers[0], about=json.dumps({"weights": models[0].revision, **canary.versions()}))
    store.write_first(file, content.getvalue())
    expected, about = _canary_of(run)
    for model, answer in zip(models, answers, strict=True):
        canary.compare(model, answer, expected, about)


def _canary_of(run: store.Run) -> tuple[np.ndarray, dict[str, str]]:
    """Features float32 (8, n_dims) of a begun run's canary; revision of the weights and versions of torch and timm."""
    with np.load(run.unit_file("canary", ".npz")) as content:
        return content["features"], json.loads(str(content["about"]))


# ---- putting together ----


def _assemble(run: store.Run, card: EncoderCard, table: pd.DataFrame, study: Study) -> None:
    """Write ``embeddings.h5`` from the shards, one after another, and finish the run."""
    expected, about = _canary_of(run)
    with store.replacing(run.path("embeddings.h5")) as aside, h5py.File(aside, "w") as out:
        features = out.create_dataset("features", (len(table), card.n_dims), np.float32)
        for file, rows in _shards(run, len(table)).items():
            try:
                shard = np.load(file)
            except (ValueError, EOFError) as error:
                raise store.StoreError(f"{file}: damaged ({error}); remove it and embed again") from None
            if shard.shape != (len(rows), card.n_dims):
                raise store.StoreError(
                    f"{file} holds features {shard.shape}, expected {(len(rows), card.n_dims)}; remove it and embed again"
                )
            features[rows.start : rows.stop] = shard
        coords = out.create_dataset("coords", data=patches.corners(study, table))
        coords.attrs["name"] = "top left corner of the patch in level-0 px, x and y"
        coords.attrs["patch_size"] = study.patches.size_px
        out.create_dataset("patch_id", data=table["patch_id"].to_numpy())
        out.create_dataset("slide_id", data=table["slide_id"].astype(str).to_list(), dtype=h5py.string_dtype())
        out.create_dataset("canary", data=expected).attrs.update(about)  # too large for an attribute
        out.attrs["card"] = json.dumps(as_dict(card))
        out.attrs["weights"] = about["weights"]
    jobs = [store.read_json(file) for file in sorted(run.path("units").glob("done-*.json"))]
    if not run.done:
        run.finish(["embeddings.h5"], weights=about["weights"], n_patches=len(table), jobs=jobs)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: embed a study's patches, or a share of them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.encoders.embed", description=main.__doc__)
    parser.add_argument("--study", type=Path, required=True, help="a study's YAML file")
    parser.add_argument("--encoder", required=True, help="an encoder's name")
    parser.add_argument("--results", type=Path, required=True, help="the folder that holds the study's")
    parser.add_argument("--share", type=int, help="which share, from 0; none: all that is left, put together")
    parser.add_argument("--shares", type=int, default=1, help="of how many (1)")
    parser.add_argument("--device", default="auto", help='"cpu", "cuda", "cuda:0,cuda:1" or "auto", every GPU (auto)')
    parser.add_argument("--batch-size", type=int, default=0, help="patches embedded at once; 0 finds it by trying (0)")
    chosen = parser.parse_args(arguments)
    try:
        study = load_study(chosen.study)
        where = study, chosen.encoder, chosen.results / study.name
        if chosen.share is None:
            run = embed(*where, chosen.device, chosen.batch_size)
        else:
            run = embed_share(*where, chosen.share, chosen.shares, chosen.device, chosen.batch_size)
    except (ConfigError, store.StoreError, encoders.EncoderError, patches.PatchError, ValueError, OSError) as error:
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 1
    print(run.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
