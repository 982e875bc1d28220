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
from mfcore import open_study
from mfcore.analysis.encoders import pretrainings

study = open_study(study_file, results, parameters=locals())
study.show(pretrainings.missing(study))

# %% [markdown]
# ## What was pretrained

# %%
study.show(pretrainings.overview(study))

# %%
study.show(histories := pretrainings.histories(study))

# %% [markdown]
# ## Fig. 1: random weights, ImageNet's, or another encoder's

# %%
study.show(pretrainings.starts(study))

# %% [markdown]
# ## Fig. 2: how many slides, how many patches

# %%
study.show(pretrainings.amounts(study))

# %% [markdown]
# ## One magnification or several

# %%
study.show(pretrainings.magnifications(study))

# %% [markdown]
# ## Fig. 4: DINO or DINOv2

# %%
study.show(pretrainings.methods(study))

# %% [markdown]
# ## What each differs by from the base

# %%
study.show(pretrainings.against_base(study))

# %% [markdown]
# ## Checks

# %%
assert histories.table["loss"].notna().all(), "a loss is missing"
scores = pretrainings.scores_table(study)["mean"]
assert scores.dropna().between(0, 1).all(), "balanced accuracy and Dice lie between 0 and 1"

# %%
print("files written:", *sorted(path.name for path in study.figures.glob("11_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** How far scores on tasks follow from the start, the data, the magnifications and the method of a pretraining.
#
# **Limits.** Of one seed, bars are of the heads alone. Of several (`n_seeds`), bars go from the lowest seed to the highest, and an
# interval over three is wide; seeds that start from an encoder start from the same weights. The demo's pretrainings are short, on
# slides that were made up; the paper's are 100 epochs on TCGA.
#
# **Next.** Put a pretrained encoder among the study's `encoders`: 02 to 06 then benchmark it like any other.
