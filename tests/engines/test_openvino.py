"""An exported EAGLE-3 drafter in OpenVINO GenAI: converted by its exporter, tokens unchanged."""

import json
import subprocess
from pathlib import Path

import pytest
from tests.engines.conftest import OPENVINO
from tests.engines.tiny_world import unseen

from specblock.integrations.export.eagle3 import export_eagle3

SECONDS = 900  # two conversions
NEW = 40


@pytest.fixture(scope="module")
def answer(world):
    drafter, asked = world.home / "for-openvino", world.home / "openvino.json"
    export_eagle3(world.eagle3, drafter, layout="eagle3", dtype="float32")
    layers = json.loads((world.eagle3 / "config.json").read_text())["feature_layers"]
    request = {
        "target": str(world.target),
        "drafter": str(drafter),
        "work": str(world.home),
        "layers": layers,
        "prompts": [" ".join(f"w{token}" for token in ids) for ids in unseen(6)],
        "new": NEW,
    }
    asked.write_text(json.dumps(request))
    found = world.home / "openvino-answer.json"
    script = Path(__file__).with_name("serve_openvino.py")
    done = subprocess.run(
        [str(OPENVINO), str(script), str(asked), str(found)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(found.read_text())


def test_greedy_output_with_the_drafter_is_plain_output(answer):
    assert answer["drafted"] == answer["plain"]
    assert all(answer["plain"])


def test_drafts_are_accepted(answer):
    assert sum(answer["accepted"]) > 0
