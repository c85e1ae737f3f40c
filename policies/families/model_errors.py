"""Which errors speak of a model: not those of too little memory, nor mistakes in skipsearch itself."""

from typing import Final

# Messages about memory of devices and of the machine. They are matched as text, because only recent versions of torch
# raise a type of their own, and none does on a CPU.
DEVICE_MEMORY: Final = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
HOST_MEMORY: Final = ("DefaultCPUAllocator: can't allocate memory", "Cannot allocate memory")
MISTAKES = (NameError, AttributeError, TypeError, AssertionError)


def is_of_model(cause: Exception) -> bool:
    """True for an error that the code or the configuration of a model caused.

    A forward of an unknown family, and the reading of a wrong configuration, can raise any type. Errors of memory
    depend on the machine instead, and an error that a statement of skipsearch raised is a mistake to be mended there.
    """
    return not (is_out_of_memory(cause) or is_own_mistake(cause))


def is_out_of_memory(cause: Exception) -> bool:
    """True for an error of too little memory, of a device or of the machine."""
    # By name, so that it needs no torch.
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
        return True
    return isinstance(cause, RuntimeError | OSError) and any(
        words in str(cause) for words in DEVICE_MEMORY + HOST_MEMORY
    )


def is_own_mistake(cause: Exception) -> bool:
    """True for an error of a kind that wrong code raises, and that a statement of skipsearch itself raised."""
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return isinstance(cause, MISTAKES) and module.partition(".")[0] == __name__.partition(".")[0]
