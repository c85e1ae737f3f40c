"""A study's parameters as the codes that the search strategy computes with."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDENTITY_CACHE = 1 << 14  # policies whose identity is cached: candidates that rank high often rank high again

Params = Mapping[str, Any]
Code = NDArray[np.int16]


class ParameterCodec:
    """Converts between parameters and codes, one a variable.

    Args:
        choices: By parameter.
        neutral: By parameter, the dense model's choice.
        identity: Maps parameters to a value that is equal for parameters with the same meaning; None for the parameters
            themselves.
        allowed: False for parameters that must not be proposed; None allows all.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[Any]],
        neutral: Params,
        identity: Callable[[Params], Hashable] | None,
        allowed: Callable[[Params], bool] | None,
    ) -> None:
        self._identity, self._allowed = identity, allowed
        self.names = list(choices)
        self.values = [
            [neutral[name], *(value for value in options if value != neutral[name])]
            for name, options in choices.items()
        ]
        self._codes = [{value: code for code, value in enumerate(values)} for values in self.values]
        self._cached_check = lru_cache(IDENTITY_CACHE)(self._check)

    def decode(self, code: Code) -> dict[str, Any]:
        """The parameters of a policy."""
        return {name: values[number] for name, values, number in zip(self.names, self.values, code, strict=True)}

    def encode(self, params: Params) -> Code | None:
        """The codes of parameters; None where a value is no choice."""
        found = [codes.get(params[name]) for codes, name in zip(self._codes, self.names, strict=True)]
        return None if None in found else np.array(found, np.int16)

    def identity(self, params: Params) -> Hashable:
        """Equal for parameters with the same meaning."""
        if self._identity:
            return self._identity({name: params[name] for name in self.names})
        return tuple(params[name] for name in self.names)

    def check(self, code: Code) -> tuple[Hashable, bool]:
        """The identity of a policy, and whether it may be proposed."""
        return self._cached_check(code.tobytes())

    def _check(self, code: bytes) -> tuple[Hashable, bool]:
        params = self.decode(np.frombuffer(code, np.int16))
        return self.identity(params), self._allowed is None or self._allowed(params)
