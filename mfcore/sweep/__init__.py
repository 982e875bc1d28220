"""A study's jobs, the committed notebooks, the supplement. ``python -m mfcore.sweep`` runs them."""
