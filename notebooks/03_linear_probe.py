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
import pandas as pd
from IPython.display import display

from mfcore import open_study
from mfcore.analysis import estimators
from mfcore.analysis.encoders import representations
from mfcore.study import arms, data

study = open_study(study_file, results, parameters=locals())
study = study.under(scheme or study.settings.switches.scheme)
_ = data.write_splits(study.settings, study.folder)

# %% [markdown]
# ## Fit and test, every fold at every size

# %%
embeddings = study.embeddings(encoder)
run = arms.fit_probe(study.settings, embeddings, study.folder)
fits = pd.read_csv(run.path("fits.csv"))
study.show(estimators.by_training_size(study, encoder, run))

# %%
study.show(estimators.score_histogram(study, encoder, run))

# %% [markdown]
# ## What the embeddings are worth without a label

# %%
if encoder in study.runs:  # no arm: an encoder as another library uses it (`conventions`)
    display(study.show(representations.one(study, encoder)))

# %% [markdown]
# ## Other estimators
#
# Where the study asks for it (`probe_audit`), the same embeddings and splits under other published estimators; the supplement's
# page on them shows what they give.

# %%
if encoder in study.settings.probe_audit and not scheme:
    audit = study.show(estimators.audit(study, arms.audit_probe(study.settings, embeddings, study.folder)))
    display(audit, audit.readable)

# %% [markdown]
# ## Other probes
#
# Where the study asks for them (`probe: {also: [knn, simpleshot, mlp]}`): nearest neighbours, nearest centroid, a hidden layer. Each
# is an arm of its own, on the same folds.

# %%
methods = () if scheme else study.settings.probe.also
others = [arms.fit_probe(study.settings, embeddings, study.folder, method) for method in methods]
print("further probes:", ", ".join(other.identity["name"] for other in others) or "none")

# %% [markdown]
# ## Checks

# %%
n_short, residual = (~fits["converged"]).sum(), fits["residual"].max()
print(f"{n_short} of {len(fits)} fits stopped short of the optimum; largest residual {residual:.1e}")
print(f"{(fits['n_iter'] == 0).sum()} of {len(fits)} fits have no weight: the penalty outweighs what the patches say")

# %%
files = sorted(path.name for path in study.figures.glob(f"03_{run.folder.name}*"))
print("files written:", run.folder.name, *files, sep="\n  ")

# %% [markdown]
# **What we saw.** The probe's predictions, from which every metric is computed again wherever it is shown.
#
# **Limits.** One estimator, no search over its penalty, features not standardised: that is the protocol under study.
#
# **Next.** `04_train_end_to_end` is the arm to beat; `05_data_scaling` puts them side by side.
