# %% [markdown]
# # 06 Cross-domain analysis: who wins on a tumour domain never seen?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every arm's predictions, published values, the raters' votes | Tab. 2, Fig. 2, tumour against scanner, field of view | a minute |
#
# Tab. 2 and Fig. 2 of Ganz et al. 2024 for this study: train on one domain, test on its own test slides and on all of every
# other domain. Scanners differ in resolution too: the last figure shows what resolution and field of view are worth.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study

# %%
from mfcore import open_study
from mfcore.analysis import domains
from mfcore.analysis.encoders import scales

study = open_study(study_file, results, parameters=locals())

# %% [markdown]
# ## In domain and out of domain, beside the published means

# %%
study.show(domains.means(study))

# %% [markdown]
# ## Fig. 2: train on rows, test on columns

# %%
study.show(domains.cross_domain(study))

# %% [markdown]
# ## By test domain, beside the raters

# %%
study.show(domains.by_test_domain(study))

# %% [markdown]
# ## Is it the tumour or the scanner?

# %%
study.show(domains.tumour_against_scanner(study))

# %% [markdown]
# ## How much tissue, at which resolution?

# %%
study.show(scales.field_of_view(study))

# %% [markdown]
# ## Checks

# %%
assert study.scores["auroc"].dropna().between(0, 1).all(), "an AUROC lies between 0 and 1"

# %%
print("files written:", *sorted(path.name for path in study.figures.glob("06_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** What a change of tumour, scanner and laboratory costs each arm.
#
# **Limits.** Published values were measured on MIDOG 2022 with other encoders; they stand beside ours for orientation and are
# not to be subtracted from them. A domain here differs from another in several ways at once. An encoder enlarges a small field
# to the same input, so its field of view and the size at which it sees a cell change together; a network's does not.
#
# **Next.** Put an encoder of your own into the study (`docs/your-encoder.md`) and run it again.
