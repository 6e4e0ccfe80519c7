"""The calls of bert4keras's examples that mark spans, in lines of our own: each trains to a lower loss."""

import numpy as np
import pytest
from small_examples import FILES, RATE, Batches, WithoutLabels, fit, rows

pytestmark = pytest.mark.usefixtures("as_script")


def chain(multiplier):
    from bert4keras.backend import K
    from bert4keras.layers import ConditionalRandomField
    from bert4keras.models import build_transformer_model
    from bert4keras.optimizers import Adam
    from bert4keras.snippets import ViterbiDecoder
    from keras.layers import Dense
    from keras.models import Model

    class Tagged(Batches):
        labels = staticmethod(lambda ids, segments, label: [each % 3 for each in ids])

    model = build_transformer_model(*FILES)
    layer = ConditionalRandomField(lr_multiplier=multiplier)
    output = layer(Dense(3)(model.get_layer("Transformer-1-FeedForward-Norm").output))
    model = Model(model.input, output)
    model.compile(loss=layer.sparse_loss, optimizer=Adam(RATE), metrics=[layer.sparse_accuracy])
    losses = fit(model, Tagged(rows(), 8))
    ids, segments, _ = rows()[0]
    decoder = ViterbiDecoder(trans=K.eval(layer.trans), starts=[0], ends=[0])
    assert len(decoder.decode(model.predict([[ids], [segments]])[0])) == len(ids)
    return losses


def sequence_labeling_cws_crf(tmp_path):
    return chain(1)


def sequence_labeling_ner_crf(tmp_path):
    return chain(100)


def relation_extraction(tmp_path):
    from bert4keras.backend import K, batch_gather
    from bert4keras.layers import LayerNormalization, Loss
    from bert4keras.models import build_transformer_model
    from bert4keras.optimizers import Adam, extend_with_exponential_moving_average
    from keras.layers import Dense, Input, Lambda, Reshape
    from keras.models import Model

    class Spans(WithoutLabels):
        @staticmethod
        def inputs(ids, segments, label):
            first, second = ([[i == at, i == at + 1] for i in range(len(ids))] for at in (1, 3))
            return ids, segments, first, [1, 2], [[each, each] for each in second]

    class TotalLoss(Loss):
        def compute_loss(self, inputs, mask=None):
            real, total = K.cast(mask[4], K.floatx()), 0
            for wanted, found in ((inputs[0], inputs[2]), (inputs[1], inputs[3])):
                each = K.binary_crossentropy(wanted, found)
                each = K.mean(each, -1) if K.ndim(each) == 3 else K.sum(K.mean(each, 3), 2)
                total = total + K.sum(each * real) / K.sum(real)
            return total

    def ends(inputs):
        states, places = inputs
        return K.concatenate([batch_gather(states, places[:, :1]), batch_gather(states, places[:, 1:])], 2)[:, 0]

    bert = build_transformer_model(*FILES, return_keras_model=False)
    starts, place, objects = Input((None, 2)), Input((2,)), Input((None, 2, 2))
    first = Lambda(lambda x: x**2)(Dense(2, activation="sigmoid")(bert.model.output))
    states = bert.model.layers[-2].get_output_at(-1)
    states = LayerNormalization(conditional=True)([states, Lambda(ends)([states, place])])
    second = Reshape((-1, 2, 2))(Lambda(lambda x: x**4)(Dense(4, activation="sigmoid")(states)))
    objects_of = Model([*bert.model.inputs, place], second)
    found = TotalLoss([2, 3])([starts, objects, first, second, bert.model.output])
    model = Model([*bert.model.inputs, starts, place, objects], found)
    optimizer = extend_with_exponential_moving_average(Adam, name="AdamEMA")(learning_rate=RATE)
    model.compile(optimizer=optimizer)
    losses = fit(model, Spans(rows(), 8))
    own = model.get_weights()
    optimizer.apply_ema_weights()
    assert any(not np.array_equal(a, b) for a, b in zip(own, model.get_weights(), strict=True))
    optimizer.reset_old_weights()
    assert all(np.array_equal(a, b) for a, b in zip(own, model.get_weights(), strict=True))
    ids, segments, _ = rows()[0]
    assert objects_of.predict([[ids], [segments], [[1, 2]]]).shape == (1, len(ids), 2, 2)
    return losses


def relation_extraction_gplinker(tmp_path):
    from bert4keras.backend import K, sparse_multilabel_categorical_crossentropy
    from bert4keras.layers import EfficientGlobalPointer
    from bert4keras.models import build_transformer_model
    from bert4keras.optimizers import Adam, extend_with_exponential_moving_average
    from keras.models import Model

    class Spans(Batches):
        def __iter__(self, random=False):
            for (ids, segments), _ in super().__iter__(random):
                spans = np.array([[[[1, 2]], [[3, 4]]]] * len(ids))
                yield [ids, segments], [spans, spans, spans]

    def loss(y_true, y_pred):
        shape = K.shape(y_pred)
        y_true = y_true[..., 0] * K.cast(shape[2], K.floatx()) + y_true[..., 1]
        y_pred = K.reshape(y_pred, (shape[0], -1, K.prod(shape[2:])))
        return K.mean(K.sum(sparse_multilabel_categorical_crossentropy(y_true, y_pred, True), axis=1))

    base = build_transformer_model(*FILES, return_keras_model=False)
    options = ({}, {"RoPE": False, "tril_mask": False}, {"RoPE": False, "tril_mask": False})
    heads = [EfficientGlobalPointer(heads=2, head_size=8, **each)(base.model.output) for each in options]
    model = Model(base.model.inputs, heads)
    model.compile(loss=loss, optimizer=extend_with_exponential_moving_average(Adam)(RATE))
    losses = fit(model, Spans(rows(), 8))
    ids, segments, _ = rows()[0]
    entities, *_ = model.predict([np.array([ids]), np.array([segments])])
    entities[0][:, [0, -1]] -= np.inf  # predictions may be written to
    return losses


EXAMPLES = [sequence_labeling_cws_crf, sequence_labeling_ner_crf, relation_extraction, relation_extraction_gplinker]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_that_marks_spans_trains(example, tmp_path):
    losses = example(tmp_path)
    assert losses[-1] < 0.98 * losses[0], losses
