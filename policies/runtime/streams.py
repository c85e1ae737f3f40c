"""Running two independent computations concurrently on a GPU."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def run_concurrently(x: Tensor, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Run two functions of `x` on two streams while a CUDA graph is captured, elsewhere one after the other.

    The kernels of a single token leave most of a GPU idle, so two of them at a time take little longer than one. The
    fork and the join are events on the streams, which a graph captures. Without a graph they cost more than they save:
    the steps of an uncaptured decode wait for the host (`gpu.sh` in benchmarks/README.md).
    """
    if not x.is_cuda or torch.compiler.is_compiling() or not torch.cuda.is_current_stream_capturing():
        return first(), second()
    main, side = torch.cuda.current_stream(x.device), side_stream(x.device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        second_result = second()
    first_result = first()
    main.wait_stream(side)
    # The side stream made this tensor and the main stream frees it: its memory may be reused only once main is done.
    second_result.record_stream(main)
    return first_result, second_result


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The second stream of a device; layers run one after the other, so they share it."""
    return torch.cuda.Stream(device)
