"""How a model decodes while it is timed: as it is, compiled, or as a CUDA graph.

In all modes transformers' `generate` runs the model, so the inputs of a step are those that it makes. The prompt runs
as it is. In `compiled` and `captured` the steps after it have a static cache, and run as transformers' own compiled
decoding does: the whole forward, once for each step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Literal

from ...policies.errors import EvaluatorError, SkipsearchError
from ..prompts import generate
from .load import ROUNDED, TOLERANCE

if TYPE_CHECKING:
    from torch import Tensor

    from ...policies.apply import PolicyHandle

Mode = Literal["eager", "compiled", "captured"]
PLAIN_STEPS: Final = 3  # of a captured generation, before its graph is recorded
TRIES: Final = 4  # generations of a model until nothing is compiled any more
BACKEND = "inductor"


class Decoder:
    """Generates tokens with one model in one mode, greedily; a policy and the dense model have a decoder each.

    Args:
        mode: The mode.

    Attributes:
        compile_s: Seconds that compiling took; they are part of no measured time.
        graphs: The graphs that were compiled.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.compile_s, self.graphs = 0.0, 0
        self._step: Callable[..., Any] | None = None

    @property
    def untimed_steps(self) -> int:
        """The steps at the start of a generation that are not those of the mode."""
        return PLAIN_STEPS + 1 if self.mode == "captured" else 0

    def generate(self, model: Any, inputs: "dict[str, Tensor]", new_tokens: int, **options: Any) -> Any:
        """Generate exactly `new_tokens` tokens; see `prompts.generate`."""
        if self.mode == "eager":
            return generate(model, inputs, new_tokens, **options)
        if self.mode == "compiled" and self._step is None:
            self._step = compiled_step(model)
        step = self._step or CapturedStep(model)
        static = {"cache_implementation": "static", "compile_config": compile_config()}
        with stepping(model, step):
            return generate(model, inputs, new_tokens, **static, **options)

    def prepare(self, model: Any, inputs: "dict[str, Tensor]", new_tokens: int, noun: str) -> None:
        """Compile what a generation needs, or try what is captured.

        Args:
            model: The model.
            inputs: Its inputs.
            new_tokens: The tokens of a timed generation.
            noun: What the model is called in messages: `the policy` or `the dense model`.

        Raises:
            EvaluatorError: the model does not run in this mode.
        """
        import torch

        if self.mode == "eager":
            return
        try:
            if self.mode == "compiled":
                self._compile(model, inputs, new_tokens, noun)
            self._compare(model, inputs, new_tokens, noun)
        except (SkipsearchError, torch.OutOfMemoryError):
            raise
        except Exception as cause:  # A compiler can raise anything about a model.
            reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
            hint = "write `mode: eager` under `latency`, or leave out the choices that do not run so"
            raise EvaluatorError(f"{noun} does not decode in mode {self.mode}", [reason], hint) from cause

    def _compile(self, model: Any, inputs: "dict[str, Tensor]", new_tokens: int, noun: str) -> None:
        """Generate until nothing is compiled any more; a GPU records graphs of its own in the second and third turn."""
        from torch._dynamo.utils import counters

        least, start = (3 if model.device.type == "cuda" else 1), time.perf_counter()
        for turn in range(TRIES):
            before = counters["stats"]["unique_graphs"]
            self.generate(model, inputs, new_tokens)
            made = counters["stats"]["unique_graphs"] - before
            self.graphs += made
            if turn == 0 and not made:
                found = f"transformers compiled nothing for {type(model).__name__}"
                raise EvaluatorError(f"{noun} does not decode in mode compiled", [found], "write `mode: eager`")
            if not made and turn + 1 >= least:
                break
        else:
            found = f"each of {TRIES} generations compiled another graph"
            raise EvaluatorError(f"{noun} does not decode in mode compiled", [found], "write `mode: eager`")
        self.compile_s = time.perf_counter() - start

    def _compare(self, model: Any, inputs: "dict[str, Tensor]", new_tokens: int, noun: str) -> None:
        """Hold the logits of the steps against those of the same steps run as they are, until the answers part."""
        static = {"cache_implementation": "static", "disable_compile": True}
        plain = generate(model, inputs, new_tokens, output_logits=True, **static)
        found = self.generate(model, inputs, new_tokens, output_logits=True)
        tolerance = TOLERANCE.get(str(model.dtype), ROUNDED)
        for place, (ours, expected) in enumerate(zip(found.logits, plain.logits, strict=True)):
            error = float((ours - expected).abs().max() / expected.std())
            if not error <= tolerance:
                reason = f"token {place}: logits differ by {error:.2g} deviations, expected at most {tolerance:g}"
                raise EvaluatorError(f"{noun} answers otherwise in mode {self.mode}", [reason], "write `mode: eager`")
            if not bool((ours.argmax(-1) == expected.argmax(-1)).all()):
                break  # Two tokens were equally good but for rounding; from here on the answers differ.


class CapturedStep:
    """One generation's decode step as a CUDA graph: the first ones run as they are, one is recorded, the others replay.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._count = model, 0
        self._graph: Any = None
        self._inputs: dict[str, Tensor] = {}
        self._output: Any = None

    def __call__(self, **inputs: Any) -> Any:
        """Run one step.

        Raises:
            EvaluatorError: its inputs have other shapes than those of the recorded step.
        """
        import torch

        self._count += 1
        if self._count <= PLAIN_STEPS:
            return self._model(**inputs)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        if self._graph is None:
            self._inputs = {name: value.clone() for name, value in tensors.items()}
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = self._model(**{**inputs, **self._inputs})
        shapes = [{name: tuple(one.shape) for name, one in of.items()} for of in (tensors, self._inputs)]
        if shapes[0] != shapes[1]:
            found = f"found inputs of shapes {shapes[0]}, expected {shapes[1]}"
            raise EvaluatorError("the decode steps of this model differ in shape", [found], "write `mode: compiled`")
        for name, value in tensors.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        return self._output


def compiled_step(model: Any) -> Callable[..., Any]:
    """A model's forward, compiled for one decoder alone; on a GPU its kernels are replayed as CUDA graphs.

    Lifting and applying a policy changes forwards and hooks of modules, and torch would compile anew each time. So the
    graphs of each decoder have a compiler function of their own, which keeps them apart from those of the other one,
    and modules are not looked at again: a decoder only runs in the state in which it was compiled. What it computes is
    held against the steps run one by one.
    """
    import torch
    from torch._dynamo import lookup_backend

    compiler = lookup_backend(BACKEND)
    replayed = torch._inductor.list_mode_options("reduce-overhead") if model.device.type == "cuda" else {}
    patches = {"config_patches": replayed} if replayed and BACKEND == "inductor" else {}

    def own(graph: Any, inputs: Any) -> Any:
        return compiler(graph, inputs, **patches)

    unguarded: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(model.__call__, backend=own, options=unguarded)


def compile_config() -> Any:
    """The configuration of transformers that lets `generate` ask for a compiled step on any device."""
    from transformers import CompileConfig

    config: Any = CompileConfig()
    config._compile_all_devices = True
    return config


@contextmanager
def stepping(model: Any, step: Callable[..., Any]) -> Iterator[None]:
    """Let `generate` run its steps after the prompt by a function of ours, where it would compile the model."""
    vars(model)["get_compiled_call"] = lambda config: step
    try:
        yield
    finally:
        del vars(model)["get_compiled_call"]


@contextmanager
def decoders(
    handle: "PolicyHandle", mode: Mode, inputs: "dict[str, Tensor]", new_tokens: int
) -> "Iterator[tuple[Decoder, Decoder]]":
    """The decoders of a policy and of the dense model, ready to be timed in turns.

    Raises:
        EvaluatorError: one of the two does not run in this mode, or would be compiled again in every turn.
    """
    pair = Decoder(mode), Decoder(mode)
    if mode != "compiled":
        prepare_both(handle, pair, inputs, new_tokens)
        yield pair
        return
    import torch

    # Graphs of other policies would count against the number that torch keeps of one function.
    torch.compiler.reset()
    fails = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    # Torch cannot compile tensors of quantised weights in inference mode.
    with torch.inference_mode(False), torch.no_grad(), fails:
        prepare_both(handle, pair, inputs, new_tokens)
        prepare_turns(handle, pair, inputs, new_tokens)
        with torch.compiler.set_stance("fail_on_recompile"):
            yield pair


def prepare_both(
    handle: "PolicyHandle", pair: tuple[Decoder, Decoder], inputs: "dict[str, Tensor]", new_tokens: int
) -> None:
    """Prepare the decoders of a policy and of the dense model."""
    for decoder, noun in zip(pair, ("the policy", "the dense model"), strict=True):
        with nullcontext() if noun == "the policy" else handle.dense():
            decoder.prepare(handle.model, inputs, new_tokens, noun)


def prepare_turns(
    handle: "PolicyHandle", pair: tuple[Decoder, Decoder], inputs: "dict[str, Tensor]", new_tokens: int
) -> None:
    """Generate with both in turns, as they will be timed: the first turn may compile what a change of model needs.

    Raises:
        EvaluatorError: every turn compiles something.
    """
    from torch._dynamo.utils import counters

    for _ in range(TRIES):
        before = counters["stats"]["unique_graphs"]
        pair[0].generate(handle.model, inputs, new_tokens)
        with handle.dense():
            pair[1].generate(handle.model, inputs, new_tokens)
        if counters["stats"]["unique_graphs"] == before:
            return
    found = "policy and dense model are compiled anew in every turn"
    raise EvaluatorError("latency cannot be measured in mode compiled", [found], "write `mode: eager` under `latency`")
