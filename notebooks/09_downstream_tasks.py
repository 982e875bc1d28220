# %% [markdown]
# # 09 Downstream tasks: what is an encoder worth on tasks that it was never trained for?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | the task's patches, encoders, `pretrain-…/` | `judge-…/` or `segment-…/`, one an encoder; `judged_<task>.csv` | about a minute |
#
# As kaiko-ai/eva does, whose leaderboard stands beside: the encoder stays frozen. Of a classification of patches, every image
# is embedded once and a single linear layer learns from the embeddings (AdamW, balanced accuracy on the validation split says
# when to stop and which weights to test). Of a segmentation of nuclei, a decoder of four convolutions learns from the last
# feature map and the patch itself, by the Dice loss. Several runs from other seeds; every encoder has the same ones.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
data_folder = ""  # where the study's data lie, the tasks' in tasks/<name>; empty: data/<study>; stand-ins are made there
task = "synthetic_tissue"  # one of the study's tasks
device = "auto"  # "cpu", "cuda", or "auto": the GPU where there is one

# %%
from pathlib import Path

from mfcore import open_study
from mfcore.analysis.encoders import segmentations, tasks
from mfcore.study import tasks as study_tasks
from mfcore.tasks import protocol

study = open_study(study_file, results, parameters=locals())
data = data_folder or Path(study_file).parent.parent / "data" / study.name
study.show(tasks.protocol(study, task))

# %% [markdown]
# ## Judge every encoder
#
# One after another. An encoder without weights here (a licence to accept first, say) is a row with its reason, and the rest go on.

# %%
judged = study_tasks.judge_all(study.settings, task, data, study.folder, device)
lacking = judged[~judged["judged"]]
lacking if len(lacking) else print("every encoder was judged")

# %% [markdown]
# ## The encoders on this task

# %%
study.show(scores := tasks.scores(study, task))

# %% [markdown]
# ## By class

# %%
study.show(tasks.by_class(study, task))

# %% [markdown]
# ## By patient, where labels are of patients

# %%
study.show(tasks.by_patient(study, task))

# %% [markdown]
# ## Fig. 3: segmentations over the patches

# %%
study.show(segmentations.over_patches(study, task))

# %% [markdown]
# ## Checks

# %%
table = scores.table
assert set(table["encoder"]) == set(judged.loc[judged["judged"], "encoder"]), "a judged encoder is missing in the table"
assert table["mean"].between(0, 1).all(), "a score lies outside 0 to 1"
assert (table["n_runs"] == protocol.of(study.settings.task(task)).n_runs).all(), "a run is missing"

# %%
print("files written:", *(run.folder.name for (of, _), run in tasks.runs(study).items() if of == task), sep="\n  ")
print(*sorted(path.name for path in study.figures.glob(f"09_{task}*")), sep="\n  ")

# %% [markdown]
# **What we saw.** Each encoder's score on this task, how far it hangs on the seed, and how far on which items were tested.
#
# **Limits.** Where a set has no test split, eva reports the split on which it stops and selects: such scores are optimistic, for
# every encoder alike. Published scores are second-hand, and eva's protocol changed between its versions. What a protocol leaves
# open, and what is done here, stands below its table as "unsettled".
#
# **Next.** `10_representations` asks whether these scores could have been foretold without labels; `11_pretraining_studies` draws
# those of snapshots over the steps of pretraining.
