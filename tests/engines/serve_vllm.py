"""One vLLM engine in a process of its own: ``python serve_vllm.py REQUEST.json ANSWER.json``.

The request names ``engine`` (arguments of ``vllm.LLM``), ``asks``, each with ``prompts`` (token
ids) and ``sampling`` (arguments of ``SamplingParams``), and maybe ``record``, a file for what our
plug-in drafted. The answer has ``outputs``, token ids by ask, and vLLM's own ``counts``.
"""

import json
import os
import sys
import time
from pathlib import Path

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: starts in a third of it
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",  # needed with the line above, or it runs on one core
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
COMMON = {
    "dtype": "float32",
    "enforce_eager": True,  # the tests are about tokens; compiling takes minutes
    "max_model_len": 512,
    "block_size": 32,
    "disable_log_stats": False,
    "seed": 0,
}


def main(request: Path, answer: Path) -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads(request.read_text())
    llm = LLM(**{**COMMON, **asked["engine"]})
    seen = recorded() if asked.get("record") else None
    found = {"outputs": [], "seconds": [], "requests": []}
    for ask in asked["asks"]:
        prompts = [{"prompt_token_ids": ids} for ids in ask["prompts"]]
        begun = time.process_time(), time.perf_counter()
        done = llm.generate(prompts, SamplingParams(**ask["sampling"]), use_tqdm=False)
        found["seconds"].append([time.process_time() - begun[0], time.perf_counter() - begun[1]])
        if "greedy_accepted_length" not in found:  # the first ask's
            taken, drafts = counted(llm, "accepted_tokens"), counted(llm, "drafts")
            found["greedy_accepted_length"] = 1 + taken / drafts if drafts else 1.0
        found["requests"].append([text.request_id for text in done])
        found["outputs"].append([list(one.token_ids) for text in done for one in text.outputs])
    found["counts"] = {
        metric.name.removeprefix("vllm:"): metric.value
        for metric in llm.get_metrics()
        if hasattr(metric, "value") and metric.name.startswith(("vllm:spec", "vllm:num_preempt",
                                                                "vllm:prefix_cache"))
    }  # fmt: skip
    if seen is not None:
        import torch

        torch.save(seen, asked["record"])
    answer.write_text(json.dumps(found))


def counted(llm, name: str) -> int:
    """One of vLLM's counts of speculation so far."""
    named = [m for m in llm.get_metrics() if m.name == f"vllm:spec_decode_num_{name}"]
    return named[0].value if named else 0


def recorded() -> list:
    """Every text's share of every round of our plug-in, as it will have been computed."""
    from specblock.integrations.vllm.proposer import SpecBlockProposer
    from specblock.integrations.vllm.texts import Texts

    seen, names = [], []
    propose, draft = SpecBlockProposer.propose, Texts.draft

    def proposing(self, *args, **kwargs):
        names[:] = self.runner.input_batch.req_ids
        return propose(self, *args, **kwargs)

    def drafting(self, steps, most):
        found = draft(self, steps, most)
        for name, step, own in zip(names, steps, found, strict=True):
            rows = self._pages.read(step.table, step.start + len(step.tokens))
            seen.append(
                {
                    "request": name,
                    "start": step.start,
                    "tokens": step.tokens.tolist(),
                    "features": step.features.clone(),
                    "entries": rows[..., step.start :, :].clone(),
                    "drafts": own,
                    "wanted": step.drafts,
                }
            )
        return found

    SpecBlockProposer.propose, Texts.draft = proposing, drafting
    return seen


if __name__ == "__main__":
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    main(Path(sys.argv[1]), Path(sys.argv[2]))
