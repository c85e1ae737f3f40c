"""Kinds of failures: what a policy does wrong, and what the machine does wrong while it is measured."""

import errno
from typing import Final, Literal, TypeAlias

from ...policies.errors import SkipsearchError

# `policy` counts against the policy. `memory` is a device that was too small for it, which counts where it happens
# twice. `machine` never counts: the policy is measured elsewhere.
Fault: TypeAlias = Literal["policy", "memory", "machine"]

# What CUDA, its libraries and torch say of a context or a device that is beyond use; torch's own type for it is new.
BROKEN_DEVICE: Final = (
    "CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "cuDNN error", "CUSOLVER_STATUS_",
    "CUSPARSE_STATUS_", "NCCL error", "NCCL Error", "HIP error", "device-side assert", "uncorrectable ECC error",
    "Found no NVIDIA driver", "No CUDA GPUs are available", "XPU error",
)  # fmt: skip
SMALL_DEVICE: Final = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
HOST_MEMORY: Final = ("DefaultCPUAllocator: can't allocate memory", "Cannot allocate memory")
# A full or lost disk, a network drive that went away, a process without file handles or memory left.
OF_THE_HOST: Final = {
    errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EROFS,
    errno.EAGAIN, errno.ENODEV, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip


def fault_of(cause: BaseException) -> Fault:
    """Whose fault an exception is that stopped a measurement.

    An exception that was raised while another one was handled, or from another one, is judged by all of them.
    """
    kinds = [_kind(one) for one in chain(cause)]
    return "machine" if "machine" in kinds else "memory" if "memory" in kinds else "policy"


def chain(cause: BaseException) -> list[BaseException]:
    """An exception and what it was raised from."""
    found: list[BaseException] = []
    following: BaseException | None = cause
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return found


def _kind(cause: BaseException) -> Fault:
    text, name = str(cause), type(cause).__name__
    if isinstance(cause, MemoryError) or any(words in text for words in HOST_MEMORY):
        return "machine"
    if isinstance(cause, OSError):
        return "machine" if cause.errno in OF_THE_HOST else "policy"
    if not isinstance(cause, RuntimeError | SkipsearchError):
        return "policy"
    # By name: nothing here imports torch.
    if name == "OutOfMemoryError" or any(words in text for words in SMALL_DEVICE):
        return "memory"
    return "machine" if name == "AcceleratorError" or any(words in text for words in BROKEN_DEVICE) else "policy"
