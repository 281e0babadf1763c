"""SpecBlock drafters inside vLLM: a plug-in, found by its entry point ``vllm.general_plugins``."""
