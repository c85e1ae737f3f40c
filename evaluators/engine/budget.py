"""Batches of rows by their tokens, and how many tokens a device takes at once at its full speed."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# A CPU computes a token no faster in larger batches, and slower where they leave its caches (benchmarks/README.md).
CPU_TOKENS = 512
# A GPU is tried with twice as many tokens as long as that makes a token faster by this factor, and fits.
GPU_TOKENS = (2**12, 2**13, 2**14, 2**15, 2**16)
LEAST_GAIN = 1.05
# Share of the device's memory that a trial may fill: caches and image features need the rest.
MOST_MEMORY = 0.7


def batches(rows: Sequence[T], length: Callable[[T], int], tokens: int) -> Iterator[list[T]]:
    """Divide rows into batches, padding included in what they may hold.

    Args:
        rows: The rows, the longest first; so the rows of a batch are of similar length.
        length: The number of a row's tokens.
        tokens: Tokens of a batch; a longer row is a batch of its own.
    """
    batch: list[T] = []
    for row in rows:
        if batch and (len(batch) + 1) * length(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def best_tokens(model: Any, length: int) -> int:
    """How many tokens a batch should have on the model's device.

    Args:
        model: The model.
        length: Tokens of a row in the trial forwards of a GPU.
    """
    if model.device.type != "cuda":
        return CPU_TOKENS
    best, fastest = GPU_TOKENS[0], 0.0
    for tokens in GPU_TOKENS:
        try:
            speed = _tokens_per_second(model, max(1, tokens // length), length)
        except torch.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        if speed < LEAST_GAIN * fastest:
            break
        best, fastest = tokens, speed
    return best


def _tokens_per_second(model: Any, rows: int, length: int) -> float:
    """The speed of the decoder, without a cache.

    Raises:
        OutOfMemoryError: the batch fills too much of the device's memory.
    """
    device = model.device
    ids = torch.zeros((rows, length), dtype=torch.long, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    for number in range(2):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        with torch.no_grad():
            model.get_decoder()(input_ids=ids, use_cache=False)
        torch.cuda.synchronize(device)
        if number and torch.cuda.max_memory_allocated(device) > MOST_MEMORY * torch.cuda.mem_get_info(device)[1]:
            raise torch.OutOfMemoryError("the batch leaves too little memory")
    return rows * length / (time.perf_counter() - start)
