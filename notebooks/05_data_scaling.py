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
from pathlib import Path

from mfcore import store
from mfcore.analysis import (
    captions,
    captions_models,
    compare,
    compare_calibration,
    compare_curve,
    compare_models,
    compare_representation,
    compare_schemes,
    compare_strata,
    figures,
    figures_models,
    figures_scaling,
)
from mfcore.claims import ledger as claims
from mfcore.data import patches
from mfcore.measures import raters
from mfcore.study.config import load_study

study = load_study(study_file)
folder = Path(results) / study.name
collected = compare.collect(study, folder)
predictions, scores, shown = collected.predictions, compare.scores(collected.predictions), folder / "figures"
captions.show(collected.failures if len(collected.failures) else "Every run of the study is here.")

# %% [markdown]
# ## Scores by arm and size

# %%
table = compare.scaling_table(scores, study)
captions.show(compare.wide(compare.marked(table, study)))

# %% [markdown]
# ## The raters against one another
#
# Where votes are published, they say how far people agree on these very annotations.

# %%
labels, _ = patches.load(patches.find(study, folder))
human = raters.table(labels, study.splits.seed)
agreement = compare_strata.by_agreement(predictions, labels, study)
captions.show(captions.raters_table(study, human))

# %% [markdown]
# ## Fig. 1

# %%
published = figures_scaling.published(study)
figures.saved(figures_scaling.data_scaling(study, table, human, published), table, shown, "05_data_scaling")

# %%
interval = compare.best_interval(predictions, table, study)
captions.show(captions.data_scaling(study, table, interval, human, agreement, published))

# %% [markdown]
# ## Which arms can be told apart
#
# Every pair over the shared folds, or over draws of the tested cases where all folds are tested on the same patches; corrected for
# the number of pairs.

# %%
differences, order = compare_models.differences(predictions, study), compare_models.ranking(predictions, study)
figures.saved(figures_models.ranking(study, order, compare_models.intervals(predictions, study)), order, shown, "05_ranking")

# %%
captions.show(captions_models.ranking(study, order, interval, compare_models.what_folds_show(study, predictions)))

# %%
captions.show(differences.round(3))

# %% [markdown]
# ## How much more data would close the gap

# %%
ahead = compare_curve.ahead(scores, study)
figures.saved(figures_scaling.learning_curves(study, table, ahead), ahead, shown, "05_learning_curves")

# %%
captions.show(captions_models.curves(study, compare_curve.fit(scores, study), table))

# %% [markdown]
# ## Can a score be taken for a probability?

# %%
bins, summary = compare_calibration.reliability(predictions), compare_calibration.summary(predictions, study)
figures.saved(figures_models.reliability(study, bins, summary), bins, shown, "05_reliability")

# %%
captions.show(captions_models.reliability(study, bins, summary))

# %% [markdown]
# ## By domain, scanner and the raters' agreement

# %%
strata = compare_strata.by_stratum(predictions, labels, study)
figures.saved(figures_models.strata(study, strata), strata, shown, "05_strata")

# %%
captions.show(captions_models.strata(study, strata) + "\n\n" + captions.by_agreement(study, agreement))

# %% [markdown]
# ## What the split is worth
#
# One probe under other ways to split the same patches; `audit.html` of the supplement has every fold.

# %%
inflation = compare_schemes.inflation(study, folder)
figures.saved(figures_scaling.inflation(study, inflation), inflation, shown, "05_inflation") if len(inflation) else None

# %%
captions.show(captions.inflation(study, inflation))

# %% [markdown]
# ## What the embeddings are worth without a label
#
# RankMe and ODCorr of every encoder beside its probe; `10_representations` says what they are and how they relate.

# %%
captions.show(compare_representation.readable(compare_representation.table(study, folder)))

# %% [markdown]
# ## What the paper says, asked of these data

# %%
captions.show(claims.brief(claims.write(claims.judge(study, folder, scores), shown)))

# %% [markdown]
# ## The tables that have no figure

# %%
for name, rows in {"raters": human, "by_agreement": agreement, "published": published, "differences": differences}.items():
    store.write_csv(shown / f"05_{name}.csv", rows)

# %% [markdown]
# ## Checks

# %%
assert scores["auroc"].dropna().between(0, 1).all(), "an AUROC lies between 0 and 1"
assert not scores.duplicated(["arm", "train_domain", "domain", "fold", "size"]).any(), "an arm was scored twice"

# %%
print("files written:", *sorted(path.name for path in [*shown.glob("05_*"), *shown.glob("claims.*")]), sep="\n  ")

# %% [markdown]
# **What we saw.** The captions answer for this study; the ledger says which of the paper's statements hold here.
#
# **Limits.** The bars of Fig. 1 are the spread over folds, which share slides: they are no confidence interval. The raters'
# lines are of all annotations, the arms' of the test slides; and a single rater is a noisier reference than the consensus is,
# so that an arm above the dashed line is not yet better than a person. A fitted curve says nothing sure of sizes never tried.
#
# **Next.** `06_cross_domain_analysis` asks the same of domains that training never saw.
