"""Worker: llama.cpp through the wheel xllamacpp, timed by its own server's clock.

Options: model (a GGUF file), threads, positions, vocab, flash (attention, "on" or "off"), slots (texts
at once). Knows no other peer.
"""

from pathlib import Path
from typing import Any

import xllamacpp
from worker import memory, random_ids, serve

GREEDY = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "cache_prompt": False}


def open_model(options: dict[str, Any]) -> dict[str, Any]:
    """Start its server inside this process."""
    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.n_parallel = slots = options.get("slots", 1)
    params.n_ctx = slots * options["positions"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    flash = "ENABLED" if options["flash"] == "on" else "DISABLED"
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    server = xllamacpp.Server(params)
    vocab = options["vocab_size"]

    def write(context: int, tokens: int) -> list[dict[str, Any]]:
        """Read a prompt, write tokens; the server's timings after each."""
        found = []

        def take(piece: Any) -> bool:
            if "timings" in piece:
                found.append(piece["timings"])
            return False  # go on

        request = {"prompt": random_ids(context, vocab), "n_predict": tokens, "max_tokens": tokens, **GREEDY}
        server.handle_completions({**request, "stream": True, "timings_per_token": True}, take)
        return found

    def decode(context: int, tokens: int) -> list[float]:
        """Milliseconds of each token after the first, which comes with the prompt."""
        clock = {timings["predicted_n"]: timings["predicted_ms"] for timings in write(context, tokens + 1)}
        return [clock[count + 1] - clock[count] for count in range(1, tokens + 1)]

    def prompt(tokens: int) -> float:
        """Seconds to read a prompt."""
        return float(write(tokens, 1)[-1]["prompt_ms"]) / 1000

    def info() -> dict[str, Any]:
        """Say what it is and how it was built."""
        return {
            "name": f"llama.cpp (xllamacpp {xllamacpp.__version__})",
            "system": xllamacpp.get_system_info(),
            "bytes": Path(options["model"]).stat().st_size,
            "flash attention": options["flash"],
            **memory(),
        }

    return {"decode": decode, "prompt": prompt, "info": info, "address": lambda: server.listening_address}


if __name__ == "__main__":
    serve(open_model)
