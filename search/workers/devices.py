"""The device of a worker: which one it is and of which kind, and which measurements may run on it at the same time."""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluators.base import available, evaluator_class

if TYPE_CHECKING:
    import torch

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def processor() -> str:
    """The processor's name, or what the platform module knows where the system does not name it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine_id() -> str:
    """An id of this machine, which all its containers and all its Ray nodes share; the host's name without one."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def describe_device(device: "torch.device") -> dict[str, str]:
    """Describe the device that a model runs on.

    Returns:
        `device`: the GPU's name, or `cpu`; `device_id`: the GPU's UUID, or the id of the machine; `processor`: the
        name of the machine's processor.
    """
    import torch

    if device.type != "cuda":
        return {"device": "cpu", "device_id": machine_id(), "processor": processor()}
    found = torch.cuda.get_device_properties(device)
    return {"device": found.name, "device_id": str(found.uuid), "processor": processor()}


@cache
def is_timing(evaluator: str) -> bool:
    """True for an evaluator that measures times, and so needs a device without other work on it."""
    return evaluator in available() and evaluator_class(evaluator).exclusive


def may_start(device: str, is_timed: bool, running: Iterable[tuple[str, bool]]) -> bool:
    """Whether a measurement may start on a device without overlapping with one of times, or being one that overlaps.

    Args:
        device: The id of the device.
        is_timed: True for a measurement of times.
        running: The device of each measurement that runs, and whether times are measured.
    """
    beside = [other_is_timed for other, other_is_timed in running if other == device]
    return not beside if is_timed else not any(beside)


def kind_of(description: Mapping[str, Any]) -> str:
    """The kind of a worker's device: the GPU's name, or `cpu` with that of the processor."""
    device, is_cpu = str(description["device"]), description["device"] == "cpu"
    return f"{device} {description['processor']}" if is_cpu else device


def commonest_kind(descriptions: Sequence[Mapping[str, Any]]) -> str:
    """The kind of device of most workers; of two kinds with as many, that of the first worker."""
    return Counter(map(kind_of, descriptions)).most_common(1)[0][0]
