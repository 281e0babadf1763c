"""What ``specblock.custom_generate`` does with the arguments of transformers' ``generate``."""
