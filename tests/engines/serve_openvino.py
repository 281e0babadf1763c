"""OpenVINO GenAI with a drafter and without, in a process of its own.

``python serve_openvino.py REQUEST.json ANSWER.json``; the request names ``target`` and ``drafter``
(folders in transformers' layout), ``work`` (where the converted models go), ``layers`` (outputs
whose states are the features, from 0), ``prompts`` (texts), ``new`` (tokens).
"""

import json
import subprocess
import sys
from pathlib import Path

TREE = {"branching_factor": 4, "tree_depth": 4, "num_assistant_tokens": 16}


def main(request: Path, answer: Path) -> None:
    import openvino_genai as genai

    asked = json.loads(request.read_text())
    work = Path(asked["work"])
    target = converted(asked["target"], work / "ov-target")
    drafter = converted(asked["drafter"], work / "ov-drafter")
    plain = genai.GenerationConfig(max_new_tokens=asked["new"], do_sample=False, ignore_eos=True)
    plain.apply_chat_template = False

    def written(pipe, config) -> tuple[list[str], list]:
        found = [pipe.generate(text, config) for text in asked["prompts"]]
        return [str(one) for one in found], found

    texts, _ = written(genai.LLMPipeline(target, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), plain)
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    draft = genai.draft_model(drafter, "CPU", eagle3_mode=True,
                              hidden_layers_list=asked["layers"], **precision)  # fmt: skip
    pipe = genai.LLMPipeline(target, "CPU", draft_model=draft, **precision)
    for name, value in TREE.items():
        setattr(plain, name, value)
    drafted, done = written(pipe, plain)
    metrics = [getattr(one, "extended_perf_metrics", None) for one in done]
    accepted = [m.get_num_accepted_tokens() for m in metrics if m is not None]
    answer.write_text(json.dumps({"plain": texts, "drafted": drafted, "accepted": accepted}))


def converted(source: str, out: Path) -> str:
    """``source`` as OpenVINO's exporter converts it, in float32."""
    if not (out / "openvino_model.xml").is_file():
        command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
        command += ["--model", source, "--task", "text-generation-with-past"]
        command += ["--trust-remote-code"]  # of the exporter itself: its EAGLE-3 network
        command += ["--weight-format", "fp32", str(out)]
        subprocess.run(command, check=True)
    return str(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
