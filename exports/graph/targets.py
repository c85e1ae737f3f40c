"""The graph targets: a traced model for torch.export, ONNX Runtime and OpenVINO."""

from abc import abstractmethod
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from torch.export import ExportedProgram

from ...policies.errors import ExportError
from ...policies.families.model_errors import is_out_of_memory
from ...policies.policy import Policy
from ..checkpoint.run import NEW_TOKENS
from ..reference import Reference
from ..target import Source, Target, named_choices
from .trace import free_dimensions, graph_prompt, trace

SCRIPT = Path(__file__).parent / "run.py"
LABELS = ("skip_layer", "skip_attention", "skip_ffn", "parallel", "parallel, shared norm")


class Graph(Target):
    """A model under a policy as a graph, from token ids to logits, without a cache.

    Attributes:
        file: The name of the graph's file.
        packages: What writes it, by the names of the modules.
        extra: The extra of skipsearch that installs them.
    """

    file: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        reasons = [f"a graph has no {choice}" for choice in named_choices(policy, LABELS)]
        if source.model.device.type != "cpu":
            reasons.append(f"the model is on {source.model.device}, and its graph would be too: load it on the CPU")
        return reasons

    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """See `Target.write`."""
        self.refuse_missing()
        program = trace(policy, source)
        try:
            self.save(program, folder / self.file)
        except Exception as cause:
            if is_out_of_memory(cause):
                raise
            # Converters raise errors of their own, of many kinds, for operations that they do not know.
            lines = str(cause).splitlines()
            reasons = [line for line in lines if "No ONNX function" in line or "No conversion rule" in line] or lines
            hint = "take another target; `--to list` shows those that can"
            raise ExportError(f"{self.name} cannot write {type(source.model).__name__}", reasons[:1], hint) from cause
        source.model.config.save_pretrained(folder)
        if source.processor is not None:
            source.processor.save_pretrained(folder)
        prompt = graph_prompt(source)
        free = free_dimensions(prompt)
        shapes = [f"{name} ({describe(free[name], value.shape)})" for name, value in prompt.items()]
        return [
            f"inputs: {', '.join(shapes)}; other inputs need a graph of their own",
            "no cache: each step of a generation runs all tokens, so it suits scoring and short answers",
            "what is skipped is in neither the graph nor its weights",
        ]

    def check(self, folder: Path, reference: Reference) -> float:
        """See `Target.check`; only prompts that have the graph's inputs count."""
        first = reference.prompts[0]
        free = free_dimensions(first)
        fixed = {name: value.shape for name, value in first.items() if free[name] is None}
        fits = [
            set(prompt) == set(first) and all(prompt[name].shape == shape for name, shape in fixed.items())
            for prompt in reference.prompts
        ]
        pairs = list(zip(reference.prompts, reference.outputs, fits, strict=True))
        part = replace(
            reference,
            prompts=[prompt for prompt, _, fit in pairs if fit],
            outputs=[output for _, output, fit in pairs if fit],
        )
        given = (str(folder / self.file), self.name, str(NEW_TOKENS))
        return part.difference(part.run(SCRIPT, *given, python=self.options.python))

    def refuse_missing(self) -> None:
        """Refuse to begin without the packages that write the file.

        Raises:
            ExportError: with the command that installs them.
        """
        if missing := [package for package in self.packages if find_spec(package) is None]:
            hint = f'`pip install "skipsearch[{self.extra}]"`'
            raise ExportError(f"{self.name} needs packages that are not installed", [", ".join(missing)], hint)

    @abstractmethod
    def save(self, program: ExportedProgram, file: Path) -> None:
        """Write the graph."""


class TorchExport(Graph):
    """A program of torch.export."""

    name: ClassVar[str] = "torch-export"
    text: ClassVar[str] = "a program of torch.export (.pt2) from token ids to logits, for torch without transformers"
    file: ClassVar[str] = "model.pt2"

    def save(self, program: ExportedProgram, file: Path) -> None:
        """See `Graph.save`."""
        import torch

        torch.export.save(program, file)

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        return [f'logits = torch.export.load("{folder}/{self.file}").module()(**inputs)']


class Onnx(Graph):
    """A graph of ONNX, with its weights in a file beside it."""

    name: ClassVar[str] = "onnx"
    text: ClassVar[str] = "an ONNX graph from token ids to logits, for ONNX Runtime"
    file: ClassVar[str] = "model.onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str] = "onnx"

    def save(self, program: ExportedProgram, file: Path) -> None:
        """See `Graph.save`."""
        import torch

        converted: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        converted.save(file, external_data=True)

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        return [f'logits = onnxruntime.InferenceSession("{folder}/{self.file}").run(None, inputs)[0]']


class OpenVino(Graph):
    """A graph of OpenVINO, with its weights in a file beside it."""

    name: ClassVar[str] = "openvino"
    text: ClassVar[str] = "an OpenVINO graph from token ids to logits"
    file: ClassVar[str] = "openvino_model.xml"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "openvino"

    def save(self, program: ExportedProgram, file: Path) -> None:
        """See `Graph.save`."""
        import openvino

        # By default OpenVINO rounds the weights to float16.
        openvino.save_model(openvino.convert_model(program), file, compress_to_fp16=False)

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        hint = '{"INFERENCE_PRECISION_HINT": "f32"}'
        return [f'logits = openvino.Core().compile_model("{folder}/{self.file}", "CPU", {hint})(inputs)[0]']


def describe(free: dict[int, object] | None, shape: tuple[int, ...]) -> str:
    """A shape in words, such as `rows, tokens`."""
    names = {0: "rows", 1: "tokens"}
    return ", ".join(names[place] if place in (free or {}) else str(size) for place, size in enumerate(shape))
