"""Names the tools that `make exports` needs and does not find, and exits with 2 where one is missing."""

import os
import subprocess
import sys
from importlib.util import find_spec

# By the variable that names an interpreter, the module that it must have.
INTERPRETERS = {
    "SKIPSEARCH_VLLM_PYTHON": "vllm",
    "SKIPSEARCH_LLAMA_PYTHON": "llama_cpp",
    "SKIPSEARCH_LMMS_PYTHON": "lmms_eval",
}
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")
PROBE = "import sys; from importlib.util import find_spec; sys.exit(find_spec(sys.argv[1]) is None)"


def has(python: str, module: str) -> bool:
    """True where an interpreter runs and finds a module."""
    try:
        return subprocess.run([python, "-P", "-c", PROBE, module], capture_output=True).returncode == 0
    except OSError:
        return False


def missing() -> list[str]:
    """One line for each tool that is not found."""
    found = []
    for variable, module in INTERPRETERS.items():
        python = os.environ.get(variable)
        if python is None:
            found.append(f"{module}: {variable} names no interpreter")
        elif not has(python, module):
            found.append(f"{module}: not in {python}, which {variable} names")
    return found + [f"{package}: not installed here" for package in PACKAGES if find_spec(package) is None]


if __name__ == "__main__":
    if lines := missing():
        print("error: tools of `make exports` are missing", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
        hint = "`pytest -m soak -rs tests/exports` runs what is possible without them, and names what it skips"
        print(f"hint: {hint}", file=sys.stderr)
        sys.exit(2)
