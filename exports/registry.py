"""The export targets by name: our own, and those of installed plug-ins (entry points `skipsearch.exports`)."""

from importlib import import_module
from importlib.metadata import entry_points

from ..policies.errors import ExportError
from .target import Target

GROUP = "skipsearch.exports"
# Imported when they are used, because some need a package of their own.
OWN = {
    "hf": ".checkpoint.hf:PlainCheckpoint",
    "hf-remote": ".checkpoint.remote:RemoteCode",
    "vllm": ".vllm.target:VllmFolder",
    "gguf": ".gguf.target:Gguf",
    "torch-export": ".graph.targets:TorchExport",
    "onnx": ".graph.targets:Onnx",
    "openvino": ".graph.targets:OpenVino",
    "mergekit": ".formats.targets:MergeKit",
    "llm-drop": ".formats.targets:LlmDrop",
    "evopress": ".formats.targets:EvoPress",
    "swift": ".formats.targets:Swift",
    "hub": ".hub.target:HubFolder",
}


def target_names() -> list[str]:
    """The names of all targets."""
    return [*OWN, *sorted({entry.name for entry in entry_points(group=GROUP)} - {*OWN})]


def target_class(name: str) -> type[Target]:
    """The target of a name.

    Raises:
        ExportError: there is none.
    """
    if name in OWN:
        module, _, attribute = OWN[name].partition(":")
        found: type[Target] = getattr(import_module(module, __package__), attribute)
        return found
    plugins = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in plugins:
        expected = f"found {name!r}, expected one of {', '.join(target_names())}"
        raise ExportError("no such export target", [expected], "`skipsearch export POLICY --to list` describes them")
    plugin: type[Target] = plugins[name].load()
    return plugin
