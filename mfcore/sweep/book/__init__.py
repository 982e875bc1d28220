"""The supplement as a book of Sphinx: pages of executed notebooks, and pages made of the files beside them."""
