# %% [markdown]
# # 02 Embed: what does a frozen encoder make of the patches?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | `patches-…/` | `embeddings-<encoder>-…/embeddings.h5` (features, coordinates, patch ids, the encoder's card and canary) | a minute or two |
#
# The encoder is used as published: its own input size, interpolation, mean and standard deviation, all read from its card and
# checked against the network that was built. No augmentation (Ganz et al. 2024, section 3).

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
encoder = "efficientnet_lite0"  # one of the study's, a card's name, or timm:<model>, hf-hub:<owner>/<repository>
device = "auto"  # "cpu", "cuda:0", or "auto": a GPU if there is one
batch_size = 0  # patches embedded at once; 0: 16 on a CPU, 128 on a GPU; halved where memory ends

# %%
from pathlib import Path

from mfcore import encoders
from mfcore.analysis import captions, figures
from mfcore.data import patches
from mfcore.encoders import embed
from mfcore.study import data as study_data, encoders as study_encoders
from mfcore.study.config import load_study

study = load_study(study_file)
folder = Path(results) / study.name
labels, images = patches.load(study_data.find_patches(study, folder))

# %% [markdown]
# ## The encoder's card

# %%
card = study_encoders.card_of(study, encoder, folder)
captions.show(encoders.card_table(card))

# %% [markdown]
# ## Embed

# %%
run = study_encoders.embed(study, encoder, folder, device, batch_size)
features, patch_ids = embed.load(run)

# %% [markdown]
# ## What the embedding sees
#
# The first two principal components, by domain and by class: what varies most is rarely what one is after.

# %%
components = figures.embedding_table(features, labels)
figure = figures.embedding(study, components, encoder)
written = figures.save(figure, components, folder / "figures", f"02_{run.folder.name}")
figure

# %%
captions.show(captions.embedding(study, components, encoder))

# %% [markdown]
# ## Checks

# %%
assert (patch_ids == labels["patch_id"]).all(), "embeddings don't stand row for row with the labels"
assert features.shape == (len(labels), card.n_dims), f"{features.shape} embeddings for {len(labels)} patches"

# %%
print("files written:", run.folder.name, *[path.name for path in written], sep="\n  ")

# %% [markdown]
# **What we saw.** One vector a patch, kept with the card of the encoder that made it and its canary, the vectors of eight made
# tiles: where a later version of anything gives other ones, the file is refused, with the tile that differs.
#
# **Limits.** Two components show little of many dimensions. Weights from a hub are what that hub serves under the card's
# revision.
#
# **Next.** `03_linear_probe` asks what one linear layer can read out of these vectors.
