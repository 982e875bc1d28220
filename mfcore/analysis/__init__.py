"""From stored predictions to tables, figures and captions."""
