"""The target's tokenizer: is it the drafter's, and do conversations begin and end well?"""

from __future__ import annotations

from specblock.doctor.finding import Verdict, ok, skipped, warning, wrong
from specblock.doctor.patient import Patient
from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.engine.speculator import Speculator
from specblock.target.chat.template import chat_text, chat_tokens
from specblock.training.data.chat_mask import answer_tail

_ASKED = [{"role": "user", "content": "Is it?"}]
_SHOWN = 5  # names in a sentence


def tokenizer(patient: Patient) -> Verdict:
    """The same ids mean the same to the drafter and to the target."""
    found, most = tokenizer_fingerprint(patient.tokenizer), patient.vocabulary
    recorded = patient.config.tokenizer_fingerprint if patient.config else ""
    figures = {"target": found, "drafter": recorded}
    beyond = max(patient.tokenizer.get_vocab().values(), default=0)
    if beyond >= most:
        return wrong(
            f"it has the token id {beyond}, the target's embeddings end at {most - 1}",
            "use the tokenizer that the target came with",
            **figures,
        )
    if patient.config is None:
        return skipped("no id is beyond the embeddings; for the rest it needs 'drafter files'")
    if recorded and recorded != found:
        return wrong(
            f"its fingerprint is {found}, the drafter was made with {recorded}",
            "use the tokenizer that the target came with, or the drafter of this target",
            **figures,
        )
    if not recorded:
        return warning(
            f"its fingerprint is {found}, the drafter names none",
            "write it into the drafter's config.json as tokenizer_fingerprint once the lines "
            "below are ok",
            **figures,
        )
    return ok(f"fingerprint {found}, as the drafter's", **figures)


def special_tokens(patient: Patient) -> Verdict:
    """Every special token, written out, is read as its one id."""
    tokens = patient.tokenizer.all_special_tokens
    split = {}
    for token in tokens:
        ids = patient.tokenizer.encode(token, add_special_tokens=False)
        if ids != [patient.tokenizer.convert_tokens_to_ids(token)]:
            split[token] = ids
    if split:
        names = ", ".join(list(split)[:_SHOWN])
        return wrong(
            f"{len(split)} of {len(tokens)} are read as other tokens: {names}",
            "use the tokenizer files that the target came with (tokenizer.json, "
            "tokenizer_config.json)",
            tokens=len(tokens),
            split=split,
        )
    return ok(f"{len(tokens)}, one id each", tokens=len(tokens))


def chat_template(patient: Patient) -> Verdict:
    """A question is followed by the header of its answer."""
    if not patient.tokenizer.chat_template:
        return warning(
            "there is none, prompts are taken as text",
            "choose an instruction-tuned target for conversations",
        )
    without = chat_tokens(patient.tokenizer, _ASKED, answer_follows=False)
    asked = chat_tokens(patient.tokenizer, _ASKED)
    figures = {"question": len(without), "with_header": len(asked)}
    if _ASKED[0]["content"] not in chat_text(patient.tokenizer, _ASKED):
        return wrong(
            "it drops what the user says", "use the template that the target came with", **figures
        )
    if asked == without and not _answer_follows_at_once(patient.tokenizer, without):
        return wrong(
            "it has no header of the coming answer (add_generation_prompt changes nothing), so the "
            "target is asked in another form than the drafter was trained on",
            "use the template that the target came with",
            **figures,
        )
    return ok(f"the answer's header has {len(asked) - len(without)} tokens", **figures)


def _answer_follows_at_once(tokenizer, question: list[int]) -> bool:
    """Whether nothing stands between a question and its answer, as in Mistral's template."""
    answer = "Yes."
    messages = [*_ASKED, {"role": "assistant", "content": answer}]
    whole = chat_text(tokenizer, messages, answer_follows=False)
    before = chat_text(tokenizer, _ASKED, answer_follows=False)
    return whole.startswith(before) and whole[len(before) :].lstrip().startswith(answer)


def end_tokens(patient: Patient) -> Verdict:
    """What the template ends an answer with ends generation."""
    ends = Speculator(patient.target, patient.tokenizer).end_tokens()
    names = {token: patient.tokenizer.decode([token]) for token in sorted(ends)}
    figures = {"end_tokens": {str(token): name for token, name in names.items()}}
    if not ends:
        return wrong(
            "the target has none, so no answer ends by itself",
            "name eos_token_id in its generation_config.json",
            **figures,
        )
    if not patient.tokenizer.chat_template:
        return ok(", ".join(names.values()), **figures)
    tail, ending = answer_tail(patient.tokenizer)
    figures["end_of_turn"] = tail[:ending]
    if not ending:
        return warning(
            "the template writes nothing behind an answer",
            "check that it is the template that the target came with",
            **figures,
        )
    if not set(tail[:ending]) & ends:
        said = patient.tokenizer.decode(tail[:ending]).strip()
        return wrong(
            f"the template ends an answer with {said}, which is not among the end tokens "
            f"({', '.join(names.values())}): answers run on into turns that nobody trained on",
            "use the template that the target came with, or name the token as eos_token_id in its "
            "generation_config.json",
            **figures,
        )
    return ok(f"{patient.tokenizer.decode(tail[ending - 1 : ending])} ends an answer", **figures)
