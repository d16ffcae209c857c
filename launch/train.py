"""What ``deepspeed``, ``torchrun``, ``srun`` or plain ``python`` starts: ``launch/train.py RECIPE.yaml
[section.key=value ...] [--dry-run]``. It is ``python -m pdfx.train`` as a file."""

from pdfx.train.__main__ import main

if __name__ == "__main__":
    main()
