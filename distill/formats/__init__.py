"""Datasets in the shapes and files that people have, read into one record and written again."""
