"""Every label file as one table."""
