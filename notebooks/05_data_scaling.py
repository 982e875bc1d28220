# %% [markdown]
# # 05 Data scaling: who wins at which amount of data?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every arm's predictions, published values, the raters' votes, embeddings | Fig. 1, ranking, curves, calibration, strata, RankMe and ODCorr, the claims ledger | a minute |
#
# Fig. 1 of Ganz et al. 2024 for this study: AUROC on the test slides against the size of the training set, over Monte Carlo
# folds; and what so few folds can and can't show.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from mfcore import open_study
from mfcore.analysis import arms, overview, scaling
from mfcore.claims import ledger

study = open_study(study_file, results, parameters=locals())
study.show(arms.missing(study))

# %% [markdown]
# ## Scores by arm and size

# %%
study.show(scaling.scores(study))

# %% [markdown]
# ## The raters against one another
#
# Where votes are published, they say how far people agree on these very annotations.

# %%
study.show(scaling.raters(study))

# %% [markdown]
# ## Fig. 1

# %%
study.show(scaling.figure_1(study))

# %% [markdown]
# ## Which arms differ
#
# Every pair over the shared folds, or over draws of the tested cases where all folds are tested on the same patches; corrected for
# the number of pairs.

# %%
study.show(arms.ranking(study))

# %%
study.show(arms.least_difference(study))

# %%
study.show(arms.differences(study))

# %% [markdown]
# ## How much more data would close the gap

# %%
study.show(scaling.learning_curves(study))

# %%
study.show(scaling.patches_needed(study))

# %% [markdown]
# ## Can a score be taken for a probability?

# %%
study.show(arms.calibration(study))

# %% [markdown]
# ## By domain, scanner and the raters' agreement

# %%
study.show(arms.strata(study))

# %%
study.show(arms.by_agreement(study))

# %% [markdown]
# ## What the split is worth
#
# One probe under other ways to split the same patches; the supplement's page on splits has every fold.

# %%
study.show(scaling.split_schemes(study))

# %% [markdown]
# ## What the paper says, asked of these data

# %%
study.show(ledger.exhibit(study))

# %% [markdown]
# ## The published values

# %%
study.show(scaling.published_values(study))

# %% [markdown]
# ## For the supplement
#
# Its front page and its pages of reference: data, arms, encoders, estimators, conventions, RankMe and ODCorr, what each switch of
# the released code is worth, provenance.

# %%
overview.save(study)

# %% [markdown]
# ## Checks

# %%
assert study.scores["auroc"].dropna().between(0, 1).all(), "an AUROC lies between 0 and 1"
assert not study.scores.duplicated(["arm", "train_domain", "domain", "fold", "size"]).any(), "an arm was scored twice"

# %%
print("files written:", *sorted(path.name for path in study.figures.glob("05_*")), "claims.csv", "claims.json", sep="\n  ")

# %% [markdown]
# **What we saw.** The captions answer for this study; the ledger says which of the paper's statements hold here.
#
# **Limits.** The bars of Fig. 1 are the spread over folds, which share slides: they are no confidence interval. The raters'
# lines are of all annotations, the arms' of the test slides; and a single rater is a noisier reference than the consensus is,
# so that an arm above the dashed line is not yet better than a person. A fitted curve says nothing sure of sizes never tried.
#
# **Next.** `06_cross_domain_analysis` asks the same of domains that training never saw.
