"""Classifies failed measurements: caused by the policy, by too little device memory, or by the machine."""

import errno
from typing import Final, Literal, TypeAlias

from ...policies.errors import SkipsearchError
from ...policies.families.model_errors import DEVICE_MEMORY, HOST_MEMORY

# `policy` counts against the policy. `memory` is a device with too little memory; it counts when it happens twice.
# `machine` never counts: the policy is measured again elsewhere.
Fault: TypeAlias = Literal["policy", "memory", "machine"]

# Messages of CUDA, its libraries and torch about an unusable context or device. They are matched as text, because only
# recent versions of torch raise a type of their own.
BROKEN_DEVICE: Final = (
    "CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "cuDNN error", "CUSOLVER_STATUS_",
    "CUSPARSE_STATUS_", "NCCL error", "NCCL Error", "HIP error", "device-side assert", "uncorrectable ECC error",
    "Found no NVIDIA driver", "No CUDA GPUs are available", "XPU error",
)  # fmt: skip
# A full or lost disk, a network drive that is gone, a process without file handles or memory left.
HOST_ERRNOS: Final = {
    errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EROFS,
    errno.EAGAIN, errno.ENODEV, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip


def fault_of(cause: BaseException) -> Fault:
    """Classifies the exception that stopped a measurement.

    All exceptions of its chain count: `machine` goes before `memory`, and `memory` before `policy`.
    """
    faults = [_fault(one) for one in exception_chain(cause)]
    return "machine" if "machine" in faults else "memory" if "memory" in faults else "policy"


def exception_chain(cause: BaseException) -> list[BaseException]:
    """An exception, its explicit causes and the exceptions during whose handling it was raised."""
    found: list[BaseException] = []
    following: BaseException | None = cause
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return found


def _fault(cause: BaseException) -> Fault:
    text, name = str(cause), type(cause).__name__
    if isinstance(cause, MemoryError) or any(words in text for words in HOST_MEMORY):
        return "machine"
    if isinstance(cause, OSError):
        return "machine" if cause.errno in HOST_ERRNOS else "policy"
    if not isinstance(cause, RuntimeError | SkipsearchError):
        return "policy"
    # By name, so that reading results needs no torch.
    if name == "OutOfMemoryError" or any(words in text for words in DEVICE_MEMORY):
        return "memory"
    return "machine" if name == "AcceleratorError" or any(words in text for words in BROKEN_DEVICE) else "policy"
