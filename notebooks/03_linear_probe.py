# %% [markdown]
# # 03 Linear probe: how far does one linear layer on frozen embeddings get?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | `embeddings-<encoder>-…/`, `splits-…/` | `probe-<encoder>-…/` (predictions, fits) | half a minute |
#
# The estimator is the one of Chen et al. 2024 (UNI), which Ganz et al. use: L-BFGS on the mean cross-entropy plus
# 0.5 / C times the norm of the weights, not squared, with C = D K / 100. scikit-learn's `LogisticRegression(C=…)` is another
# estimator. The validation share stays unused, so that every arm trains on the same patches.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
encoder = "efficientnet_lite0"  # whose embeddings to probe; 02_embed makes them
scheme = ""  # another way to split, to see what it would promise ("released", "annotation", ...); empty: the study's own

# %%
from pathlib import Path

from mfcore.analysis import (
    captions,
    compare,
    compare_probes,
    estimators,
    figures,
    representations,
)
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders
from mfcore.study.config import load_study
from mfcore.study.study import Study
from mfcore.training import probe

study = load_study(study_file)
folder = Path(results) / study.name
study = study_data.under(study, scheme or study.switches.scheme)
splits_run = study_data.write_splits(study, folder)

# %% [markdown]
# ## Fit and test, every fold at every size

# %%
embeddings = study_encoders.find_embeddings(study, encoder, folder)
run = study_arms.fit_probe(study, embeddings, folder)
fits = probe.load_fits(run)
captions.show(fits.drop(columns="seconds").head().round(4))

# %% [markdown]
# ## AUROC by training-set size

# %%
predictions = compare.load_arm(run, encoder, "probe")
scores = compare.scores(predictions)
table = compare.scaling_table(scores, study)
captions.show(compare.wide(table))

# %%
bins = figures.score_table(predictions)
figure = figures.score_histogram(study, bins, encoder)
written = figures.save(figure, bins, folder / "figures", f"03_{run.folder.name}")
figure

# %%
captions.show(captions.scores(study, table, encoder))

# %% [markdown]
# ## What the embeddings are worth without a label

# %%
opened = Study(study, folder)
opened.show(representations.one(opened, encoder))

# %% [markdown]
# ## Other estimators
#
# Where the study asks for it (`probe_audit`), the same embeddings and splits under other published estimators; the supplement's
# page on them shows what they give.

# %%
if encoder in study.probe_audit and not scheme:
    audit = study_arms.audit_probe(study, embeddings, folder)
    found, titles = compare_probes.scores(audit), compare_probes.titles_of(audit)
    estimators.audit(study, found, titles, encoder, f"03_{audit.folder.name}").save(folder / "figures")
    written += sorted((folder / "figures").glob(f"03_{audit.folder.name}.*"))
    captions.show(compare_probes.wide(compare_probes.table(found), titles))

# %% [markdown]
# ## Checks

# %%
assert predictions["score"].between(0, 1).all(), "a score is a probability"
print(
    f"{(~fits['converged']).sum()} of {len(fits)} fits stopped short of the optimum; largest residual {fits['residual'].max():.1e}"
)

# %%
print("files written:", run.folder.name, *[path.name for path in written], sep="\n  ")

# %% [markdown]
# **What we saw.** The probe's predictions, from which every metric is computed again wherever it is shown.
#
# **Limits.** One estimator, no search over its penalty, features not standardised: that is the protocol under study.
#
# **Next.** `04_train_end_to_end` is the arm to beat; `05_data_scaling` puts them side by side.
