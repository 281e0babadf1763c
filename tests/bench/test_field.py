"""Every method through one model: the same output, counted, and refused where it cannot run."""

import json

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target

from specblock.bench import BenchPrompt, run
from specblock.bench.measure.compiled import CompiledTarget
from specblock.bench.measure.field import Measured, assemble_field
from specblock.bench.measure.methods import METHODS, resolve
from specblock.bench.measure.weights import find_weights, shipped_weights
from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.drafters.checkpoint import save_checkpoint
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.parallel.network import ParallelModel
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.errors import CheckpointError, ConfigError
from specblock.kernels.route_table import RouteTable
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams

SHAPE = {
    "hidden_size": 32,
    "vocab_size": 97,
    "target_layers": 6,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "draft_vocab_size": 40,
}
UNCOMPILED = [name for name in METHODS if name != "plain-compiled"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random drafter of each kind, over different layers of the target."""
    base = tmp_path_factory.mktemp("drafters")
    torch.manual_seed(1)
    models = {
        "specblock": make_drafter().model,
        "eagle3": Eagle3Model(Eagle3Config(**SHAPE, feature_layers=(1, 2, 3))),
        "parallel": ParallelModel(ParallelConfig(**SHAPE, feature_layers=(0, 2, 4))),
    }
    for kind, model in models.items():
        save_checkpoint(model, base / kind, dtype=torch.float32)
    return {kind: base / kind for kind in models}


@pytest.fixture(scope="module")
def measured():
    """Made up: a machine on which nodes are cheap."""
    table = CostTable({1: 1.0, 96: 1.5}, {1: 0.01, 8: 0.02}, {1: 0.01, 28: 0.02})
    return Measured(RouteTable(), {"": table, **dict.fromkeys(UNCOMPILED, table)})


def prompts(*texts):
    return [BenchPrompt(f"p{i}", "t", (), (text,)) for i, text in enumerate(texts)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_all_methods_say_what_plain_says(folders, measured, temperature):
    field = assemble_field(
        make_target("llama"), make_tokenizer(), UNCOMPILED, folders, measured=measured
    )
    config = GenerationConfig(max_new_tokens=14, temperature=temperature, seed=2, ignore_eos=True)
    report = run(
        field.judge,
        prompts("w7 w8 w9 w7 w8", "w20 w30"),
        methods=field.contenders,
        config=config,
        costs=field.measured.costs,
    )
    assert set(report["methods"]) == set(UNCOMPILED)
    assert [item for item in report["divergences"] if item["kind"] == "bug"] == []
    for row in report["rows"]:
        # tau is what a recount of the ids gives: every round's tokens and the prefill's
        assert len(row["token_ids"]) == row["new_tokens"] <= 1 + row["round_tokens"]
        assert sum(row["rounds_by_nodes"].values()) == row["speculative_rounds"]
        nodes = sum(int(n) * count for n, count in row["rounds_by_nodes"].items())
        assert nodes == row["verified_nodes"]
    found = report["methods"]
    assert found["eagle3"]["draft_calls_per_round"] == 8
    assert found["eagle3"]["rounds_by_nodes"].keys() == {"60"}
    assert found["eagle3-chain"]["rounds_by_nodes"].keys() == {"8"}
    assert found["specblock-paper"]["draft_calls_per_round"] == 2
    assert found["lookup"]["draft_calls_per_round"] == found["plain"]["draft_calls_per_round"] == 0
    assert found["eagle3"]["versus_eagle3"]["speedup"]["median"] == 1.0
    assert found["eagle3"]["limit"]["speedup"] > 0
    json.dumps(report, allow_nan=False)


def test_hooks_are_there_only_while_a_method_runs(folders, measured):
    network = make_target("llama")
    field = assemble_field(
        network, make_tokenizer(), ["plain", "eagle3"], folders, measured=measured
    )
    layers = network.get_decoder().layers
    assert not any(layer._forward_hooks for layer in layers)
    with field.contenders["eagle3"].speculator.target.loan:
        assert [bool(layer._forward_hooks) for layer in layers] == [False, True, True, True] + [
            False
        ] * 2
    assert not any(layer._forward_hooks for layer in layers)


def test_methods_of_a_kind_share_weights_and_start_from_its_survival(folders, measured):
    names = ["eagle3", "eagle3-cost", "specblock"]
    field = assemble_field(
        make_target("llama"), make_tokenizer(), names, folders, measured=measured
    )
    fixed, cost = (field.contenders[name].speculator.drafter for name in names[:2])
    assert fixed.model is cost.model
    assert field.about["eagle3"]["budget"] == "60 nodes"
    assert field.about["eagle3-cost"]["budget"] == "measured"
    assert field.about["eagle3"]["drafter_parameters"] > 0
    forced = assemble_field(
        make_target("llama"), make_tokenizer(), names, folders, budget="fixed", measured=measured
    )
    assert {entry["budget"] for entry in forced.about.values()} == {"60 nodes"}


def test_what_was_measured_survives_json(folders):
    steps = []
    field = assemble_field(
        make_target("llama", num_hidden_layers=4, vocab_size=97),
        make_tokenizer(),
        ["plain", "lookup"],
        {},
        on_step=steps.append,
    )
    assert any(step.startswith("lookup: ") for step in steps)
    again = Measured.from_dict(json.loads(json.dumps(field.measured.to_dict())))
    assert again.costs.keys() == {"", "lookup"}
    assert again.to_dict() == field.measured.to_dict()


def test_a_method_without_weights_is_refused():
    with pytest.raises(ConfigError, match="--drafter eagle3=FOLDER"):
        assemble_field(make_target("llama"), make_tokenizer(), ["plain", "eagle3"], {})
    with pytest.raises(ConfigError, match="budget must be"):
        assemble_field(make_target("llama"), make_tokenizer(), ["plain"], {}, budget="big")
    assert list(resolve(["plain", "lookup"])) == ["plain", "lookup"]


def test_folders_by_kind(folders):
    given = [f"eagle3={folders['eagle3']}", str(folders["parallel"])]
    assert find_weights("my/model", given) == {
        kind: folders[kind] for kind in ("eagle3", "parallel")
    }
    assert "specblock" in find_weights("smollm2-135m-instruct", ["auto", *given])
    assert find_weights("smollm2-135m-instruct", ["none"]) == {}
    assert shipped_weights("/cache/smollm2-135m-instruct-0123")["specblock"].is_dir()
    with pytest.raises(ConfigError, match="give it as parallel="):
        find_weights("m", [f"eagle3={folders['parallel']}"])
    with pytest.raises(ConfigError, match="no kind of drafter 'eagle4'"):
        find_weights("m", ["eagle4=x"])
    with pytest.raises(CheckpointError, match="config.json is missing"):
        find_weights("m", ["eagle3=/nowhere"])


def text(target, prompt, count):
    rounds = decode(target, None, None, prompt, SamplingParams(), count, GenerationStats())
    return [token for tokens in rounds for token in tokens]


def test_the_compiled_step_decodes_plainly():
    network = make_target("qwen3", max_position_embeddings=2048, num_hidden_layers=1)
    routes, plain = RouteTable(), Target(network)
    plain.use_routes(routes)
    compiled = CompiledTarget(network, routes=routes, backend="eager")
    assert text(compiled, [4, 9, 11], 30) == text(plain, [4, 9, 11], 30)
    long = [(7 * i) % 97 for i in range(520)]  # another cache, and two chunks of prompt
    assert text(compiled, long, 6) == text(plain, long, 6)
    assert text(compiled, [4, 9, 11], 30) == text(plain, [4, 9, 11], 30)


def test_where_nothing_compiles_it_is_refused():
    def broken(graph, inputs):
        raise RuntimeError("no compiler")

    with pytest.raises(ConfigError, match=r"'plain-compiled' cannot run here.*no compiler"):
        CompiledTarget(make_target("llama", num_hidden_layers=1), backend=broken)
    with pytest.raises(ConfigError, match="sliding windows"):
        CompiledTarget(make_target("gemma3"), backend="eager")
