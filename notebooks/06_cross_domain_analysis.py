# %% [markdown]
# # 06 Cross-domain analysis: who wins on a tumour domain never seen?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every arm's predictions, published values, the raters' votes | Tab. 2, Fig. 2, asymmetry, tumour against scanner | a minute |
#
# Tab. 2 and Fig. 2 of Ganz et al. 2024 for this study: train on one domain, test on its own test slides and on all of every
# other domain.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from pathlib import Path

from mfcore.analysis import captions, compare, compare_domains, domains
from mfcore.data import patches
from mfcore.measures import raters
from mfcore.study import data as study_data
from mfcore.study.config import load_study

study = load_study(study_file)
folder = Path(results) / study.name
collected = compare.collect(study, folder)
predictions, scores, shown = collected.predictions, compare.scores(collected.predictions), folder / "figures"
captions.show(collected.failures if len(collected.failures) else "Every run of the study is here.")

# %% [markdown]
# ## In domain and out of domain

# %%
means = compare.cross_domain_table(scores, study)
domains.means(study, means).save(shown)

# %% [markdown]
# ## Fig. 2: train on rows, test on columns, the published means beside ours

# %%
matrix = compare.domain_matrix(scores, study)
domains.cross_domain(study, matrix, means).save(shown)

# %% [markdown]
# ## By test domain, beside the raters

# %%
tested = compare.by_test_domain(scores, study)
labels, _ = patches.load(study_data.find_patches(study, folder))
human = raters.table(labels, study.splits.seed)
domains.by_test_domain(study, tested, human).save(shown)

# %% [markdown]
# ## There and back

# %%
domains.asymmetry(study, compare_domains.asymmetry(matrix)).save(shown)

# %% [markdown]
# ## Is it the tumour or the scanner?

# %%
apart = compare_domains.tumour_against_scanner(predictions, labels, study)
domains.tumour_against_scanner(study, apart).save(shown)

# %% [markdown]
# ## Checks

# %%
assert scores["auroc"].dropna().between(0, 1).all(), "an AUROC lies between 0 and 1"

# %%
print("files written:", *sorted(path.name for path in shown.glob("06_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** What a change of tumour, scanner and laboratory costs each arm.
#
# **Limits.** Published values were measured on MIDOG 2022 with other encoders; they stand beside ours for orientation and are
# not to be subtracted from them. A domain here differs from another in several ways at once.
#
# **Next.** Put an encoder of your own into the study (README, "Your own encoder") and run it again.
