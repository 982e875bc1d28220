"""One reader for slides, whatever their format."""
