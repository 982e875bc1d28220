"""Patches drawn online from slides (kaiko 2024, Online Patching): slide, resolution and place at random, none ever stored.

The stream. Patch number i is a function of the slides, the settings, the seed and i alone, whoever reads it: streams are
endless, workers and processes that read other numbers read other draws, and a training that stops goes on at its number.

The draw. First a resolution, each of ``um_per_px`` as often as it stands there. Then, uniform over tissue: a centre uniform
over all centres on any slide at which the patch lies on the slide and holds ``min_tissue`` or more; or uniform over slides: a
slide, each that has such a centre with the same probability, and on it a centre uniform over those. Where a slide has a level
of the resolution, also one that JPEG decodes smaller, the patch is cut from it, on its grid; else it is resampled as
`mfcore.data.slides.slide` does, enlarged by no more than half.

What fails. A slide that can't be opened, has no um/px or shows no tissue is left out altogether; at a resolution at which it
has no such centre, there. Where px turn out damaged, that draw is repeated, and others of the slide's px may still be read.
Each is said once, in the log and in `Source.failures`; training goes on.
"""

from mfcore.pretraining.patching_feed import Batch, batches
from mfcore.pretraining.patching_kept import Kept
from mfcore.pretraining.patching_slides import PatchingError, SlideFile, slides_in, slides_of
from mfcore.pretraining.patching_source import Patch, Source

__all__ = ["Batch", "Kept", "Patch", "PatchingError", "SlideFile", "Source", "batches", "slides_in", "slides_of"]
