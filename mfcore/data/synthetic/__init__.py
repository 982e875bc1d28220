"""The synthetic slides and fields, drawn from a seed."""
