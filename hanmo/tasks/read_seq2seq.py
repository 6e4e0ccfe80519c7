"""Answer questions about a passage by a UniLM or a T5, one token after the other.

    UniLM    [CLS] passage [SEP] question [SEP] │ tokens of the answer [SEP]
    T5       passage </s> question </s>         │ tokens of the answer </s>

As bert4keras's task_reading_comprehension_by_seq2seq.py in its extractive mode, with a greedy search in place of beams.
Rows and results are those of read.py, with "score" for "probability".
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.inference.torch_engine import TorchEngine
from hanmo.model import Model
from hanmo.tasks.read_mlm import Extractive, Found
from hanmo.tasks.task import Batch, TaskNetwork
from hanmo.tokenizers.prompt import marks_of


class ReadSeq2seq(Extractive):
    """kind "read_seq2seq"."""

    encodes = False

    def network(self, config: ModelConfig) -> ModelConfig:
        if config.output == "none":
            raise ConfigError(f"this {config.family} has no output onto its vocabulary, which writing an answer needs")
        if config.is_encoder_decoder or config.main.mask == "prefix":
            return config
        super().network(config)
        return replace(config, pool="none", nsp=False, discriminator=False).with_mask("prefix")

    def forward(self, backbone: Model, head: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of every token of the answer [windows, m, vocab]."""
        ids, mask, answer = batch["ids"], batch["mask"], batch["answer"]
        known = answer[:, :-1].clamp(min=0)
        if backbone.config.is_encoder_decoder:
            start = ids.new_full((len(ids), 1), marks_of(backbone.config, self.tokenizer).start)
            logits = backbone(torch.cat([start, known], 1), source=ids, source_mask=mask).logits
            assert logits is not None
            return logits
        segments = torch.cat([torch.zeros_like(ids), torch.ones_like(known)], 1)
        whole = torch.cat([mask, answer[:, :-1] >= 0], 1)
        hidden = backbone(torch.cat([ids, known], 1), segments=segments, mask=whole, logits="none").hidden
        last = mask.sum(1) - 1
        first = hidden[torch.arange(len(ids), device=ids.device), last][:, None]
        return backbone.logits(torch.cat([first, hidden[:, ids.shape[1] :]], 1))

    def infer(self, network: TaskNetwork, batch: Batch) -> Sequence[Found]:
        """Write the answers of all windows together, by the engine that writes texts."""
        backbone = network.backbone
        engine = TorchEngine(backbone, start=marks_of(backbone.config, self.tokenizer).start)
        prompts = [ids[mask].tolist() for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
        matches = [self.match(ids) for ids in batch["ids"]]
        rows, logits = engine.prefill(prompts, room=self.max_answer + 1)
        active = list(range(len(matches)))
        for _ in range(self.max_answer + 1):
            probabilities = torch.softmax(torch.as_tensor(logits), -1).cpu().numpy()
            chosen = [matches[number].push(row) for number, row in zip(active, probabilities, strict=True)]
            left = [place for place, number in enumerate(active) if not matches[number].done]
            if not left:
                break
            rows.reorder(left)
            active = [active[place] for place in left]
            logits = rows.step([chosen[place] for place in left])
        return [(match.place, match.score) for match in matches]
