# %% [markdown]
# # 11 Pretraining studies: what of a pretraining matters?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | `pretrain-…/history.jsonl`, what 09 judged | Figs. 1, 2 and 4 of kaiko 2024 and the table of magnifications, for this study | a minute |
#
# What kaiko 2024 varies, one thing at a time: where training starts, from how many slides and patches it draws, at which
# magnifications, by which method. Which pretrainings are compared is read off their configs: those that are equal in all else.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.analysis import captions, captions_pretraining, compare_pretraining, figures, figures_pretraining
from mfcore.study.config import load_study

study = load_study(study_file)
folder = Path(results) / study.name
shown = folder / "figures"
history = compare_pretraining.histories(study, folder)
scores = compare_pretraining.scores(study, folder)
missing = compare_pretraining.missing(study, folder)
captions.show(missing if len(missing) else "Every pretraining of the study is here.")

# %% [markdown]
# ## What was pretrained

# %%
overview = compare_pretraining.overview(study, folder)
store.write_csv(shown / "11_overview.csv", overview)
captions.show(overview.round(3))

# %%
figures.saved(figures_pretraining.histories(study, history), history, shown, "11_histories")

# %%
captions.show(captions_pretraining.histories(study, history))

# %% [markdown]
# ## Fig. 1: random weights, ImageNet's, or another encoder's

# %%
parts = compare_pretraining.parts(study, scores, ["start"])
controls = compare_pretraining.controls(study, scores)
figure = figures_pretraining.over_steps(study, parts, controls)
figures.saved(figure, compare_pretraining.joined(parts), shown, "11_start")

# %%
captions.show(captions_pretraining.over_steps(study, parts, controls))

# %% [markdown]
# ## Fig. 2: how many slides, how many patches

# %%
parts = compare_pretraining.parts(study, scores, ["patches.slide_fraction", "patches.n_distinct"])
figure = figures_pretraining.over_steps(study, parts, controls)
figures.saved(figure, compare_pretraining.joined(parts), shown, "11_data")

# %%
captions.show(captions_pretraining.over_steps(study, parts, controls))

# %% [markdown]
# ## One magnification or several

# %%
parts = compare_pretraining.parts(study, scores, ["patches.um_per_px"])
figure = figures_pretraining.by_value(study, parts, controls)
figures.saved(figure, compare_pretraining.joined(parts), shown, "11_magnifications")

# %%
captions.show(captions_pretraining.by_value(study, parts, controls))

# %% [markdown]
# ## Fig. 4: DINO or DINOv2

# %%
measured = pd.concat([compare_pretraining.representations(study, folder), scores], ignore_index=True)
parts = compare_pretraining.parts(study, measured, ["method"])
figure = figures_pretraining.over_steps(study, parts, controls)
figures.saved(figure, compare_pretraining.joined(parts), shown, "11_methods")

# %%
captions.show(captions_pretraining.over_steps(study, parts, controls))

# %% [markdown]
# ## What each differs by from the base

# %%
differences = compare_pretraining.all_differences(study, folder, scores)
store.write_csv(shown / "11_differences.csv", differences)
captions.show(differences.round(3) if len(differences) else "No two pretrainings of the study differ in one thing only.")

# %% [markdown]
# ## Checks

# %%
assert history["loss"].notna().all(), "a loss is missing"
assert scores["mean"].dropna().between(0, 1).all(), "balanced accuracy and Dice lie between 0 and 1"

# %%
print("files written:", *sorted(path.name for path in shown.glob("11_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** How far scores on tasks follow from the start, the data, the magnifications and the method of a pretraining.
#
# **Limits.** Each was pretrained once unless the study says it again with another seed: bars are of the heads alone. The demo's
# are short, on slides that were made up; the paper's are 100 epochs on TCGA.
#
# **Next.** Put a pretrained encoder among the study's `encoders`: 02 to 06 then benchmark it like any other.
