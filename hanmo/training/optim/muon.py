"""Muon for the matrices inside blocks and AdamW for everything else, as one optimizer.

torch's own Muon (https://kellerjordan.github.io/posts/muon/) takes matrices only. Knows parameters by name.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from hanmo.errors import ConfigError
from hanmo.training.optim.schedule import parameter_groups

__all__ = ["MuonWithAdamW"]


class MuonWithAdamW(Optimizer):
    """Update block matrices by Muon and the rest by AdamW, with one learning rate for both.

    named: (name, parameter) pairs of the model.   lr: AdamW's; Muon's steps are scaled to the same size
    ("match_rms_adamw", arXiv 2502.16982).   momentum: of Muon.
    Raises ConfigError if torch has no Muon (before 2.9).
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"optimizer is 'muon' and torch is {torch.__version__}; it needs torch 2.9 or newer")
        pairs = list(named)
        matrices = {name: p for name, p in pairs if p.ndim == 2 and ".blocks." in name}
        rest = parameter_groups([pair for pair in pairs if pair[0] not in matrices], lr=lr, weight_decay=weight_decay)
        options: Any = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        self.parts: tuple[Optimizer, Optimizer] = (
            torch.optim.Muon(list(matrices.values()), **options),
            AdamW(rest, lr=lr, betas=betas, fused=True if pairs[0][1].is_cuda else None),
        )
        super().__init__([p for _, p in pairs], {"lr": lr})
        # The groups are those of the parts, so that a learning rate set here reaches them.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make both steps; takes no closure."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both, as plain tensors and numbers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
