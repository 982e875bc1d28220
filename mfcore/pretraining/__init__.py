"""Pretraining without labels: patches drawn online from slides, and DINO and DINOv2 on them."""
