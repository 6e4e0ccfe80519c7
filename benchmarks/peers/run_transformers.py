"""Worker: transformers' GPT2LMHeadModel with its own cache, one step as its `generate` takes it when greedy.

Options: dtype, threads, num_layers, hidden_size, heads, inner, positions, vocab. Random weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from worker import memory, random_ids, serve, steps, timed


def open_model(options: dict[str, Any]) -> dict[str, Any]:
    """Make the model without its slow initialisation; every page is written, so that reading one is reading memory."""
    torch.set_num_threads(options["threads"])
    torch.set_grad_enabled(False)
    config = transformers.GPT2Config(
        vocab_size=options["vocab_size"],
        n_positions=options["positions"],
        n_embd=options["hidden_size"],
        n_layer=options["num_layers"],
        n_head=options["num_heads"],
        n_inner=options["inner"],
    )
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config).to(getattr(torch, options["dtype"]))
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    for parameter in model.parameters():
        parameter.uniform_(-0.03, 0.03)

    def decode(context: int, tokens: int) -> list[float]:
        """Milliseconds of each step after a prompt."""
        ids = torch.tensor([random_ids(context, options["vocab_size"])])

        def write() -> Iterator[None]:
            known, cache = ids, None
            while True:
                out = model(input_ids=known, past_key_values=cache, use_cache=True, logits_to_keep=1)
                known, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                yield

        return steps(write(), tokens + 1)[1:]

    def prompt(tokens: int) -> float:
        """Seconds to read a prompt."""
        ids = torch.tensor([random_ids(tokens, options["vocab_size"])])
        return timed(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))

    def info() -> dict[str, Any]:
        """Say what it is."""
        size = sum(parameter.nbytes for parameter in model.parameters())
        name = f"transformers {transformers.__version__} {options['dtype']} (torch {torch.__version__})"
        return {"name": name, "bytes": size, "attention": model.config._attn_implementation, **memory()}

    return {"decode": decode, "prompt": prompt, "info": info}


if __name__ == "__main__":
    serve(open_model)
