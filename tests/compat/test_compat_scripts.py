"""Scripts written for bert4keras run under `hanmo run`: the article's word for word, and what the examples call."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from hanmo.compat.bert4keras._script import check_script
from hanmo.compat.bert4keras.models import build_transformer_model

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
PROMPT = "今天天气不错"

# https://kexue.fm/archives/7292, with the indentation restored; its three paths are met by the folder it runs in.
ARTICLE = '''\
#! -*- coding: utf-8 -*-
# Basic test: Chinese GPT2 model
# Introduction link: https://kexue.fm/archives/7292
import numpy as np
from bert4keras.models import build_transformer_model
from bert4keras.tokenizers import Tokenizer
from bert4keras.snippets import AutoRegressiveDecoder
from bert4keras.snippets import uniout
config_path = 'gpt2/config.json'
checkpoint_path = 'gpt2/model.ckpt-100000'
dict_path = 'gpt2/vocab.txt'
# Establish tokenizer
tokenizer = Tokenizer(dict_path, token_start=None, token_end=None, do_lower_case=True)
# Build model and load weights
model = build_transformer_model(config_path=config_path, checkpoint_path=checkpoint_path, model='gpt2_ml')
class ArticleCompletion(AutoRegressiveDecoder):
    """Article continuation based on random sampling
    """
    @AutoRegressiveDecoder.set_rtype('probas')
    def predict(self, inputs, output_ids, step):
        token_ids = np.concatenate([inputs[0], output_ids], 1)
        return model.predict(token_ids)[:, -1]
    def generate(self, text, n=1, topk=5):
        token_ids, _ = tokenizer.encode(text)
        results = self.random_sample([token_ids], n, topk) # Based on random sampling
        return [text + tokenizer.decode(ids) for ids in results]
article_completion = ArticleCompletion(start_id=None, end_id=511, # 511 is the Chinese period
                                       maxlen=256, minlen=128)
print(article_completion.generate(u'今天天气不错'))
'''


def write_vocabulary(path, size, words=()):
    """Write a vocabulary of `size` lines: marks, the words, then Chinese characters; id 511 is the full stop."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*words, *PROMPT])]
    tokens += [chr(0x5000 + i) for i in range(size - len(tokens))]
    if size > 511:
        tokens[511] = "。"
    path.write_text("\n".join(tokens), "utf-8")


def write_model(folder, checkpoint, config, **arguments):
    """Write a tiny random checkpoint in TensorFlow's form, with its config.json."""
    folder.mkdir(exist_ok=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    data = {**sizes, "hidden_act": "gelu", "max_position_embeddings": 300, "initializer_range": 0.3, **config}
    (folder / "config.json").write_text(json.dumps(data), "utf-8")
    made = build_transformer_model(str(folder / "config.json"), return_keras_model=False, **arguments)
    made.save_weights_as_checkpoint(str(folder / checkpoint))


def hanmo_run(folder, text, *options):
    """Run a script under `hanmo run` in a folder of its own, and give what it printed."""
    (folder / "script.py").write_text(text, "utf-8")
    command = [sys.executable, "-m", "hanmo.cli", "run", *options, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_article(folder):
    (text,) = ast.literal_eval(hanmo_run(folder, ARTICLE))
    assert text.startswith(PROMPT) and len(text) > len(PROMPT) + 60
    assert [each for each in check_script(folder / "script.py") if not each.supported] == []


def test_the_article_runs_on_a_small_vocabulary(tmp_path):
    write_model(tmp_path / "gpt2", "model.ckpt-100000", {"vocab_size": 600}, model="gpt2_ml")
    write_vocabulary(tmp_path / "gpt2" / "vocab.txt", 600)
    check_article(tmp_path)


@pytest.mark.slow
def test_the_article_runs_on_the_released_layout(tmp_path, shared):
    write_model(tmp_path / "gpt2", "model.ckpt-100000", {"vocab_size": 21130}, model="gpt2_ml")
    vocabulary = (shared / "vocab" / "bert-base-chinese-vocab.txt").read_bytes()
    (tmp_path / "gpt2" / "vocab.txt").write_bytes(vocabulary)
    check_article(tmp_path)


def test_the_article_is_word_for_word(shared):
    lines = [line.strip() for line in (shared / "article.txt").read_text("utf-8").split("\n")]
    ours = [line.strip() for line in ARTICLE.strip().split("\n")]
    start = lines.index(ours[0])
    assert lines[start : start + len(ours)] == ours and len(ours) == 29


DECODER = """
import numpy as np
from bert4keras.models import build_transformer_model
from bert4keras.tokenizers import Tokenizer, SpTokenizer, load_vocab
from bert4keras.snippets import AutoRegressiveDecoder, to_array, uniout

class Writer(AutoRegressiveDecoder):
    @AutoRegressiveDecoder.{decorator}('probas')
    def predict(self, inputs, output_ids, {third}):
        ids = np.concatenate([inputs[0], output_ids], 1)
        return model.predict(ids)[:, -1]
"""


def test_basic_language_model_gpt2_ml(tmp_path):
    write_model(tmp_path / "m", "model.ckpt", {"vocab_size": 600}, model="gpt2_ml")
    write_vocabulary(tmp_path / "m" / "vocab.txt", 600)
    script = (
        DECODER.format(decorator="set_rtype", third="step")
        + f"""
tokenizer = Tokenizer('m/vocab.txt', token_start=None, token_end=None, do_lower_case=True)
model = build_transformer_model(config_path='m/config.json', checkpoint_path='m/model.ckpt', model='gpt2_ml')
writer = Writer(start_id=None, end_id=511, maxlen=40, minlen=20)
for text in ('{PROMPT}', '天气'):
    ids, _ = tokenizer.encode(text)
    print([text + tokenizer.decode(out) for out in writer.random_sample([ids], 2, 5)])
"""
    )
    for line in hanmo_run(tmp_path, script, "--weights", "bfloat16").splitlines():
        assert len(ast.literal_eval(line)) == 2


@pytest.mark.slow
def test_basic_language_model_nezha_gen_gpt_on_berts_names(tmp_path):
    write_model(tmp_path / "m", "gpt.ckpt", {"vocab_size": 600}, application="lm", segment_vocab_size=0)
    write_vocabulary(tmp_path / "m" / "vocab.txt", 600)
    script = (
        DECODER.format(decorator="wraps", third="states")
        + f"""
tokenizer = Tokenizer('m/vocab.txt', do_lower_case=True)
model = build_transformer_model(config_path='m/config.json', checkpoint_path='m/gpt.ckpt',
                                segment_vocab_size=0, application='lm')
assert model.input_names == ['Input-Token']
writer = Writer(start_id=None, end_id=511, maxlen=40, minlen=20)
ids = tokenizer.encode('{PROMPT}')[0][:-1]
print(['{PROMPT}' + tokenizer.decode(out) for out in writer.random_sample([ids], 1, 5)])
"""
    )
    (text,) = ast.literal_eval(hanmo_run(tmp_path, script))
    assert text.startswith(PROMPT) and len(text) >= 20


@pytest.mark.slow
def test_basic_language_model_cpm_lm(tmp_path):
    pytest.importorskip("jieba", reason="pip install 'hanmo[cpm]'")
    questions = ["狗 dog", "猫 cat", "猪 pig", "美国的首都是华盛顿", "法国的首都是巴黎"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(text) + "\u2582\u2583" for text in questions * 20]),
        model_prefix=str(tmp_path / "chinese"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=1,
        unk_id=0,
        bos_id=-1,
        eos_id=2,
        control_symbols=["<cls>"],
        minloglevel=2,
        num_threads=1,
    )
    size = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "chinese.model")).get_piece_size()
    write_model(tmp_path / "m", "model.ckpt", {"vocab_size": size}, model="gpt2")
    script = (
        DECODER.format(decorator="wraps", third="states")
        + """
import jieba
jieba.initialize()

def cut(text):
    return [word.replace(' ', u'\\u2582').replace('\\n', u'\\u2583') for word in jieba.cut(text, cut_all=False)]

tokenizer = SpTokenizer('chinese.model', token_start=None, token_end=None, pre_tokenize=cut,
                        token_translate={u'\\u2583': '<cls>'})
model = build_transformer_model(config_path='m/config.json', checkpoint_path='m/model.ckpt', model='gpt2')
writer = Writer(start_id=None, end_id=3, maxlen=16)
ids, _ = tokenizer.encode(u'狗 dog\\n猫 cat\\n猪')
assert ids.count(3) == 2, ids
for out in writer.random_sample([ids], 2, topp=0.95, temperature=0.9):
    text = tokenizer.decode(ids + [int(i) for i in out]).replace(' ', '')
    print(repr(text.replace(u'\\u2582', ' ').replace(u'\\u2583', '\\n')))
"""
    )
    lines = hanmo_run(tmp_path, script).splitlines()
    assert len(lines) == 2 and all(ast.literal_eval(line).startswith("狗 dog\n猫 cat\n猪") for line in lines)


BERT = f"""
import numpy as np
from bert4keras.backend import keras
from bert4keras.models import build_transformer_model
from bert4keras.tokenizers import Tokenizer, load_vocab
from bert4keras.snippets import to_array
config_path, checkpoint_path = {str(GOLDENS / "bert" / "config.json")!r}, {str(GOLDENS / "bert" / "model.ckpt")!r}
"""


@pytest.mark.slow
def test_basic_extract_features_saves_and_loads_again(tmp_path):
    write_vocabulary(tmp_path / "vocab.txt", 120)
    script = (
        BERT
        + f"""
tokenizer = Tokenizer('vocab.txt', do_lower_case=True)
model = build_transformer_model(config_path, checkpoint_path)
token_ids, segment_ids = to_array(*([ids] for ids in tokenizer.encode('{PROMPT}')))
print(model.predict([token_ids, segment_ids]).tolist())
model.save('test.model')
del model
model = keras.models.load_model('test.model')
print(model.predict([token_ids, segment_ids]).tolist())
"""
    )
    first, second = map(ast.literal_eval, hanmo_run(tmp_path, script).splitlines())
    assert len(first[0]) == len(PROMPT) + 2
    for one, two in zip(first[0], second[0], strict=True):
        assert one == pytest.approx(two, abs=2e-5)


@pytest.mark.slow
def test_basic_masked_language_model(tmp_path):
    write_vocabulary(tmp_path / "vocab.txt", 120)
    script = (
        BERT
        + f"""
tokenizer = Tokenizer('vocab.txt', do_lower_case=True)
model = build_transformer_model(config_path=config_path, checkpoint_path=checkpoint_path, with_mlm=True)
token_ids, segment_ids = tokenizer.encode('{PROMPT}')
token_ids[3] = token_ids[4] = tokenizer._token_dict['[MASK]']
probas = model.predict([np.array([token_ids]), np.array([segment_ids])])[0]
print(probas.shape, probas.sum(), repr(tokenizer.decode(probas[3:5].argmax(axis=1))))
"""
    )
    assert hanmo_run(tmp_path, script).startswith(f"({len(PROMPT) + 2}, 120) ")


@pytest.mark.slow
def test_basic_gibbs_sampling_via_mlm(tmp_path):
    write_vocabulary(tmp_path / "vocab.txt", 120)
    script = (
        BERT
        + f"""
tokenizer = Tokenizer('vocab.txt', do_lower_case=True)
model = build_transformer_model(config_path=config_path, checkpoint_path=checkpoint_path, with_mlm=True)
token_ids, segment_ids = tokenizer.encode('{PROMPT}')
assert tokenizer.tokens_to_ids(['[CLS]', '[MASK]']) == [token_ids[0], tokenizer._token_mask_id]
for _ in range(20):
    i = np.random.choice(len(token_ids) - 2) + 1
    token_ids[i] = tokenizer._token_mask_id
    probas = model.predict(to_array([token_ids], [segment_ids]))[0, i]
    token_ids[i] = np.random.choice(tokenizer._vocab_size, p=probas)
print(token_ids, repr(tokenizer.decode(token_ids)))
"""
    )
    assert hanmo_run(tmp_path, script).startswith("[2, ")


@pytest.mark.slow
def test_basic_make_uncased_model_cased(tmp_path):
    write_vocabulary(tmp_path / "vocab.txt", 120, ["welcome", "to", "be", "##i", "##jing", "."])
    script = (
        BERT
        + """
old = load_vocab('vocab.txt')
new, compound_tokens = old.copy(), []
for token, i in sorted(old.items(), key=lambda pair: pair[1]):
    if token.isalpha():
        cased = [token[:1].upper() + token[1:], token.upper()]
    else:
        cased = [token.upper()] if token[:2] == '##' and token[2:].isalpha() else []
    for each in cased:
        if each not in new:
            compound_tokens.append([i])
            new[each] = len(new)
tokenizer = Tokenizer(new, do_lower_case=False)
model = build_transformer_model(config_path, checkpoint_path, compound_tokens=compound_tokens)
text = u'Welcome to BEIJING.'
print(tokenizer.tokenize(text))
token_ids, segment_ids = tokenizer.encode(text)
token_ids, segment_ids = to_array([token_ids], [segment_ids])
print(model.predict([token_ids, segment_ids]).shape)
"""
    )
    tokens, shape = map(ast.literal_eval, hanmo_run(tmp_path, script).splitlines())
    assert tokens == ["[CLS]", "Welcome", "to", "BE", "##I", "##JING", ".", "[SEP]"] and shape == (1, 8, 32)
