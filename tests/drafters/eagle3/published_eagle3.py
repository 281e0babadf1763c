"""A synthetic checkpoint in the public EAGLE-3 layout, and a float64 reference of its network."""

import json
import math

import torch
from safetensors.torch import save_file

HIDDEN, VOCAB, DRAFT, DIM, HEADS, KV = 24, 60, 28, 8, 4, 2

PUBLISHED = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": DIM,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "draft_vocab_size": DRAFT,
    "hidden_act": "silu",
    "rope_scaling": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def published_tensors(draft=DRAFT):
    inner = PUBLISHED["intermediate_size"]
    shapes = {
        "fc.weight": (HIDDEN, 3 * HIDDEN),
        "midlayer.hidden_norm.weight": (HIDDEN,),
        "midlayer.input_layernorm.weight": (HIDDEN,),
        "midlayer.post_attention_layernorm.weight": (HIDDEN,),
        "midlayer.self_attn.q_proj.weight": (HEADS * DIM, 2 * HIDDEN),
        "midlayer.self_attn.k_proj.weight": (KV * DIM, 2 * HIDDEN),
        "midlayer.self_attn.v_proj.weight": (KV * DIM, 2 * HIDDEN),
        "midlayer.self_attn.o_proj.weight": (HIDDEN, HEADS * DIM),
        "midlayer.mlp.gate_proj.weight": (inner, HIDDEN),
        "midlayer.mlp.up_proj.weight": (inner, HIDDEN),
        "midlayer.mlp.down_proj.weight": (HIDDEN, inner),
        "norm.weight": (HIDDEN,),
        "lm_head.weight": (draft, HIDDEN),
    }
    generator = torch.Generator().manual_seed(11)
    tensors = {
        name: torch.rand(shape, generator=generator) + 0.5
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * (1.2 / shape[-1] ** 0.5)
        for name, shape in shapes.items()
    }
    chosen = torch.randperm(VOCAB, generator=generator)[:draft].sort().values
    tensors["d2t"] = chosen - torch.arange(draft)
    tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, chosen, True)
    return tensors


def write_published(folder, *, pickled=False, edit=lambda tensors: None, **changes):
    config = {key: value for key, value in {**PUBLISHED, **changes}.items() if value != "absent"}
    tensors = published_tensors(changes.get("draft_vocab_size", DRAFT))
    edit(tensors)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return tensors


def embeddings():
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(3))


class Reference:
    """The network of the published weights, entry by entry, float64.

    ``flags`` names what the config switches on: norm_before_residual, norm_before_fc, fc_norm,
    norm_output. Weights go by the authors' names.
    """

    def __init__(self, tensors, theta=10000.0, scaling=None, flags=()):
        self.w = {name: value.double() for name, value in tensors.items()}
        self.emb = self.w.get("embed_tokens.weight", embeddings().double())
        self.theta, self.scaling, self.flags = theta, scaling, flags

    def first(self, features):
        """The condition of a pair from the target's features, all layers in a row."""
        features = features.double()
        if "norm_before_fc" in self.flags:
            features = self.norm(features, "input_norm")
        if "fc_norm" in self.flags:
            parts = features.split(HIDDEN)
            features = torch.cat([self.norm(x, f"fc_norm.{i}") for i, x in enumerate(parts)])
        return self.w["fc.weight"] @ features

    def next(self, y):
        """The condition of what follows a prediction from ``y``."""
        return self.norm(y, "norm") if "norm_output" in self.flags else y

    def norm(self, x, name):
        return x / torch.sqrt((x * x).mean() + 1e-5) * self.w[name + ".weight"]

    def head_norm(self, x, name):
        if name + ".weight" not in self.w:
            return x
        return torch.cat([self.norm(head, name) for head in x.view(-1, DIM)])

    def frequency(self, pair):
        frequency = self.theta ** (-2 * pair / DIM)
        if self.scaling is None:
            return frequency
        s, wavelength = self.scaling, 2 * math.pi / frequency
        old = s["original_max_position_embeddings"]
        if wavelength < old / s["high_freq_factor"]:
            return frequency
        if wavelength > old / s["low_freq_factor"]:
            return frequency / s["factor"]
        smooth = (old / wavelength - s["low_freq_factor"]) / (
            s["high_freq_factor"] - s["low_freq_factor"]
        )
        return (1 - smooth) * frequency / s["factor"] + smooth * frequency

    def rotated(self, x, position):
        out = x.clone().view(-1, DIM)
        for head in out:
            for pair in range(DIM // 2):
                angle = position * self.frequency(pair)
                a, b = float(head[pair]), float(head[pair + DIM // 2])
                head[pair] = a * math.cos(angle) - b * math.sin(angle)
                head[pair + DIM // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def step(self, g, token, position, seen):
        """One entry; ``seen`` are the (key, value) it sees besides its own. Returns y and entry."""
        emb = self.norm(self.emb[token], "midlayer.input_layernorm")
        normed = self.norm(g, "midlayer.hidden_norm")
        u = torch.cat((emb, normed))
        w = {name: self.w[f"midlayer.self_attn.{name}_proj.weight"] for name in "qkvo"}
        q, k = (
            self.rotated(self.head_norm(w[name] @ u, f"midlayer.self_attn.{name}_norm"), position)
            for name in "qk"
        )
        entry = k, (w["v"] @ u).view(KV, DIM)
        entries = [*seen, entry]
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // KV)
            scores = torch.stack([q[head] @ key[group] / DIM**0.5 for key, _ in entries])
            weights = scores.softmax(0)
            heads.append(
                sum(p * value[group] for p, (_, value) in zip(weights, entries, strict=True))
            )
        residual = normed if "norm_before_residual" in self.flags else g
        y = residual + w["o"] @ torch.cat(heads)
        n = self.norm(y, "midlayer.post_attention_layernorm")
        mlp = {name: self.w[f"midlayer.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")}
        gate = mlp["gate"] @ n
        return y + mlp["down"] @ (gate * torch.sigmoid(gate) * (mlp["up"] @ n)), entry

    def log_probs(self, y):
        return (self.w["lm_head.weight"] @ self.norm(y, "norm")).log_softmax(0)
