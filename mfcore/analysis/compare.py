"""Names of the modules by subject, for callers that still import them from here."""

from mfcore.analysis.exhibit import (
    HOME_MADE as HOME_MADE,
    bounds as bounds,
    counted as counted,
    folds as folds,
    marked as marked,
    plus_minus as plus_minus,
    shown_kind as shown_kind,
    shown_name as shown_name,
    unit as unit,
)
from mfcore.analysis.scores import (
    full_size as full_size,
    in_order as in_order,
    scaling_table as scaling_table,
    wide as wide,
)
from mfcore.data.splits import percent as percent
from mfcore.study.predictions import (
    ALL as ALL,
    END_TO_END as END_TO_END,
    LORA as LORA,
    PROBE as PROBE,
    Collected as Collected,
    _by_its_card as _by_its_card,
    collect as collect,
    current_runs as current_runs,
    find_embeddings as find_embeddings,
    fit_history as fit_history,
    history as history,
    kind_of as kind_of,
    load_arm as load_arm,
    refuse_lost as refuse_lost,
    scores as scores,
    stored_labels as stored_labels,
    stored_splits as stored_splits,
)
