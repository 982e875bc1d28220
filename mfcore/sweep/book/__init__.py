"""The supplement as a book of Sphinx: pages of executed notebooks and of the files beside them."""
