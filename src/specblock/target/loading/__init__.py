"""A target model from a name, a folder, a GGUF file or the hub: whole, or refused by a sentence."""
