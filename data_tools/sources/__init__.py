"""The formats that records come in: one module for each, and what they share; rows of tables are read in ``tables``."""
