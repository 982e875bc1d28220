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
from pathlib import Path

from mfcore import store
from mfcore.analysis import (
    captions,
    captions_representation,
    compare_representation,
    compare_representation_tasks,
    figures,
    figures_representation,
)
from mfcore.claims import ledger as claims
from mfcore.study.config import load_study

study = load_study(study_file)
folder = Path(results) / study.name
shown = folder / "figures"

# %% [markdown]
# ## Every encoder, beside its probe

# %%
table = compare_representation.table(study, folder)
store.write_csv(shown / "10_representations.csv", table)
captions.show(compare_representation.readable(table))

# %%
captions.show(captions_representation.all_encoders(study, table))

# %% [markdown]
# ## Metric against accuracy (Fig. 5 of kaiko 2024)

# %%
related = compare_representation.correlations(table)
store.write_csv(shown / "10_correlations.csv", related)
figures.saved(figures_representation.against_probes(study, table, related), table, shown, "10_against_probes")

# %%
captions.show(captions_representation.against_probes(study, table, related))

# %% [markdown]
# ## The same on the downstream tasks
#
# Each task's images, as every encoder that it judged embeds them; those pretrained in miniature count, too.

# %%
judged = compare_representation_tasks.table(study, folder)
over = compare_representation_tasks.correlations(judged)
store.write_csv(shown / "10_task_correlations.csv", over)
figures.saved(figures_representation.against_tasks(study, judged, over), judged, shown, "10_against_tasks") if len(
    judged
) else None

# %%
captions.show(captions_representation.against_tasks(study, judged, over))

# %% [markdown]
# ## How many patches it takes

# %%
subsamples = compare_representation.by_sample_size(study, folder)
figures.saved(figures_representation.by_sample_size(study, subsamples), subsamples, shown, "10_by_sample_size")

# %%
captions.show(captions_representation.by_sample_size(study, subsamples))

# %% [markdown]
# ## What kaiko 2024 say, asked of these data

# %%
ledger = claims.judge(study, folder, evidence=[claims.PRETRAINING])
store.write_csv(shown / "10_claims_kaiko.csv", ledger)
captions.show(ledger[["claim", "paper", "where", "verdict", "here", "found", "why"]])

# %%
captions.show(claims.PRETRAINING_RULE)

# %% [markdown]
# ## Any embeddings at all
#
# `of_file` reads an `.npy` file (n, n_dims) or any HDF5 file with a dataset `features`, in chunks, so that a million rows need no more memory
# than a thousand: CLAM's and TRIDENT's files too. Name one in `embedding_file`; by hand:
# `compare_representation.of_file("my.h5", dataset="features")`.

# %%
compare_representation.of_file(embedding_file) if embedding_file else "embedding_file names none."

# %% [markdown]
# ## Checks

# %%
assert (table["rankme"] <= 1.01 * table[["n", "n_dims"]].min(axis=1)).all(), "RankMe exceeds the rank"
assert table["odcorr_abs"].dropna().between(0, 1).all(), "a mean of absolute correlations lies between 0 and 1"
assert (table["odcorr_sq"].dropna() <= table["odcorr_abs"].dropna()).all(), "squares exceed what they are squares of"

# %%
print("files written:", *sorted(path.name for path in shown.glob("10_*")), sep="\n  ")

# %% [markdown]
# **What we saw.** Two numbers that no label enters, beside what a probe makes of the same embeddings.
#
# **Limits.** RankMe compares encoders of one width, on the same patches. ODCorr's equation isn't known here, so that both readings
# stand side by side. Encoders are few, and share what they were trained on: see the caption. Both metrics are of these patches,
# mitotic figures and look-alikes, where the papers take random ones. The settings of what the study `demo` pretrains were chosen
# with its test folds in view, so that those encoders' scores here are optimistic. The probe penalises weights of features as they
# come: an encoder whose features hardly vary, as an untrained one's, can be left at 0.5. Page "Audit of the probe" has others.
#
# **Next.** `11_pretraining_studies` follows both metrics while an encoder is pretrained.
