"""Explaining a whole set of images into a table."""
