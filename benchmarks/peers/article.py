#! -*- coding: utf-8 -*-
# ruff: noqa
# The script of https://kexue.fm/archives/7292, as bert4keras 0.11.5 has it (`wraps` was `set_rtype` then), with three
# changes: its paths, how many tokens it writes, and a clock.
#     article.py CONFIG CHECKPOINT VOCABULARY TOKENS OUT.json
import json
import sys
import time

import numpy as np
from bert4keras.models import build_transformer_model
from bert4keras.tokenizers import Tokenizer
from bert4keras.snippets import AutoRegressiveDecoder
from bert4keras.snippets import uniout

config_path, checkpoint_path, dict_path = sys.argv[1:4]
tokens = int(sys.argv[4])
clock = [time.time()]
tokenizer = Tokenizer(dict_path, token_start=None, token_end=None, do_lower_case=True)
model = build_transformer_model(config_path=config_path, checkpoint_path=checkpoint_path, model="gpt2_ml")


class ArticleCompletion(AutoRegressiveDecoder):
    @AutoRegressiveDecoder.wraps(default_rtype="probas")
    def predict(self, inputs, output_ids, step):
        token_ids = np.concatenate([inputs[0], output_ids], 1)
        clock.append(time.time())
        return model.predict(token_ids)[:, -1]

    def generate(self, text, n=1, topk=5):
        token_ids, _ = tokenizer.encode(text)
        results = self.random_sample([token_ids], n, topk)
        return [text + tokenizer.decode(ids) for ids in results]


article_completion = ArticleCompletion(start_id=None, end_id=511, maxlen=tokens, minlen=tokens)
print(article_completion.generate("今天天气不错"))
clock.append(time.time())
with open(sys.argv[5], "w") as out:
    json.dump({"load": clock[1] - clock[0], "steps": [b - a for a, b in zip(clock[1:], clock[2:])]}, out)
