"""``python -m pdfx`` is the command ``pdfx``."""

from pdfx.cli.app import main

if __name__ == "__main__":
    main()
