"""One tiny world for all engines; their tests are collected where the engines are."""

from importlib.util import find_spec
from pathlib import Path

import pytest

# `make test-engines` makes these environments
OPENVINO = Path(__file__).parents[2] / ".venv-openvino" / "bin" / "python"
collect_ignore_glob = [] if find_spec("vllm") else ["test_vllm_*"]
if not OPENVINO.exists():
    collect_ignore_glob.append("test_openvino*")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    from tests.engines.tiny_world import make_world

    return make_world(tmp_path_factory.mktemp("world"))
