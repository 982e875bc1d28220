# %% [markdown]
# *The committed outputs are those of the study `demo`: synthetic data.*
#
# # 06 Cross-domain analysis: who wins on a tumour domain never seen?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every arm's predictions, the published numbers, the raters' votes | Tab. 2, Fig. 2 | seconds |
#
# Tab. 2 and Fig. 2 of Ganz et al. 2024 for this study: train on one domain, test on its own test slides and on all of every
# other domain.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from pathlib import Path

from mfcore import captions, compare, figures, patches, raters, store
from mfcore.config import load_study

study = load_study(study_file)
folder = Path(results) / study.name
collected = compare.collect(study, folder)
captions.show(collected.failures if len(collected.failures) else "Every run of the study is here.")

# %% [markdown]
# ## In domain and out of domain, the published numbers beside ours

# %%
scores = compare.scores(collected.predictions)
table = compare.cross_domain_table(scores, study)
captions.show(table.round(3))

# %%
captions.show(compare.published_table())

# %% [markdown]
# ## Train on rows, test on columns

# %%
matrix, tested = compare.domain_matrix(scores, study), compare.by_test_domain(scores, study)
labels, _ = patches.load(patches.find(study, folder))
human = raters.table(labels, study.splits.seed)
store.write_csv(folder / "figures" / "06_by_test_domain.csv", tested)
figure = figures.cross_domain(study, matrix, tested=tested, human=human)
written = figures.save(figure, matrix, folder / "figures", "06_cross_domain")
figure

# %%
captions.show(captions.cross_domain(study, table, human))

# %% [markdown]
# ## Checks

# %%
assert scores["auroc"].between(0, 1).all(), "an AUROC lies between 0 and 1"

# %%
print("files written:", *[path.name for path in written], "06_by_test_domain.csv", sep="\n  ")

# %% [markdown]
# **What we saw.** What a change of tumour, scanner and laboratory costs each arm.
#
# **Limits.** Published values were measured on MIDOG 2022 with other encoders; they stand beside ours for orientation and are
# not to be subtracted from them. A domain here differs from another in several ways at once.
#
# **Next.** Put an encoder of your own into the study (README, "Your own encoder") and run it again.
