"""A drafter for a model in so many minutes: prompts, answers, training, and what it is worth.

Nothing is given but the model. It writes prompts and answers them, the drafter is trained on the
answers, and decoding is measured on prompts that were set aside. Every part is another's: answers
are :func:`specblock.training.data.regenerate.regenerate`'s, training is
:func:`specblock.training.pipeline.train_drafter`'s, figures are
:func:`specblock.bench.runner.run`'s. The folder says how far it is, so a run that was cut off
goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specblock.bench.runner import write_report
from specblock.budget.controller import BudgetController
from specblock.budget.survival_file import FILE as SURVIVAL
from specblock.budget.survival_file import save_survival
from specblock.drafters.fingerprint import target_digest
from specblock.engine.loading import assemble
from specblock.engine.machine.trust import learn_survival
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError, SpecBlockError
from specblock.fitting.folder import AFTER, Fit, FitFolder, Stage
from specblock.fitting.prompts import PromptWriter, asked_of
from specblock.fitting.settings import (
    ANSWERS_SHARE,
    MEASURING_SHARE,
    TRAINING_SHARE,
    FitSettings,
)
from specblock.fitting.verdict import measure, sentence
from specblock.target.architecture.structure import text_config
from specblock.target.chat.ends import end_tokens
from specblock.training.data.answers import Answer, read_answers
from specblock.training.data.prompts import Prompt
from specblock.training.data.regenerate import RegenerateConfig, regenerate
from specblock.training.data.shards import read_shard, shard_files
from specblock.training.loop.memory import available_memory
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.provenance import recorded
from specblock.training.recipe import DrafterRecipe

__all__ = ["fit_drafter"]

Report = Callable[[str], None]

# Texts written together. More of them write a little faster on a CPU, but what is half written when
# the time is over is lost.
BATCH = 16
ANSWER_TOKENS, PROMPT_TOKENS = 96, 256
MEASURED = 24  # prompts at most that are set aside to be measured on
APART = 4  # prompts at least from one that is set aside to the next
LEAST_ANSWERS, LEAST_TOKENS = 8, 8  # to train on: answers, and tokens of each
PROMPTS_PART = 0.3  # of the time for answers that a batch of prompts may take
VAIN = 3  # batches without a usable prompt
TRUST_PROMPTS, TRUST_TOKENS = 6, 32  # answers that tell how far the drafter's claims can be trusted
PASSES = 10  # over the answers at most, however few they are


def fit_drafter(
    network: nn.Module,
    tokenizer: Any,
    settings: FitSettings,
    report: Report = lambda line: None,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Make a drafter for ``network`` in ``settings.folder``, and measure it.

    Args:
        network: the target, loaded as the settings say.
        report: is told what happens, line by line.
        cache_dir: where this machine's costs are kept, if not in the usual place.

    Returns the report, which ``report.json`` in the folder holds: that of the benchmark, and under
    ``"sentence"`` what the drafter is worth.

    Raises:
        SystemExit: with code 0, after SIGTERM ended the training and its state was saved.
        SpecBlockError: the folder is another fit's, the time was too short for enough answers, or
            as the parts raise; what was done is kept.
    """
    wanted = Fit(target=target_digest(network), seed=settings.seed, prompts=_digest(settings))
    folder = FitFolder(settings.folder, wanted)
    given = [] if settings.prompts is None else [settings.prompts]
    run = _Run(network, tokenizer, settings, folder, report)
    run.cache_dir = cache_dir
    with recorded(folder.path, "fit", settings.to_dict(), given, folder=True):
        for stage, part, said in run.parts():
            if folder.fit.stage == stage:
                report(said)
                part()
                folder.reach(AFTER[stage])
    return json.loads(folder.report.read_text(encoding="utf-8"))


def _digest(settings: FitSettings) -> str | None:
    """What the prompts of a file are, by content."""
    if settings.prompts is None:
        return None
    try:
        return hashlib.sha256(settings.prompts.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"{settings.prompts} cannot be read: {error.strerror}.") from None


class _Run:
    """The parts of a fit, in order."""

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        settings: FitSettings,
        folder: FitFolder,
        report: Report,
    ):
        self.network, self.tokenizer, self.settings = network, tokenizer, settings
        self.folder, self.report = folder, report
        self.cache_dir: Path | None = None
        self.seconds = 60 * settings.minutes
        config = text_config(network)
        self.vocabulary = config.vocab_size
        context = getattr(config, "max_position_embeddings", None) or PROMPT_TOKENS + ANSWER_TOKENS
        self.prompt_tokens = min(PROMPT_TOKENS, context // 2)
        self.answer_tokens = min(ANSWER_TOKENS, context // 2)

    def parts(self) -> list[tuple[Stage, Callable[[], None], str]]:
        """Every stage with what is done in it, and what that is called."""
        given = self.settings.prompts
        first = "writing prompts and answering them" if given is None else f"answering {given}"
        return [
            ("answers", self.answer, f"1 of 3: {first}"),
            ("training", self.train, "2 of 3: training the drafter"),
            ("measuring", self.measure, "3 of 3: measuring it on prompts that it has not seen"),
        ]

    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """(to be answered, set aside): every n-th, the same ones however many are still written."""
        given = self.settings.prompts
        path = given or self.folder.prompts
        if not path.exists():
            return [], []
        found = asked_of(path, self.tokenizer, self.prompt_tokens, self.vocabulary)
        stride = APART if given is None else max(APART, len(found) // MEASURED)
        aside = found[::stride][:MEASURED]
        names = {prompt.id for prompt in aside}
        return [prompt for prompt in found if prompt.id not in names], aside

    def answer(self) -> None:
        """Prompts and their answers, for the share of the time; raises SpecBlockError if there
        are too few after it."""
        began = time.monotonic()
        deadline = began + ANSWERS_SHARE * self.seconds - self.folder.fit.seconds
        try:
            self._answer_until(deadline)
        finally:
            self.folder.spent(time.monotonic() - began)
        count = self._answered()
        if count < LEAST_ANSWERS:
            raise SpecBlockError(
                f"{self.settings.minutes:g} minutes were too few for this model here: there are "
                f"{count} answers, and at least {LEAST_ANSWERS} are needed. Start the same command "
                f"with more --minutes; what there is counts."
            )

    def _answer_until(self, deadline: float) -> None:
        """Write and answer until the clock says so; a file of prompts ends by itself."""
        writer, vain = None, 0
        if self.settings.prompts is None:
            place = self.network, self.tokenizer, self.folder.prompts
            writer = PromptWriter(*place, self.settings.seed, BATCH)
        while True:
            asked, aside = self.prompts()
            if asked and time.monotonic() < deadline:
                self._regenerate(asked, deadline - time.monotonic())
                self.report(f"{self._answered()} answers, {len(aside)} prompts set aside")
            if writer is None or time.monotonic() >= deadline:
                return
            until = deadline - (1 - PROMPTS_PART) * (deadline - time.monotonic())
            fresh = writer.write(until)
            cut_short = time.monotonic() > until
            vain = 0 if fresh else vain + (not cut_short)
            if vain == VAIN:
                raise SpecBlockError(
                    "The model writes no prompts of its own that could be asked: give some with "
                    "--prompts."
                )

    def _regenerate(self, asked: list[Prompt], seconds: float) -> None:
        config = RegenerateConfig(
            max_new_tokens=self.answer_tokens, batch_size=BATCH, seed=self.settings.seed
        )
        ends = end_tokens(self.network, self.tokenizer)
        regenerate(
            self.network, asked, self.folder.answers, ends, config, max_seconds=seconds,
            tokenizer=self.tokenizer,
        )  # fmt: skip

    def _answered(self) -> int:
        """Answers that training takes."""
        rows = (row for file in shard_files(self.folder.answers) for _, row in read_shard(file))
        return sum(len(row.answer_ids) >= LEAST_TOKENS for row in rows)

    def train(self) -> None:
        """The drafter, from the closed form, for the share of the time."""
        answers = read_answers(self.folder.answers, min_tokens=LEAST_TOKENS)
        held = max(2, min(16, len(answers) // 8))
        recipe = DrafterRecipe(
            held_out=held,
            simulated=min(4, held),
            online=not self._features_fit(answers),
            train=TrainConfig(epochs=PASSES, seed=self.settings.seed, warmup_steps=8, log_every=5),
        )
        train_drafter(
            self.network, self.tokenizer, self.folder.answers, self.folder.path, recipe,
            name=self.settings.model, max_seconds=TRAINING_SHARE * self.seconds,
            report=self.report,
        )  # fmt: skip

    def _features_fit(self, answers: list[Answer]) -> bool:
        """Whether the features of all answers, of three layers, take less than half of what is
        free in main memory; else they are computed for every batch."""
        size = next(self.network.parameters()).element_size()
        row = 3 * text_config(self.network).hidden_size * size
        needed = row * sum(len(answer.ids) for answer in answers)
        return needed < available_memory(torch.device("cpu")) / 2

    def measure(self) -> None:
        """Decode the prompts that were set aside."""
        found = measure(
            self._speculator(), self.prompts()[1], self.folder.report,
            seconds=MEASURING_SHARE * self.seconds, seed=self.settings.seed, report=self.report,
        )  # fmt: skip
        write_report(self.folder.report, {"sentence": sentence(found), **found})

    def _speculator(self) -> Speculator:
        """The drafter in use, told how far it can be trusted by answers to prompts that it was
        trained on."""
        made = assemble(
            self.network, self.tokenizer, self.folder.path, cache_dir=self.cache_dir,
            on_step=self.report, owned=True,
        )  # fmt: skip
        if (self.folder.path / SURVIVAL).exists() or not isinstance(made.budget, BudgetController):
            return made
        asked = [prompt.ids for prompt in self.prompts()[0][:TRUST_PROMPTS]]
        self.report(f"learning from {len(asked)} answers how far the drafter can be trusted")
        learned = learn_survival(made, asked, TRUST_TOKENS)
        save_survival(learned, self.folder.path)
        return Speculator(
            made.target, self.tokenizer, made.drafter,
            BudgetController(made.costs, learned, heed_clock=True), made.costs,
            made.sampling_budget, made.copies,
        )  # fmt: skip
