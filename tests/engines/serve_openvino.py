"""OpenVINO GenAI with a drafter and without, in a process of its own.

``python serve_openvino.py REQUEST.json ANSWER.json``; the request names ``target`` and ``drafter``
(folders in transformers' layout), ``work`` (where the converted models go), ``layers`` (outputs
whose states are the features, from 0), ``prompts`` (texts), ``new`` (tokens).
"""

import json
import subprocess
import sys
from pathlib import Path

# its cache is in 8 bits otherwise, and rounds otherwise for a tree than for one token
PRECISE = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
TREE = {"branching_factor": 4, "tree_depth": 4, "num_assistant_tokens": 16}


def main(request: Path, answer: Path) -> None:
    import openvino_genai as genai

    asked = json.loads(request.read_text())
    work = Path(asked["work"])
    target = converted(asked["target"], work / "ov-target")
    drafter = converted(asked["drafter"], work / "ov-drafter")
    name_layers(Path(drafter) / "openvino_model.xml", asked["layers"])
    settings = genai.GenerationConfig(max_new_tokens=asked["new"], do_sample=False, ignore_eos=True)
    settings.apply_chat_template = False

    def written(pipe) -> list:
        return [pipe.generate([text], settings) for text in asked["prompts"]]

    plain = written(genai.LLMPipeline(target, "CPU", ATTENTION_BACKEND="PA", **PRECISE))
    draft = genai.draft_model(drafter, "CPU", **PRECISE)
    pipe = genai.LLMPipeline(target, "CPU", draft_model=draft, **PRECISE)
    for name, value in TREE.items():
        setattr(settings, name, value)
    drafted = written(pipe)
    found = {
        "plain": [one.texts[0] for one in plain],
        "drafted": [one.texts[0] for one in drafted],
        "accepted": [one.extended_perf_metrics.get_num_accepted_tokens() for one in drafted],
    }
    answer.write_text(json.dumps(found))


def name_layers(model: Path, layers: list[int]) -> None:
    """Write into a converted drafter which layers' outputs are its features: as an argument from
    Python the list has a type that version 2026.4 does not take."""
    text = model.read_text()
    if "hidden_layers_list" not in text:
        mark = '<eagle3_mode value="True" />'
        assert mark in text, "the exporter did not see an EAGLE-3 drafter"
        listed = f'<hidden_layers_list value="{" ".join(map(str, layers))}" />'
        model.write_text(text.replace(mark, mark + listed, 1))


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
