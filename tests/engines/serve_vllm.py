"""One vLLM engine in a process of its own: ``python serve_vllm.py REQUEST.json ANSWER.json``.

The request names ``engine`` (arguments of ``vllm.LLM``), ``prompts`` (token ids), ``sampling``
(arguments of ``SamplingParams``), and maybe ``repeat``, how often every prompt is asked. The answer
has ``outputs``, ``texts``' token ids, and ``accepted``: drafts, draft tokens, accepted tokens.
"""

import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: starts in a third of it
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",  # needed with the line above, or it runs on one core
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def main(request: Path, answer: Path) -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads(request.read_text())
    common = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512,
              "disable_log_stats": False, "seed": 0}  # fmt: skip
    llm = LLM(**{**common, **asked["engine"]})
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"] * asked.get("repeat", 1)]
    params = SamplingParams(**asked["sampling"])
    done = llm.generate(prompts, params, use_tqdm=False)
    counts = {}
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:spec_decode_num") and hasattr(metric, "value"):
            counts[metric.name.removeprefix("vllm:spec_decode_num_")] = metric.value
    found = {"outputs": [list(one.outputs[0].token_ids) for one in done], "counts": counts}
    extra = asked.get("probe")
    if extra:
        from specblock.integrations.vllm import probe

        found["probe"] = probe.taken()
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    main(Path(sys.argv[1]), Path(sys.argv[2]))
