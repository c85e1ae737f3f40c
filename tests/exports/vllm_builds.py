"""Models that are built as vLLM builds them, and some that no policy can run on."""

from types import SimpleNamespace

import torch
from torch import nn

WIDTH, LAYERS = 8, 5


class Norm(nn.Module):
    """vLLM's norm: it adds its input to a residual where it is given one, and returns both."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.3 * torch.randn(WIDTH))
        self.bias = bias

    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        normed = self.weight * total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6) + self.bias
        return normed if residual is None else (normed, total)


class Cached(nn.Module):
    """Stands for the part of an attention that has a place in the cache."""

    def __init__(self, reads=None):
        super().__init__()
        self.kv_sharing_target_layer_name = reads

    def get_kv_cache_spec(self, config):
        raise AssertionError("the plug-in only looks for it")

    def forward(self, x):
        return x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.attn, self.o_proj = nn.Linear(WIDTH, WIDTH), Cached(), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, positions, hidden_states):
        return self.o_proj(self.attn(self.qkv(hidden_states) + positions[:, None] / 10))


class Experts(nn.Module):
    """Experts, which vLLM counts, between an up and a down projection."""

    def __init__(self):
        super().__init__()
        self.experts, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.down(torch.relu(self.experts(x)))


class Fused(nn.Module):
    """A layer like Llama's: the residual travels beside the hidden states."""

    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = Attention(), Experts()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()

    def forward(self, positions, hidden_states, residual):
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class Sandwich(Fused):
    """A layer like Gemma's, with norms on the outputs."""

    bias = 0.0

    def __init__(self):
        super().__init__()
        self.after_attention, self.after_ffn = Norm(self.bias), Norm(self.bias)

    def forward(self, positions, hidden_states, residual, **more):
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.after_attention(self.self_attn(positions=positions, hidden_states=hidden_states))
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.after_ffn(self.mlp(hidden_states)), residual


class Scaled(Fused):
    """A layer like Granite's: no residual beside the hidden states, outputs that are scaled."""

    def forward(self, positions, hidden_states):
        attended = hidden_states + 0.4 * self.self_attn(positions, self.input_layernorm(hidden_states))
        return attended + 0.4 * self.mlp(self.post_attention_layernorm(attended))


class Parallel(Fused):
    """A layer like Cohere's: both sublayers side by side, and a residual that is not used."""

    def forward(self, positions, hidden_states, residual):
        normed = self.input_layernorm(hidden_states)
        return hidden_states + self.self_attn(positions, normed) + self.mlp(normed), hidden_states


class Biased(Sandwich):
    """Norms on the outputs that make something of zeros."""

    bias = 0.5


class Damped(Scaled):
    """A layer that scales all of its output."""

    def forward(self, positions, hidden_states):
        return 0.9 * super().forward(positions, hidden_states)


class Writing(Fused):
    """An attention that writes into memory that the layer hands it."""

    def forward(self, positions, hidden_states, residual):
        written = torch.empty_like(hidden_states)
        self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states, residual = self.post_attention_layernorm(written, hidden_states + residual)
        return self.mlp(hidden_states), residual


class Unpacking(Fused):
    """An FFN of which the layer expects several values."""

    def forward(self, positions, hidden_states, residual):
        hidden_states, _ = self.mlp(hidden_states)
        return hidden_states, residual


class Asking(Fused):
    """A layer that wants to know more."""

    def forward(self, positions, hidden_states, residual, metadata):
        return super().forward(positions, hidden_states, residual)


class Bare(Fused):
    """A layer whose FFN is one matrix."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(WIDTH, WIDTH)


class Decoder(nn.Module):
    def __init__(self, build, layers=LAYERS):
        super().__init__()
        self.layers = nn.ModuleList(build() for _ in range(layers))
        self.takes_residual, self.adds_residual = (
            not issubclass(build, Scaled),
            not issubclass(build, (Scaled, Parallel)),
        )

    def forward(self, positions, hidden):
        residual = None
        for layer in self.layers:
            if self.takes_residual:
                hidden, residual = layer(positions, hidden, residual)
            else:
                hidden = layer(positions, hidden)
        return hidden + residual if self.adds_residual else hidden


class Picture(nn.Module):
    """A model that takes images: layers without a cache, and a decoder."""

    def __init__(self, decoder):
        super().__init__()
        self.vision, self.language_model = nn.ModuleList(nn.Linear(2, 2) for _ in range(3)), decoder

    def get_language_model(self):
        return self.language_model


def compilation_of(model):
    """vLLM's lists of the layers that have a cache, and of the experts."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, Cached)}
    experts = {name: part for name, part in model.named_modules() if name.endswith(".experts")}
    return SimpleNamespace(static_forward_context=parts | experts, static_all_moe_layers=[*experts])
