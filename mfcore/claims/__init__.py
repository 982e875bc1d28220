"""The papers' claims as rows of YAML, and the rules that judge all of them."""
