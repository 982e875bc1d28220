# %% [markdown]
# # 10 Representations: does an embedding show without a label what it is worth?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | every encoder's `embeddings-…/`, its probe's predictions, `judge-…/` of the tasks | RankMe and ODCorr of all encoders, by sample size, against AUROCs and tasks' scores | a minute |
#
# RankMe (Garrido et al. 2022): the entropy of an embedding's singular values, as a number of directions. ODCorr (kaiko 2024):
# the correlation between different dimensions. Kaiko's Fig. 5 sets ODCorr against accuracy; here both stand against the probes'
# AUROC, with what so few encoders can show.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
embedding_file = ""  # any .npy or HDF5 file with "features" (n, n_dims), of whatever origin, to measure besides; empty: none

# %%
from mfcore import open_study
from mfcore.analysis import exhibit
from mfcore.analysis.encoders import representations, robustness
from mfcore.claims import ledger

study = open_study(study_file, results, parameters=locals())

# %% [markdown]
# ## Every encoder, beside its probe

# %%
study.show(rankme := representations.rankme(study))

# %% [markdown]
# ## Metric against accuracy (Fig. 5 of kaiko 2024)

# %%
study.show(representations.against_probes(study))

# %%
study.show(representations.probe_correlations(study))

# %% [markdown]
# ## The same on the downstream tasks
#
# Each task's images, as every encoder that it judged embeds them; those pretrained in miniature count, too.

# %%
study.show(representations.against_tasks(study))

# %%
study.show(representations.task_correlations(study))

# %% [markdown]
# ## How many patches it takes

# %%
study.show(representations.by_sample_size(study))

# %% [markdown]
# ## By biology, or by scanner and laboratory?
#
# The nearest neighbours of a patch in other cases: of its own class or tumour from elsewhere, or of another from the same scanner?

# %%
study.show(robustness.exhibit(study))

# %% [markdown]
# ## What kaiko 2024 say, asked of these data

# %%
verdicts = ledger.judge(study, [ledger.PRETRAINING])
shown = verdicts[["claim", "paper", "where", "verdict", "here", "found", "why"]]
study.show(exhibit.Exhibit("10_claims_kaiko", "Claims", ledger.PRETRAINING_RULE, verdicts, readable=shown))

# %% [markdown]
# ## Any embeddings at all
#
# `of_file` reads an `.npy` file (n, n_dims) or any HDF5 file with a dataset `features`, in chunks, so that a million rows need no more memory
# than a thousand: CLAM's and TRIDENT's files too. Name one in `embedding_file`; by hand:
# `representations.of_file("my.h5", dataset="features")`.

# %%
representations.of_file(embedding_file) if embedding_file else print("embedding_file names none.")

# %% [markdown]
# ## Checks

# %%
table = rankme.table
assert (table["rankme"] <= 1.01 * table[["n", "n_dims"]].min(axis=1)).all(), "RankMe exceeds the rank"
assert table["odcorr_abs"].dropna().between(0, 1).all(), "a mean of absolute correlations lies between 0 and 1"
assert (table["odcorr_sq"].dropna() <= table["odcorr_abs"].dropna()).all(), "squares exceed what they are squares of"

# %%
print("files written:", *sorted(path.name for path in study.figures.glob("10_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** Two numbers that no label enters, beside what a probe makes of the same embeddings.
#
# **Limits.** RankMe compares encoders of one width, on the same patches. ODCorr's equation isn't known here, so that both readings
# stand side by side. Encoders are few, and share what they were trained on: see the caption. Both metrics are of these patches,
# mitotic figures and look-alikes, where the papers take random ones. The settings of what the study `demo_full` pretrains were
# chosen with its test folds in view, so that those encoders' scores are optimistic there. The probe penalises weights of features
# as they come: an encoder whose features hardly vary, as an untrained one's, can be left at 0.5. Page "Audit of the probe" has
# others.
#
# **Next.** `11_pretraining_studies` follows both metrics while an encoder is pretrained.
