"""Runs a folder in vLLM on prompts, and saves what comes out. A script for an environment that has vLLM.

It imports nothing of skipsearch: the plug-in must come from the entry point, as it does for `vllm serve`.
"""

import argparse
import os
from typing import Any

import torch
from torch import Tensor

NEW_TOKENS = 12
# How many log-probabilities are compared at each position; vLLM hands them over one by one.
LISTED = 128


def load(folder: str, dtype: str, longest: int, compiled: bool) -> Any:
    """Load a folder in this process, with a cache that is just large enough."""
    # In one process, so that an error of the plug-in is the last line that is printed.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM

    return LLM(
        folder,
        dtype=dtype,
        max_model_len=longest + NEW_TOKENS + 1,
        max_num_seqs=2,
        max_logprobs=LISTED,
        enforce_eager=not compiled,
        skip_tokenizer_init=True,
        # Without the model's own defaults of sampling, and without the encoder of a model that takes images.
        generation_config="vllm",
        limit_mm_per_prompt={"image": 0, "video": 0, "audio": 0} if has_encoder(folder) else {},
        enable_prefix_caching=False,
    )


def has_encoder(folder: str) -> bool:
    """True for a model whose text half is one of several."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    return config.get_text_config() is not config


def outputs_of(model: Any, prompts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Run prompts of one row each.

    Returns:
        For each prompt `ids` and `log_probabilities`, shape (1, tokens, count): the likeliest next tokens at each
        position, in order; and `tokens`, the greedily generated ones, shape (1, NEW_TOKENS).
    """
    from vllm import SamplingParams

    count = min(LISTED, model.llm_engine.model_config.get_vocab_size())
    greedy = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, prompt_logprobs=count, logprobs=count, detokenize=False
    )
    rows = [{"prompt_token_ids": prompt["input_ids"][0].tolist()} for prompt in prompts]
    return [output_of(done, count) for done in model.generate(rows, greedy, use_tqdm=False)]


def output_of(done: Any, count: int) -> dict[str, Tensor]:
    """What came of one prompt; see `outputs_of`."""
    made = done.outputs[0]
    # vLLM lists them with the token that they are for, so the first has none, and the first new one has the last.
    places = [*done.prompt_logprobs[1:], made.logprobs[0]]
    ranked = [sorted(place.items(), key=lambda item: item[1].rank)[:count] for place in places]
    return {
        "ids": torch.tensor([[[token for token, _ in place] for place in ranked]]),
        "log_probabilities": torch.tensor([[[entry.logprob for _, entry in place] for place in ranked]]),
        "tokens": torch.tensor([list(made.token_ids)]),
    }


def main() -> None:
    """Load a folder, run the prompts of a file and save the outputs to another."""
    parser = argparse.ArgumentParser()
    for name in ("folder", "prompts", "outputs", "dtype"):
        parser.add_argument(name)
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    prompts = torch.load(given.prompts)
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    model = load(given.folder, given.dtype, longest, given.compiled)
    torch.save(outputs_of(model, prompts), given.outputs)


if __name__ == "__main__":
    main()
