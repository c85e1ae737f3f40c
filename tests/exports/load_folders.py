"""A script without skipsearch: loads checkpoints with code, runs each in several ways and saves what came out."""

import sys

import torch
import transformers
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

sys.modules["skipsearch"] = None
transformers.utils.logging.disable_progress_bar()
WAYS = {"dynamic": {}, "static": {"cache_implementation": "static", "disable_compile": True},
        "beams": {"num_beams": 2}, "cut back": {"prompt_lookup_num_tokens": 3}}  # fmt: skip


def outputs_of(model, job):
    found = {}
    with torch.no_grad():
        for way, options in WAYS.items():
            if way in job["ways"]:
                inputs = job["row"] if way == "cut back" else job["rows"]
                found[way] = model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
        found["logits"] = model(**job["rows"]).logits
        if "allocated" in job["ways"]:
            found["allocated"] = allocated(model, job["row"]["input_ids"])
    return found


def allocated(model, ids):
    """Logits of a program of torch.export whose cache has its full size from the beginning."""
    model.generation_config.cache_implementation = "static"
    module = TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=32)
    token = {"input_ids": ids[:, :1], "cache_position": torch.tensor([0])}
    program = torch.export.export(module, (), token, strict=False).module()
    steps = enumerate(ids.split(1, dim=1))
    return torch.cat([program(input_ids=part, cache_position=torch.tensor([place])) for place, part in steps], dim=1)


jobs, outputs = sys.argv[1:]
found = {}
for name, job in torch.load(jobs).items():
    auto = getattr(transformers, job["kind"])
    model = auto.from_pretrained(job["folder"], trust_remote_code=True, attn_implementation="sdpa").eval()
    model.generation_config = transformers.GenerationConfig(**job["generation"])
    found[name] = outputs_of(model, job)
torch.save(found, outputs)
