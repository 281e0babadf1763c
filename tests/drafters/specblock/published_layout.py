"""A synthetic checkpoint in the published layout, and a float64 reference of its network."""

import json
import math

import torch
from safetensors.torch import save_file

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
