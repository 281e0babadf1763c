"""``python -m specblock``, which is what ``torchrun -m specblock train`` runs in every process."""

from specblock.cli.main import main

if __name__ == "__main__":
    main()
