"""Muon: momentum whose every direction counts alike, for the matrices of hidden layers (K. Jordan and others, 2024).

Networks as small as the demo model's learn in half the steps with it. Vectors, embeddings and the layers at both ends
stay with AdamW.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# A quintic whose repeated application moves all singular values of a matrix towards 1, fast rather than exactly.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest matrices `(k, m, n)` with all singular values equal to 1 (Newton-Schulz iteration)."""
    a, b, c = _QUINTIC
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class MuonWithAdamW(torch.optim.AdamW):
    """AdamW, but for the groups marked `muon`, whose parameters are moved by orthogonalised momentum.

    Args:
        groups: parameter groups; `muon=True` marks those of matrices (further axes are flattened into the second).
        momentum: of the matrices. The rest as for AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float = 0.9, **adamw: Any):
        super().__init__([{"muon": False, "momentum": momentum, **group} for group in groups], **adamw)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; closures are not supported."""
        everything = self.param_groups
        try:
            self.param_groups = [group for group in everything if not group["muon"]]
            super().step()
        finally:
            self.param_groups = everything
        for group in everything:
            if group["muon"]:
                self._move([p for p in group["params"] if p.grad is not None], group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
            ahead = (parameter.grad + group["momentum"] * momentum).flatten(1).float()  # Nesterov
            by_shape.setdefault(tuple(ahead.shape), []).append((parameter, ahead))  # type: ignore[arg-type]
        for (rows, columns), pairs in by_shape.items():  # matrices of one shape go through together: far fewer calls
            updates = orthogonalised(torch.stack([ahead for _, ahead in pairs])) * max(1.0, rows / columns) ** 0.5
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter).to(parameter), alpha=-group["lr"])


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], muon_rate: float | None, rate: float
) -> list[dict[str, Any]]:
    """All parameters with AdamW's learning rate, or with `muon_rate` the hidden matrices apart."""
    if muon_rate is None:
        return [{"params": list(parameters.values()), "lr": rate, "share": 1.0}]
    hidden = {name for name, p in parameters.items() if _is_hidden_matrix(name, p)}
    return [
        {"params": [p for name, p in parameters.items() if name not in hidden], "lr": rate, "share": 1.0},
        {
            "params": [p for name, p in parameters.items() if name in hidden],
            "lr": muon_rate,
            "share": muon_rate / rate,
            "muon": True,
        },
    ]


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    ends = ("conv_in.", "conv_out.", "_embedding.weight", "quant_conv")
    if parameter.ndim < 2 or any(end in name for end in ends):
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= 16
