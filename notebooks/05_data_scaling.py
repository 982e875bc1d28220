# %% [markdown]
# # 05 Data scaling: who wins at which amount of data?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every arm's predictions, published values, the raters' votes, embeddings | Fig. 1, ranking, curves, calibration, strata, switches, RankMe and ODCorr, the claims ledger | a minute |
#
# Fig. 1 of Ganz et al. 2024 for this study: AUROC on the test slides against the size of the training set, over Monte Carlo
# folds; and what so few folds can and can't show.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from pathlib import Path

from mfcore import open_study, store
from mfcore.analysis import (
    arms,
    captions,
    compare,
    compare_calibration,
    compare_models,
    compare_strata,
    overview,
    representations,
    scaling,
    switches,
)
from mfcore.claims import ledger as claims
from mfcore.data import patches
from mfcore.measures import raters
from mfcore.study import data as study_data
from mfcore.study.config import load_study
from mfcore.study.study import Study

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
labels, _ = patches.load(study_data.find_patches(study, folder))
human = raters.table(labels, study.splits.seed)
arms.raters_table(study, human).save(shown)

# %% [markdown]
# ## Fig. 1

# %%
interval = compare.best_interval(predictions, table, study)
scaling.figure_1(study, scores, interval, human).save(shown)

# %% [markdown]
# ## Which arms can be told apart
#
# Every pair over the shared folds, or over draws of the tested cases where all folds are tested on the same patches; corrected for
# the number of pairs.

# %%
intervals = compare_models.intervals(predictions, study)
arms.ranking(study, compare_models.ranking(predictions, study), intervals).save(shown)

# %%
captions.show(compare_models.what_folds_show(study, predictions))

# %%
arms.differences(study, predictions).save(shown)

# %% [markdown]
# ## How much more data would close the gap

# %%
scaling.learning_curves(study, scores).save(shown)

# %%
scaling.patches_needed(study, scores).save(shown)

# %% [markdown]
# ## Can a score be taken for a probability?

# %%
bins, summary = compare_calibration.reliability(predictions), compare_calibration.summary(predictions, study)
arms.reliability(study, bins, summary).save(shown)

# %% [markdown]
# ## By domain, scanner and the raters' agreement

# %%
arms.strata(study, compare_strata.by_stratum(predictions, labels, study)).save(shown)

# %%
arms.by_agreement(study, compare_strata.by_agreement(predictions, labels, study)).save(shown)

# %% [markdown]
# ## What the split is worth
#
# One probe under other ways to split the same patches; the page "Audit of the splits" of the supplement has every fold.

# %%
scaling.inflation(study, scaling.inflation_table(study, folder)).save(shown)

# %% [markdown]
# ## What each switch of the released code is worth
#
# Where the released code departs from the paper or from good practice, and what that changes on two arms, one departure at a time.

# %%
switches.worth(open_study(study_file, results)).save(shown)

# %% [markdown]
# ## What the embeddings are worth without a label
#
# RankMe and ODCorr of every encoder beside its probe; `10_representations` says what they are and how they relate.

# %%
representations.rankme(Study(study, folder))

# %% [markdown]
# ## What the paper says, asked of these data

# %%
captions.show(claims.brief(claims.write(claims.judge(study, folder, scores), shown)))

# %% [markdown]
# ## The published values

# %%
store.write_csv(shown / "05_published.csv", scaling.published(study))

# %% [markdown]
# ## For the supplement
#
# Its front page and its pages of reference: data, arms, encoders, conventions, switches, provenance.

# %%
overview.save(Study(study, folder))

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
