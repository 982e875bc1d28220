# %% [markdown]
# *The committed outputs are those of the study `demo`: synthetic data.*
#
# # 05 Data scaling: who wins at which amount of data?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every arm's predictions | Fig. 1, its table, the claims ledger | seconds |
#
# Fig. 1 of Ganz et al. 2024 for this study: AUROC on the test slides against the size of the training set, five Monte Carlo
# folds, the same for every arm.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from pathlib import Path

from mfcore import captions, claims, compare, figures
from mfcore.config import load_study

study = load_study(study_file)
folder = Path(results) / study.name
collected = compare.collect(study, folder)
captions.show(collected.failures if len(collected.failures) else "Every run of the study is here.")

# %% [markdown]
# ## Scores by arm and size

# %%
scores = compare.scores(collected.predictions)
table = compare.scaling_table(scores, study)
captions.show(compare.wide(table))

# %%
figure = figures.data_scaling(study, table)
written = figures.save(figure, table, folder / "figures", "05_data_scaling")
figure

# %%
captions.show(captions.data_scaling(study, table, compare.best_interval(collected.predictions, table, study)))

# %% [markdown]
# ## What the paper says, asked of these data

# %%
ledger = claims.write(claims.check(study, scores), folder / "figures")
captions.show(ledger[["claim", "verdict", "found"]])

# %% [markdown]
# ## Checks

# %%
assert scores["auroc"].between(0, 1).all(), "an AUROC lies between 0 and 1"
assert not scores.duplicated(["arm", "train_domain", "domain", "fold", "size"]).any(), "an arm was scored twice"

# %%
print("files written:", *[path.name for path in written], sep="\n  ")

# %% [markdown]
# **What we saw.** The figure above answers for this study; the ledger says which of the paper's statements hold here.
#
# **Limits.** The bars are the spread over folds, which share slides: they are no confidence interval.
#
# **Next.** `06_cross_domain_analysis` asks the same of domains that training never saw.
