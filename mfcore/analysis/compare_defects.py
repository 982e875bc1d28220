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
        "sampler",
        "Random places where a slide has no look-alike",
        "draws a slide, then a class, and where the slide has no look-alike to give takes a patch at a random place of it: "
        "22.6 % of the draws at 0.1 % of MIDOG22, 0.5 % at 100 %",
        "src/dataset.py, sample_func",
        "takes a mitotic figure of that slide instead",
    ),
    Defect(
        "augmentation",
        "Black corners, and a narrower blur",
        "turns the finished crop by nearest neighbour, which leaves black corners, and blurs by a sigma of 0.1 to 1.0 px",
        "train_classifier.py, create_dataloaders",
        "turns a crop inside a wider patch, so that no corner is empty, and blurs by a sigma of 0.1 to 2.0 px",
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
    # ---- in what paper mode still differs ----
    Defect(
        "border_in_training",
        "Training moved inward at a border",
        "moves a training window that reaches over the slide's border inward",
        "src/dataset.py, sample_func",
        "has one rule for training and test, in paper mode too, which fills both with black",
        "there is no switch for it; the row on the border says how many patches it can touch",
    ),
    Defect(
        "validation_length",
        "1,280 validation patches",
        "draws 1,280 patches to validate on, whatever the size",
        "train_classifier.py, create_dataloaders",
        "draws as many as the validation set has, in paper mode too",
        "paper mode tests the last epoch, which validation doesn't choose",
    ),
    Defect(
        "shift_steps",
        "Shifts in tenths of a px",
        "shifts a training window by up to 22.4 px in steps of 0.1 px, and rounds its corner down",
        "src/dataset.py, sample_func",
        "shifts by whole px, each as likely, up to a network's shift_px, in paper mode too",
        "the two differ in how likely the outermost px are, and in nothing else",
    ),
    Defect(
        "colour_order",
        "Colour in a random order, in 8 bits",
        "changes brightness, contrast, saturation and hue in a random order, and rounds to 8 bits after each step",
        "train_classifier.py, create_dataloaders",
        "changes them in one order and doesn't round, in paper mode too",
        "the orders differ by a tenth of a grey level of 255 on average",
    ),
    Defect(
        "draws",
        "Draws from one generator",
        "draws patches, augmentation and first weights from generators that go on through a training",
        "train_classifier.py, src/dataset.py",
        "draws each from a stream with a name, in paper mode too; folds alone are drawn by the released generators",
        "the draws are as likely and others, which is part of the SD over folds",
    ),
    Defect(
        "row_order",
        "Folds by the rows of one file",
        "draws folds from the rows of its own label file, in their order",
        "linear_probing.py, train_classifier.py",
        "draws from the rows of the label file that it is given; paper mode's folds are the released ones where that is the "
        "released CSV",
        "folds of another file's rows are others of the same kind",
    ),
    Defect(
        "precision",
        "Half precision",
        "embeds every patch in float16, and trains with matrix products in bfloat16",
        "src/utils.py, train_classifier.py",
        "embeds in the precision that an encoder's authors advise, and trains in bfloat16 on a GPU alone, in paper mode too",
        "it is the device's, not the study's",
    ),
    Defect(
        "lora_layers",
        "LoRA on queries, keys and values apart",
        "adapts queries, keys and values of ViT-H and Phikon by a pair of matrices each",
        "src/classifier.py",
        "adapts the one layer that makes all three in timm by one pair, in paper mode too",
        "every encoder has timm's layers here",
    ),
)
