# %% [markdown]
# # 04 Train end to end: how far does a network get that learns from the patches themselves?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | `patches-…/`, `splits-…/` | `train-<network>-fold…/` (predictions, history, weights) | about two minutes a fold |
#
# As in Ganz et al. 2024, section 3: from ImageNet weights, with colour jitter, blur, flips and rotation (inside a stored
# margin, so that no corner is empty), Adam under a one-cycle schedule. Under `epoch: best` the epoch with the lowest validation
# loss is the one tested, its weights truly restored; under `last` (paper mode) the last. Paper mode also turns crops with black
# corners, and draws random places of slides that have no look-alike. A network with `lora` in the study is a transformer that
# stays frozen but for low-rank matrices beside its layers, and a head. This run trains one fold, at every size and on every
# domain by itself unless the study says less; by hand, the losses are drawn below while it goes on.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
network = "efficientnet_lite0_64px"  # one of the study's networks
fold = 0  # which fold to train
data_folder = ""  # where the study's data lie; empty: data/<study>; looked into in paper mode alone
device = "auto"  # "cpu", "cuda", or "auto": the GPU where there is one

# %%
from pathlib import Path

import pandas as pd

from mfcore import open_study
from mfcore.analysis import exhibit, first_look
from mfcore.study import arms

study = open_study(study_file, results, parameters=locals())
data = data_folder or Path(study_file).parent.parent / "data" / study.name
first_look.network(study, network)

# %% [markdown]
# ## Train

# %%
watch = exhibit.Live(lambda history: first_look.draw_history(study, network, history))
run = arms.train(study.settings, network, fold, study.folder, device, watch, data)

# %% [markdown]
# ## How training went

# %%
training = study.show(first_look.training(study, network, run))
training

# %% [markdown]
# ## Checks

# %%
scores = pd.read_parquet(run.path("predictions.parquet"))["score"]
assert scores.between(0, 1).all(), "a score is a probability"
assert training.table["val_loss"].notna().all(), "a validation loss is missing"

# %%
files = sorted(path.name for path in study.figures.glob(f"04_{run.folder.name}*"))
print("files written:", run.folder.name, *files, sep="\n  ")

# %% [markdown]
# **What we saw.** One fold of the end-to-end arm: training and validation loss by epoch, and the epoch that was tested.
#
# **Limits.** At the smallest sizes the validation set holds a handful of patches, and which epoch is best is then partly chance.
#
# **Next.** `05_data_scaling` puts this arm beside the probes.
