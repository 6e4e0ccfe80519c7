"""Worker: llama.cpp as llama-cpp-python compiles it for chosen instructions, called through its C functions.

Options as for run_llamacpp.py. There is no server: what is timed is the computation and the choice of the id.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from worker import memory, random_ids, serve, steps, timed


def open_model(options: dict[str, Any]) -> dict[str, Any]:
    """Load the model and make its one context."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(options["model"].encode(), llama_cpp.llama_model_default_params())
    wanted = llama_cpp.llama_context_default_params()
    wanted.n_ctx = wanted.n_batch = options["positions"]
    wanted.n_threads = wanted.n_threads_batch = options["threads"]
    wanted.flash_attn_type = int(options["flash"] == "on")
    context = llama_cpp.llama_init_from_model(model, wanted)
    vocab = options["vocab_size"]

    def read(ids: list[int]) -> int:
        """Append ids, and give the likeliest of what comes next."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch only points to it
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode refused {len(ids)} ids")
        logits = ctypes.cast(llama_cpp.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(logits, (vocab,)).argmax())

    def forget() -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    def decode(context: int, tokens: int) -> list[float]:
        """Milliseconds of each step after a prompt."""
        forget()
        first = read(random_ids(context, vocab))

        def write(id: int) -> Iterator[None]:
            while True:
                id = read([id])
                yield

        return steps(write(first), tokens)

    def prompt(tokens: int) -> float:
        """Seconds to read a prompt."""
        forget()
        return timed(lambda: read(random_ids(tokens, vocab)))

    def info() -> dict[str, Any]:
        """Say what it is and how it was built."""
        return {
            "name": f"llama.cpp (llama-cpp-python {llama_cpp.__version__}, compiled here)",
            "system": llama_cpp.llama_print_system_info().decode(),
            "bytes": Path(options["model"]).stat().st_size,
            "flash attention": options["flash"],
            **memory(),
        }

    return {"decode": decode, "prompt": prompt, "info": info}


if __name__ == "__main__":
    serve(open_model)
