"""skipsearch: search which parts of a (multimodal) language model can be left out at inference, and prove it.

The names below are loaded when they are first used, so that importing any part of the package stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .policies.version import __version__ as __version__

if TYPE_CHECKING:
    from .policies.apply import PolicyHandle, applied_policy, apply_policy
    from .policies.choice import LayerChoice
    from .policies.draft import draft
    from .policies.errors import SkipsearchError
    from .policies.policy import Policy
    from .policies.pretrained import from_pretrained
    from .search.api import load_study, search, search_models
    from .search.run import run_study
    from .search.space.space import Space


_HOME = {
    "LayerChoice": ".policies.choice",
    "Policy": ".policies.policy",
    "PolicyHandle": ".policies.apply",
    "SkipsearchError": ".policies.errors",
    "Space": ".search.space.space",
    "applied_policy": ".policies.apply",
    "apply_policy": ".policies.apply",
    "draft": ".policies.draft",
    "from_pretrained": ".policies.pretrained",
    "load_study": ".search.api",
    "run_study": ".search.run",
    "search_models": ".search.api",
}

__all__ = [
    "LayerChoice",
    "Policy",
    "PolicyHandle",
    "SkipsearchError",
    "Space",
    "applied_policy",
    "apply_policy",
    "draft",
    "from_pretrained",
    "load_study",
    "run_study",
    "search",
    "search_models",
]


def __getattr__(name: str) -> Any:
    if name == "search":  # The package of that name, which can be called.
        return import_module(".search", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
