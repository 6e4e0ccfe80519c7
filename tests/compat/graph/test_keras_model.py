"""Models keep the habits of Keras 2: what compile freezes, symbolic losses, lists everywhere, files of any name."""

import keras
import numpy as np
import pytest
import torch

import hanmo
from hanmo.compat.bert4keras._model import load_model as load_plain
from hanmo.compat.bert4keras.graph import saving
from hanmo.compat.bert4keras.graph.backend import K
from hanmo.compat.bert4keras.graph.model import Model, Sequential
from hanmo.compat.bert4keras.graph.models import build_transformer_model
from hanmo.errors import CheckpointError, TensorMismatch, Unsupported

X = [np.array([[2, 5, 6, 3, 0], [2, 7, 8, 9, 3]]), np.zeros((2, 5), int)]
Y = np.array([[0], [1]])


def classifier(data, units=2, **options):
    folder = data / "goldens" / "bert"
    bert = build_transformer_model(str(folder / "config.json"), str(folder / "model.ckpt"), with_pool=True, **options)
    return Model(bert.inputs, keras.layers.Dense(units, activation="softmax", name="Probas")(bert.output))


def compiled(model, **options):
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def batches():
    while True:
        yield X, Y


def test_fit_takes_generators_and_the_arguments_of_keras_2(data, capsys):
    model = compiled(classifier(data), sample_weight_mode=None)
    options = {"workers": 1, "max_queue_size": 10, "use_multiprocessing": False}
    history = model.fit_generator(batches(), steps_per_epoch=5, epochs=4, validation_data=(X, Y), **options).history
    assert history["loss"][-1] < history["loss"][0] and history["val_accuracy"][-1] == 1
    assert "5/5 - " in capsys.readouterr().out  # a line for each epoch where the output is no terminal
    loss, accuracy = model.evaluate_generator(iter([(X, Y)]), steps=1, **options)
    assert accuracy == 1 and loss == pytest.approx(model.test_on_batch(X, Y)[0])
    by_name = {"Input-Token": X[0], "Input-Segment": X[1]}
    assert model.test_on_batch(by_name, {"Probas": Y})[0] == pytest.approx(loss)
    assert np.isfinite(model.train_on_batch(by_name, {"Probas": Y})).all()


def test_predict_takes_lists_dicts_and_generators_in_batches(data):
    model = classifier(data)
    right = model.predict(X)
    for same in ([each.tolist() for each in X], tuple(X), {"Input-Token": X[0], "Input-Segment": X[1]}):
        np.testing.assert_allclose(model.predict(same, batch_size=1, verbose=0), right, atol=1e-6)
    np.testing.assert_array_equal(model.predict_on_batch(X), right)
    np.testing.assert_array_equal(model.predict_generator((batch[:1] for batch in batches()), steps=1), right)
    both = Model(model.inputs, [model.output, model.get_layer("Pooler-Dense").output])
    assert [each.shape for each in both.predict(X)] == [(2, 2), (2, 32)]


def test_a_model_trains_what_was_trainable_when_it_was_compiled(data):
    model = classifier(data)
    free = compiled(Model(model.inputs, model.outputs))
    for layer in model.layers[:-1]:
        layer.trainable = False
    frozen = compiled(Model(model.inputs, model.outputs))
    token, head = model.get_layer("Embedding-Token"), model.layers[-1]
    before = token.get_weights()[0], head.get_weights()[0]
    frozen.train_on_batch(X, Y)
    np.testing.assert_array_equal(token.get_weights()[0], before[0])
    assert not np.allclose(head.get_weights()[0], before[1])
    free.train_on_batch(X, Y)
    assert not np.allclose(token.get_weights()[0], before[0])
    after = token.get_weights()[0]
    frozen.train_on_batch(X, Y)
    np.testing.assert_array_equal(token.get_weights()[0], after)
    assert [len(each.trainable_weights) for each in (frozen, model)] == [2, 2]


def test_losses_and_metrics_of_symbolic_tensors_are_computed_in_every_step(data):
    folder = data / "goldens" / "bert"
    model = build_transformer_model(str(folder / "config.json"), str(folder / "model.ckpt"), application="lm")
    mask = K.cast(K.not_equal(model.input[0], 0), "float32")[:, 1:]
    entropy = K.sparse_categorical_crossentropy(model.input[0][:, 1:], model.output[:, :-1])
    entropy = K.sum(entropy * mask) / K.sum(mask)
    model.add_loss(entropy)
    model.add_metric(2 * entropy, name="double")
    model.compile(keras.optimizers.Adam(1e-3))
    predicted = model.predict(X)[:, :-1]
    chosen = np.take_along_axis(predicted, X[0][:, 1:, None], -1)[..., 0]
    real = X[0][:, 1:] != 0
    right = -np.log(chosen)[real].mean()
    loss, double = model.test_on_batch(X, None)
    assert loss == pytest.approx(right, rel=1e-5) and double == pytest.approx(2 * right, rel=1e-5)
    history = model.fit(((X, None) for _ in range(9)), steps_per_epoch=3, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0] < right * 1.01


def test_a_summary_lists_the_layers_of_the_network(data):
    lines = []
    classifier(data).summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "Transformer-2-FeedForward-Norm" in text and "(None, None, 32)" in text and "Probas" in text
    *rows, total, trainable, rest = [int(line.split()[-1].replace(",", "")) for line in lines]
    assert sum(rows) == total == trainable > 30000 and rest == 0


# --- files


@pytest.mark.parametrize("name", ["best_model.weights", "best.h5", "weights"])
def test_weights_are_kept_in_a_file_of_any_name_for_a_model_built_again(data, tmp_path, name):
    model = compiled(classifier(data))
    model.train_on_batch(X, Y)
    model.save_weights(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = classifier(data)
    assert not np.array_equal(again.predict(X), model.predict(X))
    again.load_weights(str(tmp_path / name))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_what_does_not_fit_is_refused_and_changes_nothing(data, tmp_path):
    classifier(data).save_weights(tmp_path / "two")
    three = classifier(data, units=3)
    before = three.predict(X)
    with pytest.raises(TensorMismatch, match=r"Probas/kernel is \[32, 2\] in .*two; this model has \[32, 3\]"):
        three.load_weights(tmp_path / "two")
    np.testing.assert_array_equal(three.predict(X), before)
    three.load_weights(tmp_path / "two", by_name=True, skip_mismatch=True)
    with pytest.raises(TensorMismatch, match=r"has no dense_?\d*/kernel; was it saved from another model"):
        two = classifier(data)
        Model(two.inputs, keras.layers.Dense(2)(two.output)).load_weights(tmp_path / "two")
    with pytest.raises(CheckpointError, match="two exists; give the path of a new file"):
        three.save_weights(tmp_path / "two", overwrite=False)
    with pytest.raises(CheckpointError, match="two holds weights alone; build the model"):
        saving.load_model(tmp_path / "two")


def test_a_saved_model_loads_with_its_layers_and_can_be_trained(data, tmp_path):
    model = classifier(data)
    normed = model.get_layer("Transformer-0-FeedForward-Norm").output
    model = Model(model.inputs, [model.output, normed])
    model.save(tmp_path / "model.h5")
    again = saving.load_model(tmp_path / "model.h5")
    for found, right in zip(again.predict(X), model.predict(X), strict=True):
        np.testing.assert_array_equal(found, right)
    tokens = again.get_layer("Embedding-Token")
    found = Model(again.inputs, tokens.output).predict(X)
    np.testing.assert_array_equal(found, tokens.embeddings.numpy()[X[0]])
    with pytest.raises(Unsupported, match=r"is a model of Keras layers; .* --keras"):
        load_plain(tmp_path / "model.h5")


def test_code_in_a_file_is_refused_until_it_is_asked_for(data, tmp_path):
    bert = classifier(data)
    model = Model(bert.inputs, keras.layers.Lambda(lambda x: x * 2)(bert.output))
    model.save(tmp_path / "model")
    with pytest.raises(Unsupported, match=r"cannot be loaded as a model: .*build the model and use load_weights"):
        saving.load_model(tmp_path / "model")
    trusted = saving.load_model(tmp_path / "model", safe_mode=False)
    np.testing.assert_array_equal(trusted.predict(X), model.predict(X))


def test_hanmo_opens_what_a_trained_script_leaves(data, tmp_path):
    folder = data / "goldens" / "bert"
    bert = build_transformer_model(
        str(folder / "config.json"), str(folder / "model.ckpt"), with_mlm=True, return_keras_model=False
    )
    model = compiled(bert.model)
    model.train_on_batch(X, X[0])
    model.save(tmp_path / "model")
    model.save_weights(tmp_path / "best.weights")
    bert.save_weights_as_checkpoint(str(tmp_path / "new.ckpt"))
    right = model.predict(X)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text("utf-8"), "utf-8")
    for name in ("model", "best.weights", "new.ckpt"):
        loaded = hanmo.load(tmp_path / name)
        tensors = {"segments": torch.tensor(X[1]), "mask": torch.tensor(X[0] != 0)}
        with torch.inference_mode():
            found = loaded.model(torch.tensor(X[0]), **tensors).logits.softmax(-1).numpy()
        bound = 1e-6 if name != "new.ckpt" else 2e-3  # the original's gelu by tanh is not bert4keras's
        np.testing.assert_allclose(found[X[0] != 0], right[X[0] != 0], atol=bound)


def test_a_model_with_layers_on_top_opens_in_hanmo_without_them(data, tmp_path):
    model = classifier(data)
    model.save_weights(tmp_path / "best.weights")
    loaded = hanmo.load(tmp_path / "best.weights")
    assert sorted(loaded.report.dropped.values()) == ["the head of a task"] * 2
    encoded = Model(model.inputs, model.get_layer("Pooler-Dense").output).predict(X)
    with torch.inference_mode():
        found = loaded.model(torch.tensor(X[0]), mask=torch.tensor(X[0] != 0)).pooled.numpy()
    np.testing.assert_allclose(np.tanh(encoded), found, atol=1e-6)


def test_two_networks_keep_their_weights_apart(data, tmp_path):
    first, second = classifier(data), plain_bert(data)
    joined = keras.layers.Add()([first.output, keras.layers.Dense(2)(second(first.inputs))])
    model = Model(first.inputs, joined)
    model.save_weights(tmp_path / "two")
    right = model.predict(X)
    for variable in model.weights:
        variable.assign(variable.value * 0)
    model.load_weights(tmp_path / "two")
    np.testing.assert_array_equal(model.predict(X), right)


def plain_bert(data):
    config = str(data / "goldens" / "bert" / "config.json")
    return build_transformer_model(config, with_pool=True, num_hidden_layers=1)


def test_a_callback_keeps_checkpoints_under_any_name(data, tmp_path):
    model = compiled(classifier(data))
    keep = saving.ModelCheckpoint(tmp_path / "best.weights", save_weights_only=True, period=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[keep, log])
    classifier(data).load_weights(tmp_path / "best.weights")
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def test_a_sequential_model_has_the_same_habits(tmp_path):
    model = Sequential([keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(np.eye(3), np.array([0, 1, 0]), epochs=3, verbose=0, workers=2).history
    assert history["loss"][-1] < history["loss"][0]
    model.save_weights(tmp_path / "best.weights")
    weights = model.get_weights()
    model.train_on_batch(np.eye(3), np.array([0, 1, 0]))
    model.load_weights(tmp_path / "best.weights")
    for found, right in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(found, right)
