"""The calls of bert4keras's examples that classify, in lines of our own: each trains to a lower loss."""

import numpy as np
import pytest
from small_examples import FILES, RATE, Batches, checkpoint, fit, rows

pytestmark = pytest.mark.usefixtures("as_script")


def classifier(units=2, **options):
    """Put a classifier on the first token; return the transformer and the model."""
    from bert4keras.backend import keras
    from bert4keras.models import build_transformer_model
    from keras.layers import Dense, Lambda

    bert = build_transformer_model(*FILES, return_keras_model=False, **options)
    first = Lambda(lambda x: x[:, 0])(bert.model.output)
    output = Dense(units, activation="softmax", kernel_initializer=bert.initializer, name="Probas")(first)
    return bert, keras.models.Model(bert.model.input, output)


def compiled(model, loss="sparse_categorical_crossentropy", metrics=("accuracy",), rate=RATE):
    from bert4keras.optimizers import Adam

    model.compile(loss=loss, optimizer=Adam(rate), metrics=list(metrics))
    return model


def saved(model, tmp_path):
    """Return a callback that saves the weights after each epoch, as every example does, and reads them again."""
    from bert4keras.backend import keras

    class Evaluator(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            before = model.get_weights()
            model.save_weights(str(tmp_path / "best_model.weights"))
            model.load_weights(str(tmp_path / "best_model.weights"))
            assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))

    return Evaluator()


def sentiment_albert(tmp_path):
    from bert4keras.backend import keras, set_gelu
    from bert4keras.models import build_transformer_model
    from bert4keras.optimizers import Adam, extend_with_piecewise_linear_lr
    from keras.layers import Dense, Lambda

    files = checkpoint(tmp_path, {"embedding_size": 8}, model="albert")
    set_gelu("tanh")
    try:
        bert = build_transformer_model(*files, model="albert", return_keras_model=False)
        output = Dense(2, activation="softmax")(Lambda(lambda x: x[:, 0], name="CLS-token")(bert.model.output))
        model = keras.models.Model(bert.model.input, output)
        scheduled = extend_with_piecewise_linear_lr(Adam, name="AdamLR")
        optimizer = scheduled(learning_rate=RATE, lr_schedule={2: 1, 20: 0.1})
        model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])
        return fit(model, Batches(rows(), 8), callbacks=[saved(model, tmp_path)])
    finally:
        set_gelu("erf")


def sentence_similarity_lcqmc(tmp_path):
    from bert4keras.backend import keras
    from bert4keras.models import build_transformer_model
    from keras.layers import Dense, Dropout

    files = checkpoint(tmp_path, {}, with_pool=True)
    bert = build_transformer_model(*files, with_pool=True, return_keras_model=False)
    output = Dense(2, activation="softmax", kernel_initializer=bert.initializer)(Dropout(0.1)(bert.model.output))
    model = compiled(keras.models.Model(bert.model.input, output))
    return fit(model, Batches(rows(), 8), callbacks=[saved(model, tmp_path)])


def iflytek_adversarial_training(tmp_path):
    from bert4keras.backend import K, search_layer

    model = compiled(classifier()[1], metrics=["sparse_categorical_accuracy"])
    model._make_train_function()
    train, table = model.train_function, search_layer(model.outputs[0], "Embedding-Token").embeddings
    gradient = K.zeros_like(table) + K.gradients(model.total_loss, [table])[0]
    places = model._feed_inputs + model._feed_targets + model._feed_sample_weights
    gradient_of = K.function(inputs=places, outputs=[gradient], name="gradient")

    def disturbed(inputs):
        (found,) = gradient_of(inputs)
        step = 0.1 * found / (np.sqrt((found**2).sum()) + 1e-8)
        K.set_value(table, K.eval(table) + step)
        outputs = train(inputs)
        K.set_value(table, K.eval(table) - step)
        return outputs

    model.train_function = disturbed
    return fit(model, Batches(rows(), 8), callbacks=[saved(model, tmp_path)])


def iflytek_gradient_penalty(tmp_path):
    from bert4keras.backend import K, search_layer

    def penalized(y_true, y_pred):
        wanted = K.one_hot(K.cast(K.reshape(y_true, K.shape(y_pred)[:-1]), "int32"), K.shape(y_pred)[-1])
        loss = K.mean(K.categorical_crossentropy(wanted, y_pred))
        table = search_layer(y_pred, "Embedding-Token").embeddings
        return loss + 0.01 * K.sum(K.gradients(loss, [table])[0].values ** 2)

    model = compiled(classifier()[1], penalized, ["sparse_categorical_accuracy"])
    return fit(model, Batches(rows(), 8), epochs=10, callbacks=[saved(model, tmp_path)])


def iflytek_multigpu(tmp_path):
    import tensorflow as tf

    class Singles(Batches):
        def __iter__(self, random=False):
            for _, (ids, segments, label) in self.sample(random):
                yield [ids, segments], [[label]]

    with tf.distribute.MirroredStrategy().scope():
        bert, model = classifier()
        compiled(model, metrics=["sparse_categorical_accuracy"])
        bert.load_weights_from_checkpoint(FILES[1])
    batches = Singles(rows(), 8)
    train, valid = (
        batches.to_dataset(
            types=[("float32", "float32"), ("float32",)],
            shapes=[([None], [None]), ([1],)],
            names=[("Input-Token", "Input-Segment"), ("Probas",)],
            padded_batch=True,
        )
        for _ in range(2)
    )
    steps = {"steps_per_epoch": len(batches), "validation_steps": len(batches), "epochs": 8, "verbose": 0}
    history = model.fit(train, validation_data=valid, callbacks=[saved(model, tmp_path)], **steps).history
    assert set(history) >= {"val_loss", "val_sparse_categorical_accuracy"}
    return history["loss"]


def iflytek_bert_of_theseus(tmp_path):
    from bert4keras.backend import K
    from keras.layers import Dense, Input, Lambda, Layer
    from keras.models import Model

    class Either(Layer):
        def call(self, inputs):
            old, new = inputs
            coin = K.random_binomial(shape=[1], p=0.5)
            return K.in_train_phase(coin * old + (1 - coin) * new, new)

        def compute_output_shape(self, input_shape):
            return input_shape[1]

    (old, _), (new, _) = classifier(prefix="Old-"), classifier(prefix="New-", num_hidden_layers=1)
    hidden = Input(shape=K.int_shape(old.output)[1:])
    head = Model(hidden, Dense(2, activation="softmax")(Lambda(lambda x: x[:, 0])(hidden)))
    teacher, student = (
        compiled(Model(each.inputs, head(each.output)), metrics=["sparse_categorical_accuracy"]) for each in (old, new)
    )
    for layer in old.model.layers:
        layer.trainable = False
    head.trainable = False
    state = Either()([old.apply_embeddings(old.inputs), new.apply_embeddings(old.inputs)])
    passed = state
    for index in range(old.num_hidden_layers):
        passed = old.apply_main_layers(passed, index)
    mixed = compiled(Model(old.inputs, head(Either()([passed, new.apply_main_layers(state, 0)]))))
    batches = Batches(rows(), 8)
    first = fit(teacher, batches, callbacks=[saved(teacher, tmp_path)])
    frozen = old.model.get_weights()
    fit(mixed, batches, callbacks=[saved(mixed, tmp_path)])
    assert all(np.array_equal(a, b) for a, b in zip(frozen, old.model.get_weights(), strict=True))
    fit(student, batches)
    return first


def sentiment_integrated_gradients(tmp_path):
    from bert4keras.backend import K, batch_gather
    from keras.layers import Input, Layer
    from keras.models import Model

    class Gradient(Layer):
        def call(self, inputs):
            vectors, output, label = inputs
            return K.gradients(batch_gather(output, label), [vectors])[0] * vectors

        def compute_output_shape(self, input_shape):
            return input_shape[0]

    _, model = classifier()
    losses = fit(compiled(model), Batches(rows(), 8))
    label, table = Input(shape=(1,)), model.get_layer("Embedding-Token")
    explained = Model([*model.inputs, label], Gradient()([table.output, model.output, label]))
    ids, segments, _ = rows()[0]
    values, found = K.eval(table.embeddings), []
    for share in (0.0, 0.5, 1.0):
        K.set_value(table.embeddings, share * values)
        found.append(explained.predict([[ids], [segments], [[0]]])[0])
    assert found[0].shape == (len(ids), 16)
    assert not found[0].any()  # the vectors are zeros
    assert np.abs(found[2]).max() > 0
    return losses


def sentiment_virtual_adversarial_training(tmp_path):
    from bert4keras.backend import K, keras, search_layer
    from keras.utils import to_categorical

    class OneHot(Batches):
        labels = staticmethod(lambda ids, segments, label: to_categorical(label, 2))

    _, model = classifier()
    smooth = keras.models.Model(model.input, model.output)
    compiled(model, "kld", ["categorical_accuracy"]), compiled(smooth, "kld", ["categorical_accuracy"], rate=1e-4)
    smooth._make_train_function()
    train, table = smooth.train_function, search_layer(smooth.outputs[0], "Embedding-Token").embeddings
    gradient = K.zeros_like(table) + K.gradients(smooth.total_loss, [table])[0]
    places = smooth._feed_inputs + smooth._feed_targets + smooth._feed_sample_weights
    outputs_of, gradient_of = (K.function(inputs=places, outputs=each) for each in (smooth.outputs, [gradient]))

    def disturbed(inputs):
        inputs = inputs[:2] + outputs_of(inputs) + inputs[3:]
        noise = 0.01 * np.random.RandomState(0).randn(*K.int_shape(table))
        K.set_value(table, K.eval(table) + noise)
        (found,) = gradient_of(inputs)
        assert np.isfinite(found).all()
        outputs = train(inputs)
        K.set_value(table, K.eval(table) - noise)
        return outputs

    smooth.train_function = disturbed
    unlabelled = OneHot(rows(), 8).forfit()

    class Smoother(keras.callbacks.Callback):
        def on_batch_end(self, batch, logs=None):
            smooth.train_on_batch(*next(unlabelled))

    return fit(model, OneHot(rows(), 8), callbacks=[Smoother()])


EXAMPLES = [
    sentiment_albert,
    sentence_similarity_lcqmc,
    iflytek_adversarial_training,
    iflytek_gradient_penalty,
    iflytek_multigpu,
    iflytek_bert_of_theseus,
    sentiment_integrated_gradients,
    sentiment_virtual_adversarial_training,
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_that_classifies_trains(example, tmp_path):
    losses = example(tmp_path)
    assert losses[-1] < 0.98 * losses[0], losses
