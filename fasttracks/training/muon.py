"""Muon (Jordan et al., 2024) for many matrices of few shapes."""

import math
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch.optim.Muon, with matrices of one shape orthogonalised together.

    Same updates and state. One by one, the matrices of the network's six blocks take over a
    quarter of a training step.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all parameters that have gradients; takes no closure."""
        assert closure is None
        for group in self.param_groups:
            assert group["nesterov"] and group["adjust_lr_fn"] == "match_rms_adamw"
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                updates = _orthogonal(self._momentum(parameters, group["momentum"]), group)
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.float()), alpha=-rate)

    def _momentum(self, parameters: list[Tensor], keep: float) -> Tensor:
        """Nesterov's look ahead for matrices of one shape, (M, rows, columns)."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - keep)
        return torch.stack(torch._foreach_lerp(gradients, momenta, keep))


def _orthogonal(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """UVᵀ of each matrix UΣVᵀ, nearly, by Newton–Schulz iterations in bfloat16."""
    a, b, c = group["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
