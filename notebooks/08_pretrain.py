# %% [markdown]
# # 08 Pretrain an encoder: does it learn, or does it collapse?
#
# | reads | writes | costs (demo) |
# |---|---|---|
# | the study's slides, or a folder of others | `pretrain-<encoder>-…/` (history, positions, encoders with their cards) | about a minute |
#
# DINO (Caron et al. 2021) or DINOv2 (Oquab et al. 2023) from patches that are drawn while the network learns and never stored
# (kaiko 2024). What comes out is a folder with a card and weights: an encoder like any other in `02` to `06`. On several GPUs
# the same is `torchrun --nproc-per-node N -m mfcore pretrain`; a run that was killed goes on where it was.

# %% tags=["parameters"]
study_file = "../studies/demo.yaml"  # what decides the numbers
results = "../results"  # where runs are kept, a folder a study
data_folder = ""  # where the study's data lie; empty: data/<study>, made or downloaded where that can be done
encoder = "own_vit"  # one of the study's pretrainings
device = "auto"  # "cpu", "cuda", or "auto": the GPU where there is one
n_workers = 1  # threads that read patches

# %%
from pathlib import Path

from mfcore import encoders, open_study
from mfcore.analysis import exhibit
from mfcore.analysis.encoders import pretraining_run
from mfcore.study import arms as study_arms

study = open_study(study_file, results, parameters=locals())
data = data_folder or Path(study_file).parent.parent / "data" / study.name
study.show(pretraining_run.settings(study, encoder))

# %% [markdown]
# ## What the network is shown

# %%
study.show(pretraining_run.crops(study, encoder, *study_arms.example(study.settings, encoder, data)))

# %% [markdown]
# ## Pretrain

# %%
live = exhibit.Live(lambda history: pretraining_run.draw_history(study, encoder, history))
run = study_arms.pretrain(study.settings, encoder, data, study.folder, device, n_workers, watch=live)
study.show(pretraining_run.cost(study, encoder))

# %% [markdown]
# ## How it went
#
# The two entropies tell a collapse: where a single target's is that of the mean, a target says nothing of its image.

# %%
study.show(pretraining_run.history(study, encoder))

# %% [markdown]
# ## The encoder
#
# Frozen, with the teacher's weights, seen through its card; snapshots on the way are called `<encoder>@<step>`.

# %%
encoders.card_table(encoders.load(study.card(encoder), device).card).style.hide().set_uuid("card")  # whole, without row numbers

# %% [markdown]
# ## Checks

# %%
history = pretraining_run.read_history(run)
assert history["loss"].notna().all(), "a loss isn't a number"
assert history["step"].iloc[-1] == study.settings.pretraining_of(encoder).n_steps, "a step is missing"
n_kept = sum(1 for _ in run.path("encoders").glob("*/weights.safetensors"))
assert n_kept == study.settings.pretraining_of(encoder).n_snapshots, "a snapshot isn't there"

# %%
print("files written:", run.folder.name, *sorted(path.name for path in study.figures.glob(f"08_*{encoder}*")), sep="\n  ")

# %% [markdown]
# **What we saw.** One pretraining: its loss, whether its targets tell images apart, the rank of its embeddings, and the encoder.
#
# **Limits.** A loss that falls is no proof of good embeddings, and losses of different settings can't be compared; `03`, `09`
# and `10` say what the encoder is worth. What a study doesn't say is as the method's authors have it. By DINOv2, blocks begin
# with a LayerScale of 1e-5 and the mask token with zeros, as its authors'; an encoder to start from keeps its blocks as they
# are, without LayerScale where it has none, and paths are dropped image by image, where the authors' code leaves part of a
# batch out. Batches below 256
# patches, of one GPU say, and trainings below 12,500 steps are smaller than those that such settings were made with: there the
# teacher soon gave all images the same target in trials, so that defaults of ours stand in (in the table above as such): a
# teacher's temperature of 0.02, Sinkhorn-Knopp, KoLeo, and in small batches no more prototypes than a batch has targets. A
# training that diverges or collapses all the same stops and says what to change first. How long is best isn't known
# beforehand: compare snapshots, on other data than are reported.
# The settings of the study `demo_full` were chosen with its test folds in view, so that its encoder's scores there are optimistic.
# The study `demo` takes them over, on slides of its own; its pretrainings are shorter, for their cost alone.
#
# **Next.** `02_embed` and `03_linear_probe` with this encoder; `11_pretraining_studies` sets pretrainings beside one another.
