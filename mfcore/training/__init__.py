"""What learns from labels: the probe and its kin, networks end to end, LoRA."""
