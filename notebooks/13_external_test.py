# %% [markdown]
# # 13 External test: does what was learned hold on data from elsewhere?
#
# | reads | writes | costs |
# |---|---|---|
# | every arm, label files and slides (or images) of the studies in `test_on` | `external-…/` (patches), `external-test-…/` (predictions) | embedding and testing once an arm |
#
# Every arm, at every size and fold, is tested on all patches of other studies' data, which none has learned from. Patches are cut
# as this study's own. Cases and pixels that both have stop the study, or are left out and counted (`shared: drop`).

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers; test_on names other study files
results = "../results"  # where runs are kept, a folder a study
data_folder = ""  # where the study's data lie, beside those of the other studies; empty: data/<study>
device = "auto"  # "cpu", "cuda", or "auto": the GPU where there is one
n_workers = 2  # threads that read slides

# %%
from pathlib import Path

from mfcore import open_study
from mfcore.analysis import scores
from mfcore.study import external, predictions

study = open_study(study_file, results, parameters=locals())
data = data_folder or Path(study_file).parent.parent / "data" / study.name

# %% [markdown]
# ## The other data

# %%
runs = [external.cut(study, name, data, n_workers) for name in predictions.external_sets(study.settings)]

# %% [markdown]
# ## Every arm, tested there
#
# An arm that can't be tested is listed with the reason: it isn't trained, or its embeddings were made elsewhere and the other
# study's file doesn't name those of its own patches.

# %%
tested = external.test_all(study, device)
tested

# %% [markdown]
# ## Scores

# %%
study.show(scores.on_external_sets(study))

# %% [markdown]
# ## Checks

# %%
assert scores.external_scores(study)["auroc"].dropna().between(0, 1).all(), "an AUROC lies between 0 and 1"

# %%
print(
    "files written:",
    *[run.folder.name for run in runs],
    *sorted(path.name for path in study.figures.glob("13_*")),
    sep="\n  ",
)

# %% [markdown]
# **What we saw.** Fig. 1 of `05_data_scaling` shows these scores beside those on the study's own test patches.
#
# **Limits.** Intervals draw the tested cases, not the hospitals: one other hospital is one, however many patches it gives.
#
# **Next.** Score candidates that nobody has labelled: `mfcore predict`.
