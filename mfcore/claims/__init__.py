"""The papers' claims, and the rule that judges them."""
