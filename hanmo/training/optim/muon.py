"""Muon for the matrices inside blocks and AdamW for all else, as one optimizer.

torch's own Muon (https://kellerjordan.github.io/posts/muon/) takes matrices only; embeddings, the output, norms and
biases need another. Knows parameters by name; knows no schedule and no loop.
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

    named: (name, parameter) pairs of the model.   lr: as for AdamW, to whose size Muon's steps are scaled
    ("match_rms_adamw", arXiv 2502.16982).   momentum: of Muon.
    Raises ConfigError where torch has no Muon (before 2.9).
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
        inside = [(name, p) for name, p in pairs if p.ndim == 2 and ".blocks." in name]
        matrices = {name for name, _ in inside}
        rest = [(name, p) for name, p in pairs if name not in matrices]
        self.parts: tuple[Optimizer, Optimizer] = (
            torch.optim.Muon(
                [p for _, p in inside],
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            AdamW(
                parameter_groups(rest, lr=lr, weight_decay=weight_decay),
                lr=lr,
                betas=betas,
                fused=True if pairs[0][1].is_cuda else None,
            ),
        )
        super().__init__([p for _, p in pairs], {"lr": lr})
        # The groups are the parts' own, so that a learning rate set here is theirs.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make both steps; takes no closure."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Give the state of both, as plain tensors and numbers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
