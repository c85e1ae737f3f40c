"""Runs a GGUF file in llama.cpp, by the package llama-cpp-python; a script that needs nothing else but numpy.

Keys and values are in float32 and flash attention is off, because llama.cpp's own defaults round to float16.
"""

import json
import os
import sys
from typing import Any

import numpy as np

# Where llama.cpp gives up, its own message is the last that it prints, not the stack of a debugger.
os.environ["GGML_NO_BACKTRACE"] = "1"
import llama_cpp  # noqa: E402

F32 = 0  # ggml's number of the type float32


class Runner:
    """A loaded file."""

    def __init__(self, path: str, tokens: int) -> None:
        """Load a file.

        Args:
            path: The file.
            tokens: The most tokens of one text.
        """
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), settings)
        if not self.model:
            sys.exit("llama.cpp does not load the file; its reasons stand above")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.tokens = tokens

    def open(self) -> Any:
        """A context with an empty cache."""
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self.tokens
        settings.type_k = settings.type_v = F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.n_threads = settings.n_threads_batch = 1
        context = llama_cpp.llama_init_from_model(self.model, settings)
        if not context:
            sys.exit("llama.cpp makes no context for the file; its reasons stand above")
        return context

    def logits(self, context: Any, ids: list[int], start: int) -> Any:
        """The logits of tokens that follow `start` others, shape (tokens, vocabulary)."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, start + place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if llama_cpp.llama_decode(context, batch):
            sys.exit("llama.cpp does not run the file")
        llama_cpp.llama_batch_free(batch)
        found = llama_cpp.llama_get_logits(context)
        return np.ctypeslib.as_array(found, shape=(len(ids), self.size)).copy()

    def run(self, ids: list[int], new: int) -> tuple[Any, Any]:
        """The logits of a prompt, shape (tokens, vocabulary), and the tokens greedily generated after it."""
        context = self.open()
        logits = self.logits(context, ids, 0)
        generated = [int(logits[-1].argmax())]
        while len(generated) < new:
            generated.append(int(self.logits(context, generated[-1:], len(ids) + len(generated) - 1)[-1].argmax()))
        llama_cpp.llama_free(context)
        return logits, np.array(generated)

    def tokenize(self, text: str) -> Any:
        """The tokens of a text, special ones included."""
        data = text.encode()
        found = (llama_cpp.llama_token * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), found, len(found), True, True)
        if count < 0:
            sys.exit(f"llama.cpp does not tokenize {text!r}")
        return np.array(found[:count])


def main() -> None:
    """Run the prompts and texts of a JSON file; write `logits` and `tokens` of each prompt, and the `text`s' tokens."""
    path, asked, written = sys.argv[1:]
    with open(asked, encoding="utf-8") as file:
        request = json.load(file)
    runner = Runner(path, max(map(len, request["prompts"])) + request["new_tokens"])
    results = {}
    for number, ids in enumerate(request["prompts"]):
        results[f"logits {number}"], results[f"tokens {number}"] = runner.run(ids, request["new_tokens"])
    for number, text in enumerate(request["texts"]):
        results[f"text {number}"] = runner.tokenize(text)
    np.savez(written, **results)


if __name__ == "__main__":
    main()
