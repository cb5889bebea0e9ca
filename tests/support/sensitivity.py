"""What has inputs is run with one of them changed: exactly the results that should change do, and nothing else.

A table says for every input of a `Subject` what it is changed to and which results that changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LEAST = 1e-3  # of a result's standard deviation; less is rounding, or a knob that nobody would notice
Results = dict[str, Any]  # tensors, numbers or text, by name


class Others:
    """In place of a value: all other options of the input, one after the other; no two give the same."""


@dataclass(frozen=True)
class Changed:
    """Another value for an input. What is callable is called, so that every run has objects of its own.

    Args:
        to: the value.
        see: names of all results which change, separated by blanks.
        beside: other inputs which differ from the subject's in both runs, so that this one can matter.
        off: a value at which everything is as if the subject were not there.
    """

    to: Any
    see: str
    beside: Mapping[str, Any] = field(default_factory=dict)
    off: Any = None


@dataclass(frozen=True, eq=False)
class Subject:
    """Something with inputs.

    Args:
        run: named results of all inputs.
        inputs: a value for each, at which each matters.
        rows: what happens when an input changes.
        absent: what the results are without the subject, from the same inputs.
    """

    run: Callable[..., Results]
    inputs: Mapping[str, Any]
    rows: Mapping[str, Changed]
    absent: Callable[..., Results] | None = None
    _known: dict[tuple, Results] = field(default_factory=dict)

    def results(self, **inputs: Any) -> Results:
        """Of a run with these inputs in place of the subject's own."""
        return self.run(**_made({**self.inputs, **inputs}))

    def baseline(self, beside: Mapping[str, Any]) -> Results:
        """Results without a change, computed once."""
        key = tuple(sorted(beside.items()))
        if key not in self._known:
            self._known[key] = self.results(**beside)
        return self._known[key]

    def without(self) -> Results:
        """What there is if the subject is not."""
        assert self.absent is not None
        return self.absent(**_made(self.inputs))


def _made(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in inputs.items()}


def changed(before: Results, after: Results) -> set[str]:
    """Names of the results which are not the same, to the last bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not _same(before[name], after[name])}


def unnoticed(before: Results, after: Results) -> dict[str, float]:
    """Differences so small that they are none, in standard deviations of the result."""
    found = {}
    for name in changed(before, after):
        a, b = before[name], after[name]
        if isinstance(a, Tensor) and a.shape == b.shape and a.is_floating_point():
            size = ((a - b).abs().max() / a.std()).item()
            if size < LEAST:
                found[name] = size
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def weights_of(*networks: torch.nn.Module) -> Tensor:
    """All parameters in one row, exactly."""
    return torch.cat([p.detach().double().flatten() for network in networks for p in network.parameters()])
