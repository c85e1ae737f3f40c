"""Applies a policy where only torch, transformers, pydantic and pyyaml are installed."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from skipsearch import Policy, apply_policy

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes)).eval()
ids = torch.randint(3, 60, (1, 9))
dense = model(ids).logits
policy = Policy(layers={1: {"ffn": "skip"}, 2: {"attention": "skip"}})
with apply_policy(model, policy):
    assert not torch.equal(model(ids).logits, dense)
assert torch.equal(model(ids).logits, dense)
