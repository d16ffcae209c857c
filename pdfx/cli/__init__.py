"""The command ``pdfx``: one file for each group of commands."""
