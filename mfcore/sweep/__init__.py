"""A study's jobs, the committed notebooks, the supplement. ``python -m mfcore.sweep`` runs them."""

import sys

# Where nbformat is loaded, jsonschema compiles a grammar of web addresses, which takes a second of
# every job; no notebook's format asks for it, and jsonschema does without.
sys.modules.setdefault("rfc3987_syntax", None)
