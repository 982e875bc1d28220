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
from mfcore import open_study
from mfcore.analysis import first_look
from mfcore.encoders import embed
from mfcore.study import encoders as study_encoders

study = open_study(study_file, results, parameters=locals())

# %% [markdown]
# ## The encoder's card

# %%
first_look.card(study, encoder)

# %% [markdown]
# ## Embed

# %%
run = study_encoders.embed(study.settings, encoder, study.folder, device, batch_size)
features, patch_ids = embed.load(run)

# %% [markdown]
# ## What the embedding sees
#
# The first two principal components, by domain and by class: what varies most is rarely what one is after.

# %%
study.show(first_look.embedding(study, encoder, features))

# %% [markdown]
# ## Checks

# %%
n_dims = study.card(encoder).n_dims
assert (patch_ids == study.labels["patch_id"]).all(), "embeddings don't stand row for row with the labels"
assert features.shape == (len(study.labels), n_dims), f"{features.shape} embeddings of {n_dims} dimensions"

# %%
files = sorted(path.name for path in study.figures.glob(f"02_{run.folder.name}*"))
print("files written:", run.folder.name, *files, sep="\n  ")

# %% [markdown]
# **What we saw.** One vector a patch, kept with the card of the encoder that made it and its canary, the vectors of eight made
# tiles: where a later version of anything gives other ones, the file is refused, with the tile that differs.
#
# **Limits.** Two components show little of many dimensions. Weights from a hub are what that hub serves under the card's
# revision.
#
# **Next.** `03_linear_probe` asks what one linear layer can read out of these vectors.
