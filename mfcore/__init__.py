"""mfcore: mitotic figure classification with foundation models, from label table to figure.

The modules stand in layers (base, data, models, procedures, report); a module imports only from layers before its own.
Nothing heavy is imported here, so that ``import mfcore`` is quick everywhere.
"""

__version__ = "0.1.0"
