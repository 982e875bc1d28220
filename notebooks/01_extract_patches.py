# %% [markdown]
# # 01 Extract patches: what does the data set hold, and how is it split?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | the study's label file and slides (or patch images) | `patches-…/` (label table, patches), `twins-…/`, `splits-…/`, `audit-…/` | about a minute |
#
# Every annotation becomes one patch around its centre, resampled to one resolution. The splits are drawn here, once, and every
# arm reads them: Monte Carlo folds at every training-set size, and one training set a domain for the cross-domain analysis
# (Ganz et al. 2024, section 3).

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
data_folder = ""  # where the study's data lie; empty: data/<study>, made or downloaded where that can be done
n_workers = 2  # threads that read slides

# %%
from pathlib import Path

from IPython.display import display

from mfcore import open_study
from mfcore.analysis import first_look
from mfcore.data import patches, splits_audit
from mfcore.study import data as study_data

study = open_study(study_file, results, parameters=locals())

# %% [markdown]
# ## The data

# %%
data = data_folder or Path(study_file).parent.parent / "data" / study.name
data = study_data.prepare(study.settings, data, n_workers)
runs = [study_data.extract(study.settings, data, study.folder, n_workers)]

# %% [markdown]
# ## A contact sheet
#
# Look before counting: rows of positives and negatives of every domain, drawn at random.

# %%
study.show(first_look.contact_sheet(study))

# %% [markdown]
# ## The splits
#
# The same patches under every scheme, trained on all domains: how many train, validate and test, and what leaks: the share of
# test patches whose slide, whose case, or whose very pixels training has seen. A twin is a patch of exactly the same pixels.
# `released` is what the released code of Ganz et al. draws. The supplement's page on splits has every scheme fold by fold.

# %%
runs += [study_data.write_splits(study.settings, study.folder), study_data.write_audit(study.settings, study.folder)]
schemes, by_fold, own, twins = map(study.show, first_look.audit(study))
display(schemes, twins)

# %% [markdown]
# ## This study's splits
#
# One row a training.

# %%
own

# %% [markdown]
# ## Checks

# %%
labels, images = patches.load(study.patches)
patches.check(images, labels)
assert set(labels["label"]) == {0, 1}, "a study needs both classes"
audit = splits_audit.load(study.audit)
if study.settings.switches.split_by == "slide":
    assert not (audit["test_on_train_cases"] > 0).any(), "a case stands on both sides of a split"
if study.settings.switches.scheme != "released":
    assert not (audit["test_twin_in_train"] > 0).any(), "a tested patch has a twin in training"

# %%
files = [run.folder.name for run in runs] + sorted(path.name for path in study.figures.glob("01_*"))
print("files written:", *files, sep="\n  ")

# %% [markdown]
# **What we saw.** One table of labels, one array of patches, one table of splits; everything after this reads those three.
#
# **Limits.** A patch shows the nominal resolution that its slide states. Splits by slide are not splits by patient where a
# patient has several slides and the labels don't say so. Copies that are shifted, scaled or compressed anew aren't recognised.
#
# **Next.** `02_embed` for a frozen encoder, `04_train_end_to_end` for a network trained on these patches.
