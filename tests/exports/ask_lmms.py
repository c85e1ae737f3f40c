"""A script for an environment with lmms-eval: asks a model about images, and prints the answers as JSON.

`ask_lmms.py NAME ARGUMENTS [POLICY]` makes the model as `lmms_eval --model NAME --model_args ARGUMENTS --force_simple`
does, and applies a policy file to it where one is given.
"""

import json
import sys

import numpy as np
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from skipsearch import Policy, apply_policy

name, arguments, *policy = sys.argv[1:]
draw = np.random.default_rng(0)
pictures = [Image.fromarray(draw.integers(0, 255, (56, 56, 3), dtype=np.uint8)) for _ in range(6)]
model = get_model(name, True).create_from_arg_string(arguments, {"batch_size": 1})
for path in policy:
    apply_policy(model.model, Policy.load(path))
model.task_dict = {"asked": {"test": {place: {"picture": picture} for place, picture in enumerate(pictures)}}}
asked = [
    Instance(
        request_type="generate_until",
        arguments=("Which digit is at the top left?", {"max_new_tokens": 3, "until": ["\n"]},
                   lambda row: [row["picture"]], place, "asked", "test"),
        idx=0,
        metadata={"task": "asked", "doc_id": place, "repeats": 1},
    )
    for place in range(len(pictures))
]  # fmt: skip
print(json.dumps(model.generate_until(asked)))
