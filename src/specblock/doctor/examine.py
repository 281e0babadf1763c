"""All checks, in order; what one of them raises is its finding, and what needs it is skipped."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specblock.doctor import decoding, files, finite, machine, measured, tokenizer, tree_rows
from specblock.doctor.finding import SKIPPED, WRONG, Finding, Verdict, skipped, warning
from specblock.doctor.patient import Patient, Request
from specblock.errors import SpecBlockError

__all__ = ["CHECKS", "Check", "examine"]

_ENOUGH = 30  # from some 30 values on a mean scatters as its standard error says
_REPAIR = "do what it says, and examine again"


@dataclass(frozen=True)
class Check:
    """``needs`` names checks without which this one can say nothing, ``rows`` says how many
    positions of answers it has to have."""

    name: str
    run: Callable[[Patient], Verdict]
    needs: tuple[str, ...] = ()
    rows: int = 0


CHECKS = (
    Check("target model", files.target_model),
    Check("drafter files", files.drafter_files),
    Check("feature layers", files.feature_layers, ("drafter files",)),
    Check("vocabulary map", files.vocabulary_map, ("drafter files",)),
    Check("tokenizer", tokenizer.tokenizer, ("target model",)),
    Check("special tokens", tokenizer.special_tokens, ("target model",)),
    Check("chat template", tokenizer.chat_template, ("target model",)),
    Check("end tokens", tokenizer.end_tokens, ("target model", "chat template")),
    Check(
        "fits the target",
        files.fits_target,
        ("target model", "feature layers", "vocabulary map", "tokenizer"),
    ),
    Check("prompts", decoding.prompts, ("target model",)),
    Check("target numbers", finite.target_numbers, ("prompts",)),
    Check("drafter numbers", finite.drafter_numbers, ("fits the target",)),
    Check("mask rows", tree_rows.mask_rows, ("target numbers",)),
    Check("long context", tree_rows.long_context, ("mask rows",)),
    Check("calibration", machine.calibration, ("fits the target",)),
    Check("kernels", machine.kernels, ("target model",)),
    Check("decoding", decoding.decoding, ("target numbers", "drafter numbers")),
    Check("numbers while decoding", finite.numbers_of_answers, ("decoding",)),
    Check("layers, measured", measured.layers_measured, ("numbers while decoding",), _ENOUGH),
    Check("vocabulary, measured", measured.map_measured, ("numbers while decoding",), _ENOUGH),
    Check("first token", measured.first_token, ("numbers while decoding",), _ENOUGH),
    Check("served as trained", decoding.served_as_trained, ("numbers while decoding",), 1),
    Check("same output", decoding.same_output, ("decoding",)),
    Check(
        "pays",
        decoding.pays,
        ("layers, measured", "vocabulary, measured", "first token", "served as trained"),
        _ENOUGH,
    ),
)


def examine(request: Request) -> list[Finding]:
    """The findings of all :data:`CHECKS`, in their order."""
    found: dict[str, Finding] = {}
    with tempfile.TemporaryDirectory(prefix="specblock-doctor-") as workplace:
        patient = Patient(request, Path(workplace))
        for check in CHECKS:
            request.on_step(check.name)
            started = time.perf_counter()
            verdict = _verdict(check, patient, found)
            seconds = time.perf_counter() - started
            found[check.name] = verdict.named(check.name, seconds)
    return list(found.values())


def _verdict(check: Check, patient: Patient, found: dict[str, Finding]) -> Verdict:
    missing = [name for name in check.needs if found[name].verdict in (WRONG, SKIPPED)]
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        return skipped(f"it needs {names}")
    rows = sum(len(reading.best) for reading in patient.readings)
    if rows < check.rows:
        return warning(
            f"{rows} positions of answers are too few to tell",
            f"ask for more, {check.rows} at least: a higher --limit or --max-new-tokens",
            rows=rows,
        )
    try:
        return check.run(patient)
    except SpecBlockError as error:
        return Verdict(WRONG, str(error), {}, _REPAIR)
