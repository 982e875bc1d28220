"""mfcore: mitotic figure classification with foundation models, from label table to figure.

In five lines each (``import mfcore`` loads nothing; each name is loaded at first use):

Embed a folder of images, with a name of an encoder (`mfcore.encoders.names`)::

    >>> import mfcore
    >>> features, files = mfcore.embed("images", "vit_tiny_random")  # sorted by path
    >>> features.shape, files[0].name
    ((4, 192), 'a.png')

Embed points of a slide::

    >>> points = [(100, 80), (60.5, 90)]  # level-0 px
    >>> patches = mfcore.read_patches("slide.tiff", points, size_px=64, um_per_px=0.25)
    >>> patches.shape, patches.dtype
    ((2, 64, 64, 3), dtype('uint8'))
    >>> mfcore.embed(patches, "vit_tiny_random")[0].shape
    (2, 192)

Fit UNI's linear probe::

    >>> probe = mfcore.fit_probe(features, [0, 1, 0, 1], cost=1e4)
    >>> (probe.predict(features) > 0.5).tolist()
    [False, True, False, True]

Open a study, and score candidates by what it trained::

    study = mfcore.open_study("studies/amibr.yaml", "results")
    study.scores.groupby("arm")["auroc"].mean()
    mfcore.predict(study, "efficientnet_lite0", "new.csv").table

The packages stand in layers: measures, data, encoders, training, pretraining and tasks know no
study; study binds them to a study file and its runs; analysis, claims and sweep stand on study. A
package imports only from those before it. What all share stands in the store of runs and the named
random streams.
"""

import importlib

__version__ = "0.1.0"

LAZY = {  # name -> the module that has it and its name there, imported at first use
    "embed": "mfcore.encoders.network:embed_images",
    "fit_probe": "mfcore.training.probe:fit",
    "open_study": "mfcore.study.study:open_study",
    "predict": "mfcore.study.external:predict",
    "read_patches": "mfcore.data.slides.slide:read_patches",
}


def __getattr__(name: str) -> object:
    if name in LAZY:
        module, _, attribute = LAZY[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {sorted(LAZY)}")


def __dir__() -> list[str]:
    return [*globals(), *LAZY]
