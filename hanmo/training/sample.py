"""Let a model in training write a little, to look at while it learns. The rules of writing proper are in generate/.

Knows a model with a cache, and ids. Knows no text.
"""

from collections.abc import Sequence

import torch

from hanmo.model import Model

__all__ = ["sample"]


@torch.no_grad()
def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    end: int,
    top_k: int = 20,
    temperature: float = 1.0,
    banned: Sequence[int] = (0,),
    seed: int = 0,
) -> list[list[int]]:
    """Go on from each prompt by `count` ids drawn from the `top_k` likeliest, or until `end`; prompts are not repeated.

    prompts: ids, at least one each; all are written side by side.   banned: ids that are never drawn.
    The same seed gives the same ids on the same device; torch's own generators are not touched.
    """
    device, longest = model.token.weight.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    real = torch.tensor([[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    trained = model.training
    model.eval()
    cache = model.new_cache(rows=len(prompts), capacity=longest + count)
    output = model(ids, mask=None if bool(real.all()) else real, cache=cache, logits="last")
    written = []
    for left in range(count, 0, -1):
        assert output.logits is not None
        scores = output.logits[:, -1].float()
        scores[:, list(banned)] = float("-inf")
        best, chosen = (scores / temperature).topk(min(top_k, scores.shape[-1]))
        drawn = torch.multinomial(best.softmax(-1), 1, generator=generator)
        ids = chosen.gather(-1, drawn)
        written.append(ids)
        if left > 1:
            output = model(ids, cache=cache, logits="last")
    model.train(trained)
    rows = torch.cat(written, 1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
