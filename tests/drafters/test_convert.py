"""The published checkpoint layout: converted, loaded, and held against an independent network.

The reference below computes one (position, slot) entry at a time in float64, straight from the
stored tensors; it shares no code with the package.
"""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from specblock.drafters.specblock.checkpoint import load_checkpoint, read_extra
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.convert import convert_published, target_layer_count
from specblock.errors import CheckpointError, SpecBlockError
from specblock.training.forward import run_block, run_trunk

SLOTS, HIDDEN, VOCAB, DRAFT = 4, 32, 60, 28
PUBLISHED = {
    "architectures": ["LlamaForCausalLMSpecBlock"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
    "vocab_size": VOCAB,
    "draft_vocab_size": DRAFT,
    "diffspec_draft_token_num": SLOTS,
    "rank_classes": 4,
    "num_ttt_blocks": 3,
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_scaling": None,
}


def published_shapes(config):
    """Names and shapes of the authors' file, without the vocabulary maps."""
    size, inner = config["hidden_size"], config["intermediate_size"]
    kv = size // config["num_attention_heads"] * config["num_key_value_heads"]
    slots, layers = config["diffspec_draft_token_num"], config["num_hidden_layers"]
    shapes = {
        "input_layer.condition_proj.weight": (size, 3 * size),
        "input_layer.condition_norm.weight": (size,),
        "input_layer.token_norm.weight": (size,),
        "input_layer.query_norm.weight": (size,),
        "input_layer.position_queries.weight": (slots, size),
        "input_layer.fuse.weight": (size, 3 * size),
        "norm.weight": (size,),
        "lm_head.weight": (config["draft_vocab_size"], size),
        "rank_head.0.weight": (256, size + 15),
        "rank_head.2.weight": (4, 256),
    }
    for layer in range(layers):
        name = f"layers.{layer}."
        shapes[name + "input_layernorm.weight"] = (size,)
        shapes[name + "post_attention_layernorm.weight"] = (size,)
        shapes[name + "self_attn.q_proj.weight"] = (size, size)
        shapes[name + "self_attn.k_proj.weight"] = (kv, size)
        shapes[name + "self_attn.v_proj.weight"] = (kv, size)
        shapes[name + "self_attn.o_proj.weight"] = (size, size)
        shapes[name + "mlp.gate_proj.weight"] = (inner, size)
        shapes[name + "mlp.up_proj.weight"] = (inner, size)
        shapes[name + "mlp.down_proj.weight"] = (size, inner)
    for layer in range(layers - 1):
        shapes[f"shift_proj.{layer}.weight"] = (size, 2 * size)
    return shapes


def published_mapping(vocab, draft, seed=5):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(vocab, generator=generator)[:draft].sort().values
    t2d = torch.zeros(vocab, dtype=torch.bool)
    t2d[chosen] = True
    return {"d2t": chosen - torch.arange(draft), "t2d": t2d}


def write_published(folder, changes=None, *, maps="both", dtype=torch.float32, drop=()):
    """A synthetic checkpoint of the published layout with random weights."""
    config = {k: v for k, v in {**PUBLISHED, **(changes or {})}.items() if k not in drop}
    generator = torch.Generator().manual_seed(11)
    full = {**PUBLISHED, **(changes or {})}
    tensors = {
        name: torch.rand(shape, generator=generator) + 0.5
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * (1.2 / shape[-1] ** 0.5)
        for name, shape in published_shapes(full).items()
    }
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    mapping = published_mapping(full["vocab_size"], full["draft_vocab_size"])
    if maps in ("both", "inside"):
        tensors.update(mapping)
    folder.mkdir(parents=True)
    if maps in ("both", "file"):
        torch.save(mapping, folder / "vocab_mapping.pt")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return tensors


class Reference:
    """The network of the published weights, entry by entry, float64."""

    def __init__(self, weights, config, embeddings, theta):
        self.w = {k: v.double() for k, v in weights.items()}
        self.emb, self.theta = embeddings.double(), theta
        self.eps, self.layers = config["rms_norm_eps"], config["num_hidden_layers"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.slots = config["diffspec_draft_token_num"]
        self.dim = config["hidden_size"] // self.heads

    def norm(self, x, name):
        return x / torch.sqrt((x * x).mean() + self.eps) * self.w[name + ".weight"]

    def inputs(self, condition, token):
        """The K inputs of a block, ``condition`` already of the hidden size."""
        c = self.norm(condition, "input_layer.condition_norm")
        t = self.norm(self.emb[token], "input_layer.token_norm")
        rows = []
        for k in range(self.slots):
            query = self.w["input_layer.position_queries.weight"][k]
            q = self.norm(query, "input_layer.query_norm")
            rows.append(self.w["input_layer.fuse.weight"] @ torch.cat((c, t, q)))
        return rows

    def rotated(self, x, position):
        """Each head of x [heads * dim] turned by its position's angles."""
        out = x.clone().view(-1, self.dim)
        half = self.dim // 2
        for head in out:
            for pair in range(half):
                angle = position * self.theta ** (-2 * pair / self.dim)
                a, b = float(head[pair]), float(head[pair + half])
                head[pair] = a * math.cos(angle) - b * math.sin(angle)
                head[pair + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def keys_values(self, layer, x, position):
        prefix = f"layers.{layer}."
        n = self.norm(x, prefix + "input_layernorm")
        key = self.rotated(self.w[prefix + "self_attn.k_proj.weight"] @ n, position)
        value = (self.w[prefix + "self_attn.v_proj.weight"] @ n).view(-1, self.dim)
        return key, value

    def layer(self, layer, x, position, visible):
        """One decoder layer for one entry; ``visible``: the (key, value) pairs it sees."""
        prefix = f"layers.{layer}."
        n = self.norm(x, prefix + "input_layernorm")
        query = self.rotated(self.w[prefix + "self_attn.q_proj.weight"] @ n, position)
        heads = []
        for h in range(self.heads):
            g = h // (self.heads // self.kv_heads)
            scores = torch.stack([query[h] @ key[g] for key, _ in visible]) / self.dim**0.5
            weights = scores.softmax(0)
            heads.append(sum(w * value[g] for w, (_, value) in zip(weights, visible, strict=True)))
        x = x + self.w[prefix + "self_attn.o_proj.weight"] @ torch.cat(heads)
        n = self.norm(x, prefix + "post_attention_layernorm")
        gate = self.w[prefix + "mlp.gate_proj.weight"] @ n
        up = self.w[prefix + "mlp.up_proj.weight"] @ n
        return x + self.w[prefix + "mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up)

    def block(self, x, base, history):
        """K slots at pair ``base``; ``history(layer)``: what all of them see besides themselves.

        Returns the hidden states and, per layer, the slots' keys and values.
        """
        made = []
        for layer in range(self.layers):
            if layer:
                shift = self.w[f"shift_proj.{layer - 1}.weight"]
                x = [shift @ torch.cat((x[k], x[max(k - 1, 0)])) for k in range(self.slots)]
            pairs = [self.keys_values(layer, x[k], base + 1 + k) for k in range(self.slots)]
            made.append(pairs)
            x = [
                self.layer(layer, x[k], base + 1 + k, history(layer) + pairs[: k + 1])
                for k in range(self.slots)
            ]
        return x, made

    def first_blocks(self, features, tokens):
        """Block 1 at every position of one sequence."""
        out, cache = [], [[] for _ in range(self.layers)]
        for i, token in enumerate(tokens.tolist()):
            condition = self.w["input_layer.condition_proj.weight"] @ features[i].double()
            x = self.inputs(condition, token)
            hidden, made = self.block(x, i, lambda layer: cache[layer])
            out.append((hidden, made))
            for layer in range(self.layers):
                cache[layer] = cache[layer] + made[layer]
        return out

    def second_block(self, first, base, slot, token):
        """The block of a leaf of slot ``slot`` drafted at pair ``base``."""
        hidden, made = first[base]
        cache = [
            [pair for _, earlier in first[:base] for pair in earlier[layer]]
            + made[layer][: slot + 1]
            for layer in range(self.layers)
        ]
        return self.block(self.inputs(hidden[slot], token), base, lambda layer: cache[layer])[0]

    def outputs(self, hidden):
        """Draft logits and rank logits of one entry."""
        y = self.norm(hidden, "norm")
        logits = self.w["lm_head.weight"] @ y
        z = logits.sort(descending=True).values[:20]
        lp = z - torch.logsumexp(z, 0)
        gaps = torch.stack((z[0] - z[1], z[0] - z[2], z[0] - z[4]))
        entropy = -(lp.exp() * lp).sum()
        inner = torch.cat((y, lp[:10], gaps, lp[:1].exp(), entropy[None]))
        inner = self.w["rank_head.0.weight"] @ inner
        return logits, self.w["rank_head.2.weight"] @ (inner * torch.sigmoid(inner))


def close(ours, reference):
    torch.testing.assert_close(ours.double(), reference, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("changes", "drop", "theta"),
    [
        ({}, (), 10000.0),
        (
            {
                "architectures": ["LlamaForCausalLMSpecBlockShift"],
                "rope_theta": 1e6,
                "rms_norm_eps": 1e-6,
                "target_hidden_size": HIDDEN,
                "head_dim": 64,  # not read by the authors' network
                "num_hidden_layers": 3,
            },
            (),
            1e6,
        ),
        ({"rms_norm_eps": 1e-5, "num_key_value_heads": 4}, ("rms_norm_eps",), 10000.0),
    ],
)
def test_converted_network_equals_the_reference(tmp_path, changes, drop, theta):
    weights = write_published(tmp_path / "theirs", changes, drop=drop)
    published = {**PUBLISHED, **changes}
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(VOCAB, HIDDEN, generator=generator)
    features = torch.randn(1, 5, 3 * HIDDEN, generator=generator)
    tokens = torch.randint(VOCAB, (1, 5), generator=generator)
    model = load_checkpoint(tmp_path / "ours", embeddings=embeddings)
    reference = Reference(weights, published, embeddings, theta)
    first = reference.first_blocks(features[0], tokens[0])
    trunk = run_trunk(model, features, tokens)
    for i, (hidden, _) in enumerate(first):
        for k in range(SLOTS):
            check_entry(model, reference, trunk.hidden[0, i, k], hidden[k])

    # leaves of every slot, at the first and the last pair, with tokens other than the drafted
    places = [(0, 0), (0, 3), (4, 0), (4, 1), (4, 2), (4, 3)]
    chosen = torch.tensor([[base for base, _ in places]])
    slots = torch.tensor([slot for _, slot in places])
    leaf_tokens = torch.randint(VOCAB, (1, len(places)), generator=generator)
    rows = trunk.condition[:, chosen[0]]
    block = run_block(model, trunk, rows, tokens[:, chosen[0]], chosen)
    condition = block.hidden[0, torch.arange(len(places)), slots][None]
    parents = [(block, slots[None] + 1)]
    second = run_block(model, trunk, condition, leaf_tokens, chosen, parents)
    for index, (base, slot) in enumerate(places):
        hidden = reference.second_block(first, base, slot, int(leaf_tokens[0, index]))
        for k in range(SLOTS):
            check_entry(model, reference, second.hidden[0, index, k], hidden[k])


def check_entry(model, reference, ours, theirs):
    close(ours, theirs)
    logits, normed = model.logits(ours)
    expected, expected_rank = reference.outputs(theirs)
    close(logits, expected)
    close(model.rank_logits(normed, logits), expected_rank)


def test_config_and_weights_of_a_conversion(tmp_path):
    weights = write_published(tmp_path / "theirs", dtype=torch.bfloat16)
    config = convert_published(
        tmp_path / "theirs",
        tmp_path / "ours",
        target_layers=36,
        tokenizer_fingerprint="f" * 16,
        target_name="some/target",
    )
    assert config == SpecBlockConfig.load(tmp_path / "ours")
    assert config == SpecBlockConfig(
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        target_layers=36,
        feature_layers=(1, 17, 32),
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=2,
        block_size=SLOTS,
        draft_vocab_size=DRAFT,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tokenizer_fingerprint="f" * 16,
        target_name="some/target",
        cached_slots=0,
        feature_norm=False,
        slot_rank=0,
        sink=False,
        target_lm_head=False,
    )
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in weights)
    assert stored["norm.weight"].dtype == torch.bfloat16
    assert read_extra(tmp_path / "ours")["converted_from"] == "published"


@pytest.mark.parametrize("maps", ["both", "inside", "file"])
def test_the_map_is_found_in_either_place(tmp_path, maps):
    write_published(tmp_path / "theirs", maps=maps)
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    model = load_checkpoint(tmp_path / "ours", embeddings=torch.zeros(VOCAB, HIDDEN))
    mapping = published_mapping(VOCAB, DRAFT)
    assert torch.equal(model.d2t, mapping["d2t"])
    assert torch.equal(model.to_target_ids(torch.arange(DRAFT)), mapping["t2d"].nonzero()[:, 0])


def test_the_placeholder_inside_gives_way_to_the_file(tmp_path):
    weights = write_published(tmp_path / "theirs")
    weights["d2t"] = torch.zeros(DRAFT, dtype=torch.int64)
    weights["t2d"] = torch.ones(VOCAB, dtype=torch.bool)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(stored["t2d"], published_mapping(VOCAB, DRAFT)["t2d"])
    os.remove(tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="vocab_mapping.pt is missing"):
        convert_published(tmp_path / "theirs", tmp_path / "other", target_layers=32)


def test_a_whole_vocabulary_needs_no_map(tmp_path):
    write_published(tmp_path / "theirs", {"draft_vocab_size": VOCAB}, maps="none")
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    model = load_checkpoint(tmp_path / "ours", embeddings=torch.zeros(VOCAB, HIDDEN))
    assert model.to_target_ids(torch.arange(VOCAB)).tolist() == list(range(VOCAB))
    assert bool(model.t2d.all())


def test_two_different_maps_are_refused(tmp_path):
    write_published(tmp_path / "theirs")
    other = published_mapping(VOCAB, DRAFT, seed=6)
    torch.save(other, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="different drafters"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    write_published(tmp_path / "theirs", maps="inside")
    trap = {"d2t": Malicious(str(tmp_path / "executed"))}
    torch.save(trap, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors") as caught:
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    assert not (tmp_path / "executed").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html></html>" * 9, b"PK\x03\x04" * 50, b"\x80\x02."])
def test_a_damaged_map_is_refused(tmp_path, content):
    write_published(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab_mapping.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="vocab_mapping.pt"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


@pytest.mark.parametrize("value", [[1, 2], {"d2t": torch.zeros(3)}, {"d2t": 1, "t2d": 2}])
def test_a_map_without_its_tensors_is_refused(tmp_path, value):
    write_published(tmp_path / "theirs")
    torch.save(value, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="does not hold the tensors d2t and t2d"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_a_map_of_another_size_or_order_is_refused(tmp_path):
    write_published(tmp_path / "theirs", maps="file")
    mapping = published_mapping(VOCAB, DRAFT - 1)
    torch.save(mapping, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match=r"d2t is \[27\] instead of \[28\]"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    mapping = published_mapping(VOCAB, DRAFT)
    mapping["d2t"] = mapping["d2t"] + torch.arange(DRAFT)  # ids instead of offsets
    torch.save(mapping, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="contradict each other"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_wrong_names_and_shapes_are_listed(tmp_path):
    weights = write_published(tmp_path / "theirs")
    del weights["shift_proj.0.weight"]
    weights["input_layer.fuse.bias"] = torch.zeros(HIDDEN)
    weights["rank_head.0.weight"] = torch.zeros(256, HIDDEN + 11)
    weights["t2d"] = torch.ones(VOCAB - 1, dtype=torch.bool)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    message = str(caught.value)
    assert "missing: shift_proj.0.weight" in message
    assert "extra: input_layer.fuse.bias" in message
    assert "rank_head.0.weight is [256, 43] instead of [256, 47]" in message
    assert "t2d is [59] instead of [60]" in message
    assert not (tmp_path / "ours").exists()


def test_embeddings_in_the_file_are_the_targets_and_left_out(tmp_path):
    weights = write_published(tmp_path / "theirs")
    weights["input_layer.embed_tokens.weight"] = torch.zeros(VOCAB, HIDDEN)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    assert not [n for n in load_file(tmp_path / "ours" / "model.safetensors") if "embed" in n]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_hidden_size": 64}, "hidden size 32 differs from its target's 64"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "LlamaForCausalLMEagle3"),
        ({"architectures": None}, "not a published SpecBlock drafter"),
        ({"drafter_type": "specblock"}, "in our format already"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"num_attention_heads": 5}, "do not divide evenly"),
        ({"intermediate_size": "40"}, "intermediate_size '40'"),
        ({"diffspec_draft_token_num": 3}, r"position_queries.weight is \[4, 32\]"),
        ({"diffspec_draft_token_num": None}, r"position_queries.weight is \[4, 32\]"),
        ({"draft_vocab_size": 27}, r"lm_head.weight is \[28, 32\] instead of \[27, 32\]"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, changes, words):
    write_published(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=words):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_the_number_of_target_layers_is_never_guessed(tmp_path):
    write_published(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="--target-layers"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=None)
    with pytest.raises(CheckpointError, match="too shallow"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=5)
    config = convert_published(
        tmp_path / "theirs", tmp_path / "ours", target_layers=5, feature_layers=(0, 2, 4)
    )
    assert config.feature_layers == (0, 2, 4)


def test_missing_files_and_places(tmp_path):
    with pytest.raises(CheckpointError, match="config.json is missing"):
        convert_published(tmp_path / "nowhere", tmp_path / "ours", target_layers=32)
    write_published(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="Converting in place"):
        convert_published(tmp_path / "theirs", tmp_path / "theirs", target_layers=32)
    with pytest.raises(SpecBlockError, match="cannot be written"):
        convert_published(
            tmp_path / "theirs", tmp_path / "theirs" / "config.json", target_layers=32
        )
    os.remove(tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_layers_of_a_target(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"num_hidden_layers": 36}))
    assert target_layer_count(path) == target_layer_count(tmp_path) == 36
    path.write_text(json.dumps({"text_config": {"num_hidden_layers": 26}}))
    assert target_layer_count(tmp_path) == 26
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        target_layer_count(tmp_path)
