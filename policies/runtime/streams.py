"""Two computations that do not need each other, at the same time where the device can."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def side_by_side(x: Tensor, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Run two functions of `x`: on two streams of a CUDA graph, elsewhere one after the other.

    The kernels of a single token leave most of a GPU idle, so two of them at a time take little more than one. The
    fork and the join are events on the streams, which a graph captures. Outside one they cost more than they gain: the
    steps of an uncaptured decode wait for the host (`gpu.sh` in benchmarks/README.md).
    """
    if not x.is_cuda or torch.compiler.is_compiling() or not torch.cuda.is_current_stream_capturing():
        return first(), second()
    here, side = torch.cuda.current_stream(x.device), side_stream(x.device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        other = second()
    own = first()
    here.wait_stream(side)
    # Made on the side and freed on this stream: its memory may be reused only after this stream is done with it.
    other.record_stream(here)
    return own, other


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The second stream of a device; one is enough, as layers follow each other."""
    return torch.cuda.Stream(device)
