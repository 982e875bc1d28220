# %% [markdown]
# # 12 Explore: which patches are hard, and what do two arms see differently?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | patches, embeddings, every arm's predictions, one slide | slides with annotations, patches by score, a map, two arms side by side | two minutes |
#
# Numbers say how often an arm errs, pictures say on what. In JupyterLab each part has controls below it, and below them
# the picture that follows them; here and in the supplement stands its first view.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
data_folder = ""  # where the study's slides lie; empty: data/<study>
arm = ""  # whose patches are ranked; empty: the best arm, against the second

# %%
from pathlib import Path

from IPython.display import display

from mfcore import open_study
from mfcore.analysis import explore

study = open_study(study_file, results, parameters=locals())
data = data_folder or Path(study_file).parent.parent / "data" / study.name
arms = [arm] * bool(arm) + [name for name in explore.best_arms(study) if name != arm]

# %% [markdown]
# ## A slide with its annotations
#
# The slide with the most annotations, whole, and the field around one of them.

# %%
display(*map(study.show, explore.slides(study, data)))
explore.browse_slide(study, data)

# %% [markdown]
# ## Patches by score
#
# The hardest look-alikes, the missed figures, and those that the arm is sure of. Each patch was tested by folds that hadn't
# trained on it.

# %%
study.show(explore.ranked(study, arms[0]))

# %%
explore.browse_ranked(study, arms[0])

# %% [markdown]
# ## An embedding in two dimensions
#
# Do patches lie by class, or by domain? t-SNE keeps neighbours; distances between groups mean nothing.

# %%
for encoder in [name for name in arms if name in study.settings.encoders][:1]:
    display(shown := study.show(explore.map_of(study, encoder)))
    if controls := explore.browse_map(study, shown.table):
        display(controls)

# %% [markdown]
# ## Two arms side by side

# %%
for other in arms[1:2]:
    display(study.show(explore.disagreement(study, arms[0], other)))
    if controls := explore.browse_disagreement(study, arms[0], other):
        display(controls)

# %% [markdown]
# ## Checks

# %%
assert len(explore.scored(study, arms[0])), "some patches were tested"

# %%
print("files written:", *sorted(path.name for path in study.figures.glob("12_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** What the errors of the best arm look like, and where a second arm disagrees.
#
# **Limits.** The worst patches of an arm are chosen for being wrong: some have wrong labels, and none of them says how often.
#
# **Next.** Look at the patches on which raters disagree (the control "agreement"), or score candidates of a slide of your own:
# `mfcore predict`.
