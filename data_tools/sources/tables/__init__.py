"""Rows of tables, in whatever file format, and the values in their cells."""
