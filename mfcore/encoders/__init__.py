"""From patches to embeddings: cards, weights, transforms, canary."""
