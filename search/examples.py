"""Two examples of each command, with which its `--help` ends.

A test parses all of them, and runs those that need neither the hub nor a search nor minutes: the list is in
`tests/search/test_shell.py`. What `run`, `plan`, `rank`, `recover` and `serve` do is tested on smaller models.
"""

import argparse

POLICY = "results/example/policies/pareto-01.yaml"

EXAMPLES = {
    "": ("skipsearch run digits --trials 20", f"skipsearch show {POLICY}"),
    "run": (
        "skipsearch run digits --name first --trials 20",
        "skipsearch run llava --set model.dtype=bfloat16 --set search.stop.minutes=60 --resume",
    ),
    "init": (
        "skipsearch init spaces/digits/model -o -",
        "skipsearch init Qwen/Qwen2.5-VL-3B-Instruct --keep 0.95 --minimize ttft_ms",
    ),
    "plan": ("skipsearch plan digits", "skipsearch plan spaces/digits.yaml --hours 4 --json"),
    "recover": (
        f"skipsearch recover {POLICY} --space digits --method lora --data answers.jsonl --out recovered",
        f"skipsearch recover {POLICY} --space digits --method full --data answers.jsonl --distil kl --out again",
    ),
    "validate": ("skipsearch validate spaces/digits.yaml", f"skipsearch validate {POLICY} --json"),
    "show": (f"skipsearch show {POLICY}", "skipsearch show spaces/baselines/fastv.yaml --num-layers 32"),
    "eval": (
        f"skipsearch eval {POLICY} --space digits",
        f"skipsearch eval {POLICY} --space digits --split search --set evaluate.accuracy.search.limit=50",
    ),
    "report": ("skipsearch report first", "skipsearch report first --pick 'prefill_flops<=0.6*dense' --json"),
    "compare": (
        "skipsearch compare first second -o compared.html",
        "skipsearch compare first second --axes accuracy,prefill_flops --json",
    ),
    "ls": ("skipsearch ls", "skipsearch ls --out results --json"),
    "export": (
        f"skipsearch export {POLICY} --to list --model spaces/digits/model",
        f"skipsearch export {POLICY} --to hub --out exported --model spaces/digits/model",
    ),
    "serve": (
        f"skipsearch serve spaces/digits/model --policy {POLICY}",
        f"skipsearch serve spaces/digits/model --policy {POLICY} --port 0 --json",
    ),
    "import": (
        "skipsearch import mergekit.yaml --num-layers 32",
        "skipsearch import layer_drop_config.txt --format evopress --num-layers 32 --out policy.yaml",
    ),
    "rank": (
        "skipsearch rank spaces/digits/model --tasks digits/tasks/digits_search.yaml --out digits.safetensors",
        "skipsearch rank spaces/digits/model --tasks digits/tasks/digits_search.yaml --of layers --count 4",
    ),
    "completion": (
        'eval "$(skipsearch completion bash)"',
        "skipsearch completion fish > ~/.config/fish/completions/skipsearch.fish",
    ),
}


def add_examples(parser: argparse.ArgumentParser, command: str = "") -> None:
    """Let the help of a command end with its examples.

    Args:
        parser: The command's parser.
        command: The command; empty for `skipsearch` itself.
    """
    lines = EXAMPLES.get(command, ())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else None
