"""Modules that the backbone itself brings (a vision tower of its own, say).

Empty in the library. An export replaces this file by imports of the backbone's own files beside it, so that their classes are registered with transformers
before the backbone's configuration is read.
"""

MODULES: tuple = ()
