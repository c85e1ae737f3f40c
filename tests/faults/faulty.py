"""An evaluator that goes wrong on purpose, as another package would bring it: see `plugged` in `failing`."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from skipsearch.evaluators.base import Measurement, Metric, Options, Split
from skipsearch.search.workers import devices, worker

BROKEN: list[str] = []  # what this process says to everything from then on
if "PRETENDED_DEVICE" in os.environ:  # of a node on a machine of its own, with another processor
    kind, _, machine = os.environ["PRETENDED_DEVICE"].partition(" ")
    devices.processor = lambda: kind
    devices.machine_id = worker.machine_id = lambda: machine


class FaultyOptions(Options):
    """Where each measurement leaves word, in a file of its own, and where `plan.json` says what goes wrong.

    Its keys are: `does`, what goes wrong; `after`, from which call on, counted over all processes; `layer`, only under
    policies that change this layer; `once`, only until a file says that it has happened. While there is a file `hold`,
    no measurement ends.
    """

    folder: str  # after `at:`, so that what the folder contains is no part of what the study is about
    pause: float = 0.0  # seconds that a measurement takes


class Faulty:
    """Measures how many layers are kept."""

    name: ClassVar[str] = "faulty"
    options: ClassVar[type[Options]] = FaultyOptions
    metrics: ClassVar[Mapping[str, Metric]] = {"kept": Metric("fraction", "maximize", "share of layers that are kept")}
    cost: ClassVar[int] = 5
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    def __init__(self, options: FaultyOptions, subject: Any) -> None:
        self._folder = Path(options.folder.removeprefix("at:"))
        self._pause = options.pause

    def measure(self, handle: Any, split: Split) -> dict[str, Measurement]:
        with self._noted(handle.policy):
            self._plan = json.loads((self._folder / "plan.json").read_text())
            if BROKEN or self._goes_wrong(handle.policy):
                FAULTS[self._plan["does"]]()
            time.sleep(self._pause)
            while (self._folder / "hold").exists():
                time.sleep(0.05)
        return {"kept": Measurement(1 - len(handle.policy.layers) / 4)}

    @contextmanager
    def _noted(self, policy: Any) -> Iterator[None]:
        """Leave word of a measurement, and once it has ended, of its device and of when it began and ended."""
        begun = time.monotonic_ns()
        word = self._folder / f"{policy.fingerprint}.{os.getpid()}.{begun}"
        word.touch()
        yield
        device = devices.describe_device(torch.device("cpu"))["device_id"]
        word.write_text(json.dumps({"device": device, "timed": self.exclusive, "span": [begun, time.monotonic_ns()]}))

    def _goes_wrong(self, policy: Any) -> bool:
        calls = len([*self._folder.glob("*.*.*")])
        if calls < self._plan.get("after", 0):
            return False
        if "layer" in self._plan and self._plan["layer"] not in policy.layers:
            return False
        if not self._plan.get("once"):
            return True
        try:
            (self._folder / "happened").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Timed(Faulty):
    """Needs the device alone; stands for a clock, and leaves word of when it ran, as the other one does."""

    name: ClassVar[str] = "timed"
    metrics: ClassVar[Mapping[str, Metric]] = {"timed": Metric("s", "minimize", "seconds by a clock that stands still")}
    cost: ClassVar[int] = 6
    exclusive: ClassVar[bool] = True

    def measure(self, handle: Any, split: Split) -> dict[str, Measurement]:
        with self._noted(handle.policy):
            time.sleep(self._pause)
        return {"timed": Measurement(1.0 + len(handle.policy.layers))}


def broken_context() -> None:
    BROKEN.append("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later")
    raise RuntimeError(BROKEN[0])


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def own_mistake() -> None:
    raise ValueError("the plug-in's own mistake\nand its second line")


FAULTS = {
    "nothing": lambda: None,
    "context": broken_context,
    "memory": no_memory,
    "raise": own_mistake,
    "exit": lambda: os._exit(13),
    "hang": lambda: time.sleep(1e6),
}
