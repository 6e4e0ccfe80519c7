"""CPM's tokenizer (TsinghuaAI/CPM-Generate) for transformers 5.5 and later.

jieba splits a text into words, in which ' ' is written as '▂' and '\\n' as '▃'; SentencePiece encodes the words joined
by spaces. Decoding removes these. No special token is put around a text.
"""

from itertools import groupby
from pathlib import Path

import jieba
import transformers
from packaging.version import Version
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

if Version(transformers.__version__) < Version("5.5"):
    raise ImportError(f"this tokenizer needs transformers 5.5 or later, this is {transformers.__version__}; upgrade it")

jieba.setLogLevel("WARNING")  # it logs how long its dictionary took to load

FILE = "spiece.model"
TO_CPM = str.maketrans({" ": "▂", "\n": "▃"})
FROM_CPM = str.maketrans({" ": None, "▂": " ", "▃": "\n"})


class CpmJiebaTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, extra_special_tokens=(), **kwargs):
        self.sp_model = SentencePieceProcessor(model_file=str(vocab_file))
        extra = list(extra_special_tokens or ())
        known = {str(token) for token in extra}
        control = [self.sp_model.id_to_piece(i) for i in range(self.vocab_size) if self.sp_model.is_control(i)]
        extra += [piece for piece in control if piece not in known]
        super().__init__(extra_special_tokens=extra, **kwargs)

    @property
    def vocab_size(self):
        return self.sp_model.get_piece_size()

    def get_vocab(self):
        return {self.sp_model.id_to_piece(i): i for i in range(self.vocab_size)} | self.added_tokens_encoder

    def _tokenize(self, text, **kwargs):
        words = " ".join(word.translate(TO_CPM) for word in jieba.cut(text))
        return [self.sp_model.id_to_piece(number) for number in self.sp_model.encode(words)]

    def _convert_token_to_id(self, token):
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index):
        return self.sp_model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens):
        """Decode runs of pieces, the unknown one included, and write the special and added tokens between them."""
        written = self._added_tokens_encoder.keys() - {self.sp_model.id_to_piece(self.sp_model.unk_id())}
        return "".join(
            "".join(run) if is_written else self.sp_model.decode(list(run)).translate(FROM_CPM)
            for is_written, run in groupby(tokens, written.__contains__)
        )

    def _decode(self, token_ids, skip_special_tokens=False, **kwargs):
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        skipped = set(self.all_special_ids) - {self.sp_model.unk_id()} if skip_special_tokens else ()
        return self.convert_tokens_to_string(self.convert_ids_to_tokens([i for i in ids if i not in skipped]))

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = Path(save_directory) / (f"{filename_prefix}-{FILE}" if filename_prefix else FILE)
        path.write_bytes(self.sp_model.serialized_model_proto())
        return (str(path),)


__all__ = ["CpmJiebaTokenizer"]
