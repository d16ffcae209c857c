"""Malformed and odd inputs, each with what must come of it. Everything is made by code and always the same."""
