"""Where the released code of Ganz et al. departs from their paper or from good practice, in words.

Read from DeepMicroscopy/FoundationModelComparison at b66c776 (December 2025); whether the published numbers came of exactly
these lines isn't known.
"""

from dataclasses import dataclass

RELEASED_CODE = "FoundationModelComparison at b66c776"


@dataclass(frozen=True)
class Defect:
    """One departure. name: of the switch that sets it, or its own where none does. where: in the released code.

    why_no_switch: where it is no switch, why no number of a study can show it.
    """

    name: str
    title: str
    released: str
    where: str
    ours: str
    why_no_switch: str = ""


DEFECTS = (
    Defect(
        "split_by",
        "Split by annotation",
        "draws test and training from single annotations, so that one slide, and the same px, stand on both sides",
        "linear_probing.py",
        "keeps a slide's annotations, and a case's slides, on one side",
    ),
    Defect(
        "stratified",
        "Sizes as they fall",
        "draws every size without regard to class: at 0.1 % of MIDOG22, linear_probing.py trains on 12 patches of which 25 % "
        "to 50 % are positive; train_classifier.py trains on 13 of which 23 % to 62 % are",
        "linear_probing.py, train_classifier.py",
        "draws each class by itself, so that every size has both in the data set's proportion",
    ),
    Defect(
        "shared_splits",
        "Splits not shared",
        "draws the probe's splits by numpy's new generator and training's by its old one: other splits for the same seed, "
        "where the paper says that all models had the same; paper mode draws each as its script does",
        "linear_probing.py, train_classifier.py, train_classifier_tumor_specific.py",
        "draws one table of splits, which every arm reads",
    ),
    Defect(
        "epoch",
        "Last epoch instead of the best",
        "keeps the best weights by reference, which training goes on to change, and so tests the last epoch",
        "train_classifier.py:682, train_classifier_tumor_specific.py:631",
        "tests a copy of the weights with the lowest validation loss, as the paper says",
    ),
    Defect(
        "lora_best",
        "Best LoRA weights never loaded",
        "saves the best checkpoint of a LoRA arm and never loads it: the variable that guards this stays None, the model that "
        "is returned is dropped",
        "train_classifier.py, its block for testing",
        "tests the best epoch of a LoRA arm, as of every other",
        "for a LoRA arm it is the same as epoch: last, whose row shows it",
    ),
    Defect(
        "training_label",
        "Label by window in training",
        "calls a training patch positive where any mitotic figure's centre lies inside its 224 px, and tests on the "
        "annotation's own label: another rule for 5.95 % of MIDOG22's look-alikes and 5.05 % of CCMCT's",
        "src/dataset.py, get_label against Mitosis_Test_Dataset",
        "learns from each annotation's own label",
    ),
    Defect(
        "validation",
        "Validation on a random draw",
        "validates on patches that are drawn and shifted at random, once, with training's rule for labels, and so stops by "
        "another rule than it tests by",
        "src/dataset.py, return_split",
        "validates on every validation patch, centred, under its own label",
    ),
    Defect(
        "clipping",
        "Clipping before there is a gradient",
        "clips gradients before backward(), when there are none, which does nothing",
        "train_one_epoch",
        "clips after backward() where a network asks for it",
    ),
    Defect(
        "resolution",
        "Resolutions mixed",
        "cuts patches from level 0 as scanned, whatever its µm/px",
        "load_image",
        "resamples every slide to one resolution",
    ),
    Defect(
        "border",
        "Black outside the slide in the test",
        "fills what lies outside the slide with black in the test and moves the patch inward in training; 5.9 % of MIDOG++'s "
        "patches cross a border",
        "sample_patches",
        "has one rule for training and test, at_border",
    ),
    Defect(
        "encoder_input",
        "Encoders fed otherwise than by their authors",
        "averages Virchow2's four register tokens in, resizes Prov-GigaPath's patches to 224 px where 224 of 256 are to be "
        "cropped, resizes bilinearly for ViT-H in the probe, and normalises it by 0.5 there and by ImageNet's values in "
        "fine-tuning",
        "src/utils.py, forward_virchow; src/classifier.py",
        "does as each encoder's authors do",
    ),
    Defect(
        "labels",
        "Labels 1 and 2",
        "ships labels {1, 2} for MIDOG++ and a data set class that asserts {0, 1}, so that three of its examples stop there",
        "databases/MIDOGpp.csv, src/dataset.py",
        "reads either edition's labels as 0 and 1, and refuses others",
        "the released code stops there: no number comes of it",
    ),
    Defect(
        "weights_path",
        "A path of one machine",
        "loads UNI from a path that is written into the code",
        "src/utils.py",
        "takes weights from the hub, a package or the file that a study names",
        "where weights lie changes no number; elsewhere the code stops",
    ),
    Defect(
        "pickle",
        "Results as pickles",
        "keeps results as pickles, which run code when they are read and hold nothing of what made them",
        "src/utils.py",
        "keeps tables and JSON with checksums, settings and versions",
        "how results are kept changes no number",
    ),
    Defect(
        "worker_seeds",
        "Workers without a seed",
        "leaves numpy's generator unseeded in the workers that load patches",
        "src/utils.py",
        "names every random draw, so that two trainings agree to the last bit on a CPU",
        "it makes two runs differ by chance and shifts no mean; what it adds is part of the SD over folds",
    ),
)
