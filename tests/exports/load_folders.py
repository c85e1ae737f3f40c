"""A script without skipsearch: loads checkpoints with code, runs each in several ways and saves what came out."""

import re
import sys
from pathlib import Path

import torch
import transformers

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
    """Logits of a program of torch.export whose cache has its full size from the beginning, made as the page says."""
    page = (Path(__file__).parents[2] / "exports" / "README.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "StaticCache" in block]
    names = {"model": model, "ids": ids}
    exec(code, names)
    return names["logits"]


jobs, outputs = sys.argv[1:]
found = {}
for name, job in torch.load(jobs).items():
    auto = getattr(transformers, job["kind"])
    model = auto.from_pretrained(job["folder"], trust_remote_code=True, attn_implementation="sdpa").eval()
    model.generation_config = transformers.GenerationConfig(**job["generation"])
    found[name] = outputs_of(model, job)
torch.save(found, outputs)
