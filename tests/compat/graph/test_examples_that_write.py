"""The calls of bert4keras's examples that write text, in lines of our own: each trains to a lower loss and decodes."""

import numpy as np
import pytest
from small_examples import END, FILES, RATE, Batches, WithoutLabels, Writer, checkpoint, fit, rows

pytestmark = pytest.mark.usefixtures("as_script")
KEPT = [0, *range(2, 30)]  # ids; in the reduced vocabulary they are their indices


class Kept(WithoutLabels):
    """Rows in the ids of the reduced vocabulary."""

    @staticmethod
    def inputs(ids, segments, label):
        return [KEPT.index(each) for each in ids], segments


def with_loss(model, ids, *more):
    """Put the loss of the next token on a model: where the segments are 1 if given, else at all real tokens."""
    from bert4keras.backend import K
    from bert4keras.layers import Loss
    from bert4keras.optimizers import Adam
    from keras.models import Model

    class CrossEntropy(Loss):
        def compute_loss(self, inputs, mask=None):
            counts = inputs[1] if len(inputs) == 3 else K.cast(mask[1], K.floatx())
            loss = K.sparse_categorical_crossentropy(inputs[0][:, 1:], inputs[-1][:, :-1])
            return K.sum(loss * counts[:, 1:]) / K.sum(counts[:, 1:])

    inputs = [ids, *more, model.outputs[0]]
    trained = Model(model.inputs, CrossEntropy(len(inputs) - 1)(inputs))
    trained.compile(optimizer=Adam(RATE))
    return trained


def written(model, random=False):
    """Continue a row by beams or by samples."""
    writer, (ids, segments, _) = Writer(model), rows()[0]
    found = writer.random_sample([ids, segments], 2, 5) if random else [writer.beam_search([ids, segments], topk=2)]
    assert all(1 <= len(each) <= 4 and np.isin(each, range(32)).all() for each in found)


def seq2seq(tmp_path, random=False):
    from bert4keras.models import build_transformer_model

    bert = build_transformer_model(*FILES, application="unilm", keep_tokens=KEPT)
    model = with_loss(bert, *bert.inputs)
    losses = fit(model, Kept(rows(), 8))
    model.save_weights(str(tmp_path / "best_model.weights"))
    written(model, random)
    return losses


def question_answer_generation_by_seq2seq(tmp_path):
    return seq2seq(tmp_path, random=True)


def seq2seq_autotitle_multigpu(tmp_path):
    import tensorflow as tf
    from bert4keras.models import build_transformer_model

    class Singles(Kept):
        def __iter__(self, random=False):
            for _, row in self.sample(random):
                yield self.inputs(*row)

    with tf.distribute.MirroredStrategy().scope():
        bert = build_transformer_model(FILES[0], None, application="unilm", keep_tokens=KEPT, return_keras_model=False)
        model = with_loss(bert.model, *bert.model.inputs)
        bert.load_weights_from_checkpoint(FILES[1])
    names = ("Input-Token", "Input-Segment")
    batches = Singles(rows(), 8)
    data = batches.to_dataset(("float32",) * 2, ([None], [None]), names=names, padded_batch=True)
    losses = model.fit(data, steps_per_epoch=2, epochs=4, verbose=0).history["loss"]
    written(model)
    return losses


def reading_comprehension_by_seq2seq(tmp_path):
    from bert4keras.models import build_transformer_model
    from bert4keras.snippets import AutoRegressiveDecoder, sequence_padding

    class Reader(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.set_rtype("probas")
        def predict(self, inputs, output_ids, step):
            every = [ids for passage in inputs for ids in np.concatenate([passage, output_ids], 1)]
            padded = sequence_padding(every)
            found = model.predict([padded, np.zeros_like(padded)])
            found = np.array([each[len(ids) - 1] for each, ids in zip(found, every, strict=True)])
            return found.reshape(len(inputs), len(output_ids), -1).mean(0)

    bert = build_transformer_model(*FILES, application="unilm")
    model = with_loss(bert, *bert.inputs)
    losses = fit(model, WithoutLabels(rows(), 8))
    answer = Reader(start_id=None, end_id=END, maxlen=3).beam_search([ids for ids, _, _ in rows(3)], 1)
    assert 1 <= len(answer) <= 3
    return losses


def reading_comprehension_by_mlm(tmp_path):
    from bert4keras.backend import K
    from bert4keras.models import build_transformer_model
    from bert4keras.optimizers import Adam
    from keras.layers import Lambda
    from keras.models import Model

    class Answers(Batches):
        labels = staticmethod(lambda ids, segments, label: [4 + label, 0])

    def masked(y_true, y_pred):
        y_true = K.reshape(y_true, [K.shape(y_true)[0], -1])
        counts = K.cast(K.not_equal(y_true, 0), K.floatx())
        return K.sum(K.sparse_categorical_crossentropy(y_true, y_pred) * counts) / K.sum(counts)

    model = build_transformer_model(*FILES, with_mlm=True, keep_tokens=list(range(30)))
    model = Model(model.input, Lambda(lambda x: x[:, 1:3])(model.output))
    model.compile(loss=masked, optimizer=Adam(RATE))
    losses = fit(model, Answers(rows(), 8))
    assert model.predict([[rows()[0][0]], [rows()[0][1]]]).shape == (1, 2, 30)
    return losses


def language_model(tmp_path):
    from bert4keras.models import build_transformer_model

    bert = build_transformer_model(*FILES, application="lm", keep_tokens=KEPT)
    model = with_loss(bert, bert.inputs[0])
    losses = fit(model, Kept(rows(), 8))
    written(model, random=True)
    return losses


def language_model_chinese_chess(tmp_path):
    from bert4keras.models import build_transformer_model

    bert = build_transformer_model(*FILES, application="lm", keep_tokens=KEPT)
    model = with_loss(bert, bert.inputs[0])
    losses = fit(model, Kept(rows(), 8))
    ids = np.array([[0, 5, 6, 7], [0, 5, 6, 8]])
    found = np.take_along_axis(model.predict([ids, np.zeros_like(ids)])[:, :-1], ids[:, 1:, None], axis=2)
    assert np.isfinite(np.log(found + 1e-8)).all()
    return losses


class Conditional(WithoutLabels):
    """Rows with what the text is conditioned on."""

    condition = staticmethod(lambda label: [label])

    @classmethod
    def inputs(cls, ids, segments, label):
        return ids, segments, cls.condition(label)


def conditional_language_model(tmp_path):
    from bert4keras.models import build_transformer_model
    from bert4keras.snippets import AutoRegressiveDecoder
    from keras.layers import Embedding, Input, Reshape

    class Mood(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps(default_rtype="probas")
        def predict(self, inputs, output_ids, states):
            return self.last_token(model).predict([output_ids, np.zeros_like(output_ids), inputs[0]])

    label = Input(shape=(1,))
    vector = Reshape((8,))(Embedding(2, 8)(label))
    options = {"layer_norm_cond": vector, "additional_input_layers": label}
    bert = build_transformer_model(*FILES, application="lm", **options)
    model = with_loss(bert, bert.inputs[0])
    losses = fit(model, Conditional(rows(), 8))
    assert len(Mood(start_id=2, end_id=END, maxlen=4).random_sample([[1]], 3, topp=0.95)) == 3
    return losses


def image_caption(tmp_path):
    from bert4keras.backend import keras
    from bert4keras.models import build_transformer_model
    from keras.layers import Conv2D, GlobalAveragePooling2D

    class Captioned(Conditional):
        condition = staticmethod(lambda label: np.full((6, 6, 3), label, "float32"))

    image = keras.Input((6, 6, 3))
    vector = GlobalAveragePooling2D()(Conv2D(4, 3)(image))
    options = {"layer_norm_cond_hidden_size": 8, "layer_norm_cond_hidden_act": "swish"}
    bert = build_transformer_model(
        *FILES, application="lm", layer_norm_cond=vector, additional_input_layers=image, **options
    )
    model = with_loss(bert, bert.inputs[0])
    losses = fit(model, Captioned(rows(), 8))
    assert model.predict([np.array([[2]]), np.array([[0]]), np.ones((1, 6, 6, 3))]).shape == (1, 1, 32)
    return losses


def seq2seq_autotitle_csl_mt5(tmp_path):
    from bert4keras.models import build_transformer_model
    from bert4keras.snippets import AutoRegressiveDecoder

    class Titled(WithoutLabels):
        inputs = staticmethod(lambda ids, segments, label: (ids, [0, *ids[:4]]))

    class Title(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps(default_rtype="probas")
        def predict(self, inputs, output_ids, states):
            return self.last_token(t5.decoder).predict([inputs[0], output_ids])

    sizes = {"hidden_act": ["gelu", "linear"], "attention_head_size": 8, "vocab_size": 40}
    files = checkpoint(tmp_path, sizes, model="mt5.1.1")
    t5 = build_transformer_model(
        *files, model="mt5.1.1", keep_tokens=list(range(32)), return_keras_model=False, name="T5"
    )
    losses = fit(with_loss(t5.model, t5.model.inputs[1]), Titled(rows(), 8))
    encoded = t5.encoder.predict(np.array([rows()[0][0]]))[0]
    assert 1 <= len(Title(start_id=0, end_id=1, maxlen=4).beam_search([encoded], topk=2)) <= 5  # with the start
    return losses


EXAMPLES = [
    seq2seq,  # of ape210k_math_word_problem, autotitle and autotitle_csl
    question_answer_generation_by_seq2seq,
    seq2seq_autotitle_multigpu,
    reading_comprehension_by_seq2seq,
    reading_comprehension_by_mlm,
    language_model,
    language_model_chinese_chess,
    conditional_language_model,
    image_caption,
    seq2seq_autotitle_csl_mt5,
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_that_writes_trains(example, tmp_path):
    losses = example(tmp_path)
    assert losses[-1] < 0.98 * losses[0], losses
