# %% [markdown]
# *The committed outputs are those of the study `demo`: synthetic data.*
#
# # 05 Data scaling: who wins at which amount of data?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every arm's predictions, the raters' votes | Fig. 1, its table, the raters, the claims ledger | seconds |
#
# Fig. 1 of Ganz et al. 2024 for this study: AUROC on the test slides against the size of the training set, five Monte Carlo
# folds, the same for every arm.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from pathlib import Path

from mfcore import captions, claims, compare, compare_schemes, figures, patches, raters, store
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

# %% [markdown]
# ## The raters against one another
#
# Where votes are published, they say how far people agree on these very annotations.

# %%
labels, _ = patches.load(patches.find(study, folder))
human = raters.table(labels, study.splits.seed)
agreement = compare.by_agreement(collected.predictions, labels, study)
store.write_csv(folder / "figures" / "05_raters.csv", human)
store.write_csv(folder / "figures" / "05_by_agreement.csv", agreement)
captions.show(raters.wide(human)) if len(human) else None

# %%
captions.show(captions.raters_table(study, human))

# %% [markdown]
# ## Fig. 1

# %%
figure = figures.data_scaling(study, table, human)
written = figures.save(figure, table, folder / "figures", "05_data_scaling")
figure

# %%
interval = compare.best_interval(collected.predictions, table, study)
captions.show(captions.data_scaling(study, table, interval, human, agreement))

# %% [markdown]
# ## Where the raters were of one mind, and where not

# %%
captions.show(compare.readable(agreement)) if len(agreement) else None

# %%
captions.show(captions.by_agreement(study, agreement))

# %% [markdown]
# ## What the split is worth
#
# One probe under other ways to split the same patches; `audit.html` of the supplement has every fold.

# %%
inflation = compare_schemes.inflation(study, folder)
worth = figures.inflation(study, inflation) if len(inflation) else None
written += figures.save(worth, inflation, folder / "figures", "05_inflation") if len(inflation) else []
worth

# %%
captions.show(captions.inflation(study, inflation))

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
print("files written:", *[path.name for path in written], "05_raters.csv", "05_by_agreement.csv", sep="\n  ")

# %% [markdown]
# **What we saw.** The figure above answers for this study; the ledger says which of the paper's statements hold here.
#
# **Limits.** The bars are the spread over folds, which share slides: they are no confidence interval. The raters' lines are of
# all annotations, the arms' of the test slides; and a single rater is a noisier reference than the consensus is, so that an arm
# above the dashed line is not yet better than a person.
#
# **Next.** `06_cross_domain_analysis` asks the same of domains that training never saw.
