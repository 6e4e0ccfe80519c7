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
        self._muon: Optimizer = torch.optim.Muon(list(matrices.values()), **options)
        self._adamw = AdamW(rest, lr=lr, betas=betas, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Give both optimizers the groups and the state of this one, so that either may be set or saved here."""
        first = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:first], self.param_groups[first:]
        self._muon.state = self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make both steps; takes no closure."""
        self._muon.step()
        self._adamw.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, now or in version 0.1, which kept the two apart."""
        if "parts" in state_dict:
            first, second = state_dict["parts"]
            count = sum(len(group["params"]) for group in first["param_groups"])
            groups = [{**group, "params": [count + n for n in group["params"]]} for group in second["param_groups"]]
            state = first["state"] | {count + number: each for number, each in second["state"].items()}
            state_dict = {"state": state, "param_groups": [*first["param_groups"], *groups]}
        super().load_state_dict(state_dict)
        self._share()
