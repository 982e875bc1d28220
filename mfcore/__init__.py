"""mfcore: mitotic figure classification with foundation models, from label table to figure.

Its packages stand in layers: measures, study, data, encoders; training, pretraining and tasks; analysis, claims, sweep. A
package imports only from those before it. What all share stands here: the store of runs and the named random streams.
Nothing heavy is imported here, so that ``import mfcore`` is quick everywhere.
"""

__version__ = "0.1.0"
