"""Make what bert4keras's examples read, small and random: checkpoints of 12 x 128, vocabularies, and data sets.

Every file has the path and the form of the original one; the texts are drawn from a few hundred characters, with labels
that can be learnt from single characters.
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from hanmo.compat.bert4keras.models import build_transformer_model

BERTS = (
    "chinese_L-12_H-768_A-12",
    "chinese_wwm_L-12_H-768_A-12",
    "chinese_roberta_wwm_ext_L-12_H-768_A-12",
    "uncased_L-12_H-768_A-12",
    "uer/mixed_corpus_bert_base_model",
    "chinese_simbert_L-12_H-768_A-12",
)
SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "gelu",
    "max_position_embeddings": 1024,
    "type_vocab_size": 2,
    "initializer_range": 0.05,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "welcome to be ##i ##jing a cat sits on the red mat".split()
PRINTED = list("0123456789abcdefghijklmnopqrstuvwxyz.,+-*/()=?:;，。！？；：、“”")
STOP = 511  # the id of "。" in the vocabularies that writing scripts expect
COMMON = [chr(0x4E00 + i) for i in range(300)]
WRITTEN = sorted(
    set(
        "今天气不错科学技术是第一生产力语言模型这本很糟糕的书好坏小明有个苹果又买了共几红楼梦三国志水浒传曹雪芹罗贯中"
        "施耐庵作者出地妻子张丰李四光王五爷北京市上海"
    )
)
CHARACTERS = WRITTEN + COMMON


class Maker:
    """Writes files below a folder, with one generator of random numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.random = folder, random.Random(0)

    def text(self, length: int, kinds: int = len(COMMON)) -> str:
        """Draw from the first of the common characters."""
        return "".join(self.random.choices(COMMON[:kinds], k=length))

    def write(self, path: str, text: str, encoding: str = "utf-8") -> Path:
        """Write a file below the folder."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding)
        return file

    def lines(self, path: str, rows: Iterable[Any]) -> None:
        """Write one row a line, what is not a string as JSON."""
        texts = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        self.write(path, "\n".join(texts))


def make(folder: Path) -> None:
    """Write all data below FOLDER/root, and FOLDER/datasets for the two sets that come with the examples."""
    maker = Maker(folder)
    texts = (classes, pairs, sequences, relations, titles, questions, novels, pictures)
    for part in (checkpoints, sentence_pieces, *texts):
        part(maker)


def vocabulary() -> list[str]:
    tokens = list(dict.fromkeys([*MARKS, *WORDS, *PRINTED, *CHARACTERS]))
    tokens.remove("。")
    tokens += [f"[unused{i}]" for i in range(STOP + 1 - len(tokens))]
    tokens.insert(STOP, "。")
    return tokens


def checkpoint(maker: Maker, folder: str, name: str, config: str, sizes: dict[str, Any], **arguments: Any) -> None:
    """Write a random checkpoint in TensorFlow's form beside its configuration."""
    file = maker.write(f"root/{folder}/{config}", json.dumps(SIZES | sizes))
    made = build_transformer_model(str(file), return_keras_model=False, **arguments)
    made.save_weights_as_checkpoint(str(file.parent / name))


def checkpoints(maker: Maker) -> None:
    tokens = vocabulary()
    size = {"vocab_size": len(tokens)}
    for folder in BERTS:
        heads = {"with_mlm": True, "with_nsp": True}
        checkpoint(maker, f"kg/bert/{folder}", "bert_model.ckpt", "bert_config.json", size, **heads)
    albert = size | {"embedding_size": 64, "num_hidden_layers": 6}
    folder = "kg/bert/albert_small_zh_google"
    checkpoint(maker, folder, "albert_model.ckpt", "albert_config.json", albert, model="albert", with_mlm=True)
    checkpoint(maker, "gpt2", "model.ckpt-100000", "config.json", size, model="gpt2_ml")
    lm = {"application": "lm", "segment_vocab_size": 0}
    checkpoint(maker, "kg/bert/chinese_nezha_gpt_L-12_H-768_A-12", "gpt.ckpt", "config.json", size, **lm)
    for file in list(maker.folder.rglob("*config.json")):
        (file.parent / "vocab.txt").write_text("\n".join(tokens), "utf-8")


def sentence_pieces(maker: Maker) -> None:
    """Write the two SentencePiece models, and the checkpoints that belong to them."""
    train: Callable[..., None] = sentencepiece.SentencePieceTrainer.train
    quiet = {"hard_vocab_limit": False, "bos_id": -1, "minloglevel": 2, "num_threads": 1}
    folder = maker.folder / "root/kg/bert/CPM_LM_2.6B_TF"
    folder.mkdir(parents=True)
    facts = ["狗 dog", "猫 cat", "猪 pig", "美国的首都是华盛顿", "法国的首都是巴黎"]
    texts = [f"{' '.join(fact)}\u2582\u2583" for fact in facts * 20]
    ids = {"unk_id": 0, "pad_id": 1, "eos_id": 2, "control_symbols": ["<cls>"]}
    train(sentence_iterator=iter(texts), model_prefix=str(folder / "chinese_vocab"), vocab_size=60, **ids, **quiet)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "chinese_vocab.model")).get_piece_size()
    sizes = {"vocab_size": pieces, "num_hidden_layers": 2}
    checkpoint(maker, "kg/bert/CPM_LM_2.6B_TF", "model.ckpt", "config.json", sizes, model="gpt2")
    folder = maker.folder / "root/kg/bert/mt5"
    folder.mkdir(parents=True)
    texts = [maker.text(20) for _ in range(500)]
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2}
    train(sentence_iterator=iter(texts), model_prefix=str(folder / "sentencepiece_cn"), vocab_size=400, **ids, **quiet)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece_cn.model")).get_piece_size()
    maker.write("root/kg/bert/mt5/sentencepiece_cn_keep_tokens.json", json.dumps(list(range(pieces))))
    gated = {"vocab_size": pieces + 20, "num_hidden_layers": 2, "hidden_act": ["gelu", "linear"]}
    names = ("kg/bert/mt5/mt5_base", "model.ckpt-1000000", "mt5_base_config.json")
    checkpoint(maker, *names, gated | {"attention_head_size": 32}, model="mt5.1.1")


def classes(maker: Maker) -> None:
    """Reviews of two classes, and CLUE's IFLYTEK with four of its 119: the first characters tell the class."""
    for part, rows in {"train": 96, "valid": 16, "test": 16}.items():
        reviews = [f"{'坏好'[i % 2] * 4}{maker.text(8)}\t{i % 2}" for i in range(rows)]
        maker.lines(f"datasets/sentiment/sentiment.{part}.data", reviews)
    for part, rows in {"train": 96, "dev": 16, "test": 8}.items():
        labelled = [
            {"label": str(i % 4), "label_des": "x", "sentence": "天气语言"[i % 4] * 5 + maker.text(10), "id": i}
            for i in range(rows)
        ]
        maker.lines(f"root/CLUE-master/baselines/CLUEdataset/iflytek/{part}.json", labelled)


def pairs(maker: Maker) -> None:
    for part, rows in {"train": 96, "valid": 16, "test": 16}.items():
        texts = [maker.text(6) for _ in range(rows)]
        labelled = [f"{text}\t{'好' * 3 + text if i % 2 else '坏' * 6}\t{i % 2}" for i, text in enumerate(texts)]
        maker.lines(f"datasets/lcqmc/lcqmc.{part}.data", labelled)


def sequences(maker: Maker) -> None:
    """Entities one character a line, an empty line between texts; and segmented text."""
    kinds = {"PER": ["张三丰", "李四光", "王五爷"], "LOC": ["北京市", "上海市"]}
    for part, rows in {"train": 64, "dev": 4, "test": 4}.items():
        texts = []
        for _ in range(rows):
            tagged = []
            for kind in list(kinds) * 2:
                tagged += [f"{character} O" for character in maker.text(4)]
                name = maker.random.choice(kinds[kind])
                tagged += [f"{character} {'I' if i else 'B'}-{kind}" for i, character in enumerate(name)]
            texts.append("\n".join(tagged))
        maker.write(f"root/ner/china-people-daily-ner-corpus/example.{part}", "\n\n".join(texts))
    words = ["  ".join(maker.text(maker.random.randint(1, 3)) for _ in range(8)) for _ in range(60)]
    maker.lines("root/icwb2-data/training/pku_training.utf8", words)


def relations(maker: Maker) -> None:
    predicates = ["作者", "出生地", "妻子"]

    def fact() -> dict[str, Any]:
        subject, predicate = maker.random.choice(["红楼梦", "三国志", "水浒传"]), maker.random.choice(predicates)
        object_ = maker.random.choice(["曹雪芹", "罗贯中", "施耐庵"])
        text = f"{maker.text(4)}{subject}的{predicate}是{object_}{maker.text(3)}"
        return {"text": text, "spo_list": [{"subject": subject, "predicate": predicate, "object": object_}]}

    maker.lines("root/kg/datasets/train_data.json", [fact() for _ in range(96)])
    maker.lines("root/kg/datasets/dev_data.json", [fact() for _ in range(4)])
    maker.lines("root/kg/datasets/all_50_schemas", [{"predicate": each} for each in predicates])


def titles(maker: Maker) -> None:
    """Titles, of few kinds of characters, are the start of their text."""
    for i in range(32):
        title = maker.text(6, 20)
        maker.write(f"root/thuctc/THUCNews/news/{i}.txt", f"{title}\n{title}{maker.text(20)}")
    for part, rows in {"train": 96, "val": 2, "test": 2}.items():
        texts = [maker.text(6, 20) + maker.text(20) for _ in range(rows)]
        maker.lines(f"root/csl/{part}.tsv", [f"{text[:6]}\t{text}" for text in texts])


def questions(maker: Maker) -> None:
    """Questions on passages that contain the answer, and sums in words with their equation."""
    answered = [
        {
            "id": str(i),
            "question": f"{maker.text(6)}？",
            "passages": [{"answer": "红楼梦", "passage": f"{maker.text(10)}红楼梦{maker.text(10)}"} for _ in range(2)],
        }
        for i in range(36)
    ]
    for name in ("WebQA", "SogouQA"):
        maker.write(f"root/qa_datasets/{name}.json", json.dumps(answered, ensure_ascii=False))
    for part, rows in {"train": 64, "valid": 2, "test": 2}.items():
        sums = []
        for i in range(rows):
            a, b = maker.random.sample(range(1, 50), 2)
            text = f"小明有{a}个苹果又买了{b}个共有几个？"
            equation = {"equation": f"x={a}+{b}", "ans": str(a + b)}
            sums.append({"id": str(i), "original_text": text, "segmented_text": " ".join(text)} | equation)
        maker.lines(f"root/ape210k/{part}.ape.json", sums)


def novels(maker: Maker) -> None:
    """Write a novel in GBK, and games of Chinese chess as moves."""
    sentences = [f"{maker.text(maker.random.randint(6, 12))}。" for _ in range(20)]
    paragraphs = ["".join(maker.random.choices(sentences, k=4)) for _ in range(40)]
    maker.write("root/金庸/novel/1.txt", "  ".join(paragraphs), "gbk")
    games = [{"fen": "", "items": {"棋局结果": "2"}, "iccs": "h2e2h9g7h0g2i9h9i0h0b9c7"} for _ in range(32)]
    maker.lines("root/qipu.json", games)


def pictures(maker: Maker) -> None:
    """COCO's captions, and pictures of one colour in PPM under the names of JPEG files."""
    for part, rows in {"train": 16, "val": 2}.items():
        images, annotations = [], []
        for i in range(rows):
            name = f"COCO_{part}2014_{i:012}.jpg"
            images.append({"id": i, "file_name": name, "coco_url": f"http://images.cocodataset.org/{name}"})
            annotations.append({"image_id": i, "caption": "a cat sits on the red mat"})
            file = maker.write(f"root/caption/coco/{part}2014/{name}", "")
            file.write_bytes(b"P6 48 32 255\n" + bytes(maker.random.choices(range(256), k=3)) * 48 * 32)
        captions = json.dumps({"images": images, "annotations": annotations})
        maker.write(f"root/caption/coco/annotations/captions_{part}2014.json", captions)
