# %% [markdown]
# # 07 Online patching: what does a network see that is pretrained on slides, not on stored patches?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | the study's slides | `figures/07_online_places.*`, `figures/07_online_patches.*` | seconds |
#
# As in kaiko 2024: a tissue mask on a thumbnail, then slide, resolution and place at random, kept where the patch holds
# enough tissue, read from the pyramid level that suits. Nothing is stored; patch number i is the same whoever draws it. This
# notebook draws what 08 learns from, for that pretraining of the study which sees the most resolutions.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
data_folder = ""  # where the study's data lie; empty: data/<study>, made or downloaded where that can be done
n_drawn = 2000  # places that are drawn for the figure, none of them read

# %%
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import open_study
from mfcore.analysis.encoders import pretraining_run
from mfcore.pretraining.feed import batches
from mfcore.pretraining.source import Source
from mfcore.study import arms as study_arms

study = open_study(study_file, results, parameters=locals())
data = data_folder or Path(study_file).parent.parent / "data" / study.name
assert study.settings.pretraining, f"study {study.name!r} pretrains nothing; describe one in pretraining: [{{name: ...}}]"
which = max(study.settings.pretraining, key=lambda one: len(set(one.patches.um_per_px)))
pretraining_run.settings(study, which.name)

# %% [markdown]
# ## Slides and their tissue

# %%
source = Source(study_arms.slides_of(study.settings, which, data), which.patches, which.seed).survey()
study.show(pretraining_run.slides(study, source))

# %% [markdown]
# ## Where patches are drawn

# %%
study.show(pretraining_run.places(study, source, n_drawn))

# %% [markdown]
# ## What they show

# %%
begun = time.perf_counter()
first = list(batches(source, 0, 4, 64))
seconds = time.perf_counter() - begun
images = np.concatenate([batch.images for batch in first])
read = pd.concat([batch.drawn for batch in first], ignore_index=True)
study.show(pretraining_run.patches(study, images, read))

# %% [markdown]
# ## Checks

# %%
assert (read["tissue"] >= which.patches.min_tissue - 1e-6).all(), "a patch holds less tissue than asked"
assert (source.read(37).image == images[37]).all(), "patch 37 isn't the same when it is read by itself"
source.close()

# %%
print(f"{len(read)} patches read in {seconds:.1f} s, {len(read) / seconds:,.0f} a second")
print("files written:", *sorted(path.name for path in study.figures.glob("07_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** Patches lie where tissue is, at every resolution that the study asks for, and slides are drawn from as it says.
#
# **Limits.** The mask is a classical rule: red ink and coloured dirt pass as tissue, and loose tissue is partly left out. A slide
# whose resolution is much coarser than asked is left out there, never enlarged by more than half.
#
# **Next.** `08_pretrain` learns from these patches.
