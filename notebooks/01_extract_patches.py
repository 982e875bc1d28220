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

from mfcore.analysis import captions, figures, overview
from mfcore.data import patches, splits_audit
from mfcore.study import data as study_data
from mfcore.study.config import load_study
from mfcore.study.study import Study

study = load_study(study_file)
folder = Path(results) / study.name

# %% [markdown]
# ## The data

# %%
data = study_data.prepare(study, data_folder or Path(study_file).parent.parent / "data" / study.name, n_workers)
run = study_data.extract(study, data, folder, n_workers)
labels, images = patches.load(run)
captions.show(patches.counts(labels).round(2))

# %% [markdown]
# ## The splits
#
# One row a training: how many patches train, validate and test, the share of positives in each, and what leaks: the share of
# test patches whose slide, whose case, or whose very pixels training has seen. A twin is a patch of exactly the same pixels.

# %%
splits_run = study_data.write_splits(study, folder)
audit_run = study_data.write_audit(study, folder)
audit = splits_audit.load(audit_run)
captions.show(splits_audit.summary(audit))
captions.show(
    " ".join([splits_audit.twins_sentence(splits_audit.load_twins(audit_run), audit), *audit_run.record["facts"]["remarks"]])
)

# %% [markdown]
# ## What other ways to split would share
#
# The same patches under every scheme, trained on all domains. `released` is what the released code of Ganz et al. draws.

# %%
captions.show(splits_audit.summary(splits_audit.load_schemes(audit_run)))
captions.show(captions.not_drawn(audit_run.record["facts"]["not_drawn"]))

# %%
overview.save_audit(Study(study, folder))

# %% [markdown]
# ## A contact sheet
#
# Look before counting: rows of positives and negatives of every domain, drawn at random.

# %%
figure = figures.contact_sheet(study, images, labels)
written = figures.save(figure, patches.counts(labels), folder / "figures", "01_contact_sheet")
figure

# %%
captions.show(captions.contact_sheet(study, labels))

# %% [markdown]
# ## Checks

# %%
patches.check(images, labels)
assert set(labels["label"]) == {0, 1}, "a study needs both classes"
if study.switches.split_by == "slide":
    assert not (audit["test_on_train_cases"] > 0).any(), "a case stands on both sides of a split"
if study.switches.scheme != "released":
    assert not (audit["test_twin_in_train"] > 0).any(), "a tested patch has a twin in training"

# %%
print(
    "files written:",
    run.folder.name,
    study_data.find_twins(study, folder).folder.name,
    splits_run.folder.name,
    audit_run.folder.name,
    *[path.name for path in written],
    sep="\n  ",
)

# %% [markdown]
# **What we saw.** One table of labels, one array of patches, one table of splits; everything after this reads those three.
#
# **Limits.** A patch shows the nominal resolution that its slide states. Splits by slide are not splits by patient where a
# patient has several slides and the labels don't say so. Copies that are shifted, scaled or compressed anew aren't recognised.
#
# **Next.** `02_embed` for a frozen encoder, `04_train_end_to_end` for a network trained on these patches.
