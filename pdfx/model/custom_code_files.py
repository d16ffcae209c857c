"""Python files that the backbone itself brings (for example a vision tower).

None in the library. An export replaces this file by one that imports them from beside it, so that their classes are
registered with transformers before the backbone's configuration is read.
"""

MODULE_FILES: tuple[str, ...] = ()
