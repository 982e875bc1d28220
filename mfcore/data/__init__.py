"""From label files and slides to stored patches and their splits."""
