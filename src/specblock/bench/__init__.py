"""Measuring methods against plain decoding: prompts, interleaved runs, one report."""

from specblock.bench.runner import run
from specblock.bench.suites.prompts import BenchPrompt, load_prompts
from specblock.bench.suites.suites import load_suite

__all__ = ["BenchPrompt", "load_prompts", "load_suite", "run"]
