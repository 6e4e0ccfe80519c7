"""The helpers of bert4keras.snippets; snippets.json holds what bert4keras 0.11.5's own returned."""

import importlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from hanmo.compat.bert4keras import snippets
from hanmo.errors import DataError, TensorMismatch, Unsupported

DATA = json.loads((Path(__file__).parent.parent / "data" / "goldens" / "snippets.json").read_text(encoding="utf-8"))
RECORDED = {
    "text_segmentate": 60,
    "longest_common_substring": 40,
    "longest_common_subsequence": 40,
    "orthogonally_resize": 5,
}
# What 0.11.5 and 0.6.0 define or, in K, keras and tf, pass on.
NAMES = """AutoRegressiveDecoder DataGenerator Progress ViterbiDecoder WebServing basestring convert_to_str
convert_to_unicode delete_arguments insert_arguments is_one_of is_py2 is_string longest_common_subsequence
longest_common_substring lowercase_and_normalize open orthogonally_resize parallel_apply parallel_apply_generator
sequence_padding softmax strQ2B string_matching text_segmentate to_array truncate_sequences uniout""".split()


def plain(value):
    """Turn tuples into lists, as JSON did."""
    return json.loads(json.dumps(value.tolist() if isinstance(value, np.ndarray) else value))


@pytest.mark.parametrize(("name", "count"), RECORDED.items())
def test_a_function_returns_what_bert4keras_s_did(name, count):
    cases = DATA[name]
    assert len(cases) == count
    for case in cases:
        args = [np.array(case["args"][0]), *case["args"][1:]] if name == "orthogonally_resize" else case["args"]
        result = plain(getattr(snippets, name)(*args))
        assert result == (pytest.approx(np.array(case["out"])) if name == "orthogonally_resize" else case["out"]), case


def test_truncate_sequences_shortens_the_lists_themselves_and_leaves_empty_ones_out():
    assert len(DATA["truncate_sequences"]) == 40
    for case in DATA["truncate_sequences"]:
        maxlen, indices, *sequences = case["args"]
        assert snippets.truncate_sequences(maxlen, indices, *sequences) == case["out"]
        assert sequences == case["left"]
    assert snippets.truncate_sequences(3, [0, -1], [], [1, 2], [3, 4]) == [[2], [3, 4]]
    with pytest.raises(DataError, match="maxlen is -1; expected 0 or more"):
        snippets.truncate_sequences(-1, -1, [1])


def test_sequence_padding_returns_what_bert4keras_s_did():
    assert len(DATA["sequence_padding"]) == 40
    for case in DATA["sequence_padding"]:
        result = snippets.sequence_padding(*case["args"], **case["kwargs"])
        assert (result.tolist(), str(result.dtype)) == (case["out"], case["dtype"]), case


def test_sequence_padding_pads_several_dimensions_and_knows_the_old_name_of_value():
    inputs = [np.ones((1, 2)), np.ones((2, 1))]
    assert snippets.sequence_padding(inputs, seq_dims=2).tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]]]
    assert snippets.sequence_padding(inputs, length=(1, 3), seq_dims=2).tolist() == [[[1, 1, 0]], [[1, 0, 0]]]
    assert snippets.sequence_padding([[1], [1, 2]], padding=-1).tolist() == [[1, -1], [1, 2]]
    with pytest.raises(DataError, match="mode is 'left'; expected 'post' or 'pre'"):
        snippets.sequence_padding([[1]], mode="left")
    with pytest.raises(DataError, match="length is 3, seq_dims 2; expected one length for each dimension"):
        snippets.sequence_padding(inputs, length=3, seq_dims=2)


def test_the_viterbi_decoder_finds_the_recorded_paths_and_leaves_its_argument_alone():
    assert len(DATA["ViterbiDecoder"]) == 40
    for case in DATA["ViterbiDecoder"]:
        trans, starts, ends = case["init"]
        decoder, nodes = snippets.ViterbiDecoder(np.array(trans), starts, ends), np.array(case["nodes"])
        assert decoder.decode(nodes).tolist() == case["out"], case
        assert nodes.tolist() == case["nodes"]
    assert snippets.ViterbiDecoder(np.zeros((2, 2)), starts=[0]).decode(np.array([[0, 9], [0, 1]])).tolist() == [0, 1]


def test_orthogonally_resize_names_the_shapes_that_do_not_go_together():
    with pytest.raises(TensorMismatch, match=r"the array has shape \(2, 4\), the new shape is \(2,\)"):
        snippets.orthogonally_resize(np.ones((2, 4)), (2,))
    with pytest.raises(TensorMismatch, match="size 3 of axis 1 is no multiple of window 2"):
        snippets.orthogonally_resize(np.ones((2, 3)), (2, 6))


class Batches(snippets.DataGenerator):
    def __iter__(self, random=False):
        batch = []
        for is_end, item in self.sample(random):
            batch.append(item)
            if len(batch) == self.batch_size or is_end:
                yield [batch], "labels"
                batch = []


def test_data_generators_give_and_mix_their_items_as_recorded():
    assert len(DATA["DataGenerator"]) == 30
    for case in DATA["DataGenerator"]:
        data = list(range(case["n"])) if case["sized"] else iter(range(case["n"]))
        generator = Batches(data, case["batch_size"], case["buffer_size"])
        np.random.seed(case["seed"])
        assert plain(list(generator.sample(case["random"]))) == case["out"], case
        assert generator.steps == case["steps"]


def test_a_data_generator_feeds_training_and_prediction_without_end():
    generator = Batches(list(range(5)), batch_size=2)
    assert len(generator) == 3 and list(generator) == [([[0, 1]], "labels"), ([[2, 3]], "labels"), ([[4]], "labels")]
    tests, fits = generator.fortest(), generator.forfit()
    assert [next(tests) for _ in range(4)] == [[[0, 1]], [[2, 3]], [[4]], [[0, 1]]]
    for _ in range(2):
        assert sorted(item for _ in range(3) for item in next(fits)[0][0]) == [0, 1, 2, 3, 4]


def test_a_data_generator_says_what_it_cannot_do():
    with pytest.raises(DataError, match="the data have no length"):
        len(Batches(iter([1])))
    with pytest.raises(DataError, match="there are no data"):
        list(Batches([]))
    with pytest.raises(Unsupported, match="DataGenerator has no __iter__; write one that takes random"):
        iter(snippets.DataGenerator([1]))


@pytest.mark.parametrize("dummy", [False, True])
def test_parallel_apply_keeps_the_order_of_the_items(dummy):
    offset, collected = 10, []
    results = snippets.parallel_apply(lambda x: x * x + offset, range(50), workers=2, max_queue_size=4, dummy=dummy)
    assert results == [x * x + 10 for x in range(50)]
    snippets.parallel_apply(str, iter(range(9)), 2, 3, callback=collected.append, dummy=dummy, unordered=False)
    assert collected == [str(x) for x in range(9)]


def test_parallel_apply_works_in_other_processes_unless_told_otherwise():
    shared = []
    snippets.parallel_apply(shared.append, range(3), 1, 1, dummy=True)
    assert sorted(shared) == [0, 1, 2]


def test_parallel_apply_reads_no_further_ahead_than_it_may():
    taken, barrier = [], threading.Event()

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = snippets.parallel_apply_generator(lambda x: x, items(), workers=1, max_queue_size=2, dummy=True)
    assert next(results) == (0, 0)
    barrier.wait(0.2)
    assert len(taken) <= 5
    results.close()


@pytest.mark.parametrize("dummy", [False, True])
def test_an_error_of_a_worker_or_of_the_items_is_raised_here(dummy):
    def items():
        yield 1
        raise DataError("the items end badly")

    with pytest.raises(ZeroDivisionError):
        snippets.parallel_apply(lambda x: 1 // x, [1, 0, 2], 2, 2, dummy=dummy)
    with pytest.raises(DataError, match="the items end badly"):
        snippets.parallel_apply(str, items(), 2, 2, dummy=dummy)


@pytest.mark.parametrize("dummy", [False, True])
def test_workers_are_seeded_as_told(dummy):
    def draw(_):
        return np.random.randint(10**9)

    state = np.random.get_state()
    seeded = [snippets.parallel_apply(draw, range(3), 1, 1, dummy=dummy, random_seeds=[7]) for _ in range(2)]
    assert seeded[0] == seeded[1]
    np.random.set_state(state)
    unseeded = snippets.parallel_apply(draw, range(2), 1, 1, dummy=dummy, random_seeds=False)
    np.random.set_state(state)
    assert unseeded == [draw(None), draw(None)]
    assert len({draw_set[0] for draw_set in (snippets.parallel_apply(draw, [0], 1, 1) for _ in range(3))}) == 3


def test_open_reads_lines_by_number_and_keeps_its_index(tmp_path):
    path, index = tmp_path / "text.txt", tmp_path / "index.json"
    path.write_bytes("一\n二\r\n\n四\u2028五".encode())
    with snippets.open(str(path), encoding="utf-8", indexable=str(index)) as file:
        assert len(file) == 4 and [file[line] for line in (3, 0, 1, 2)] == ["四\u2028五", "一\n", "二\n", "\n"]
    assert json.loads(index.read_text()) == [0, 4, 9, 10]
    with snippets.open(str(path), encoding="utf-8", indexable=str(index)) as file:
        assert file[-1] == "四\u2028五"
    index.write_text("[4]")
    with snippets.open(str(path), encoding="utf-8", indexable=str(index)) as file:
        assert len(file) == 1 and file[0] == "二\n"
    with snippets.open(str(path), encoding="utf-8", indexable=True) as file:
        assert file[1] == "二\n" and len(file) == 4


def test_open_reads_and_writes_as_the_builtin_does(tmp_path):
    path = str(tmp_path / "text.txt")
    with snippets.open(path, "w", encoding="utf-8") as file:
        file.write("一\n二\n")
        file.write("三".encode())
        file.flush()
    with snippets.open(path, encoding="utf-8") as file:
        assert list(file) == ["一\n", "二\n", "三"]
        assert file.seek(0) == 0 and (next(file), file.next(), file.read()) == ("一\n", "二\n", "三")
        file.seek()
        assert (file.readline(), file.readlines()) == ("一\n", ["二\n", "三"])
        with pytest.raises(TypeError, match=r"text\.txt was opened without an index; open it with indexable=True"):
            len(file)
        with pytest.raises(DataError, match=r"text\.txt was opened without an index; open it with indexable=True"):
            file[0]
    with snippets.open(path, "rb") as file:
        assert file.readline() == "一\n".encode() and file.tell() == 4


def test_strings_are_converted_as_before():
    assert snippets.strQ2B("ＡＢ　，１！天") == "AB ,1!天"
    assert snippets.lowercase_and_normalize("ÉTÉ Ä") == "ete a"
    assert snippets.string_matching("天气好", ["x", "气."]) and not snippets.string_matching("天气", ["好"])
    assert snippets.convert_to_unicode("天".encode()) == snippets.convert_to_str("天") == "天"
    assert snippets.convert_to_unicode(b"\xff\xe5") == ""
    assert snippets.is_string("a") and not snippets.is_string(b"a")


def test_small_helpers_do_what_they_did():
    assert snippets.to_array([1, 2]).tolist() == [1, 2]
    assert [array.tolist() for array in snippets.to_array([1], [[2]])] == [[1], [[2]]]
    one = [1]
    assert snippets.is_one_of(one, [[1], one]) and not snippets.is_one_of([1], [one])
    assert snippets.softmax(np.zeros((1, 4))).tolist() == [[0.25] * 4]
    assert snippets.uniout is None and snippets.is_py2 is False and snippets.basestring is str


def test_arguments_are_inserted_and_deleted():
    class Layer:
        @snippets.insert_arguments(num_heads=3)
        @snippets.delete_arguments("bias")
        def __init__(self, hidden_size, **rest):
            self.hidden_size, self.rest = hidden_size, rest

    assert (Layer(5).num_heads, Layer(5, num_heads=7).num_heads, Layer(hidden_size=2, x=1).rest) == (3, 7, {"x": 1})
    with pytest.raises(TypeError, match="Layer got an unexpected keyword argument 'bias'"):
        Layer(5, bias=True)


class Rows(snippets.DataGenerator):
    def __iter__(self, random=False):
        for _, row in self.sample(False):
            yield row


def test_a_dataset_is_batches_padded_to_the_longest_by_name():
    rows = [([[1, 2], [0, 0]], [[5]]), ([[3], [1]], [[6]]), ([[4, 5, 6], [1, 1, 1]], [[7]])]
    batches = Rows(rows, batch_size=2).to_dataset(
        types=[("float32", "int32"), ("float32",)],
        shapes=[([None], [4]), ([1],)],
        names=[("Input-Token", "Input-Segment"), ("Probas",)],
        padded_batch=True,
    )
    (x, y), (following, _) = next(batches), next(batches)
    assert x["Input-Token"].tolist() == [[1, 2], [3, 0]] and x["Input-Token"].dtype == np.float32
    assert x["Input-Segment"].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]] and x["Input-Segment"].dtype == np.int32
    assert y["Probas"].tolist() == [[5], [6]]
    assert following["Input-Token"].tolist() == [[4, 5, 6], [1, 2, 0]]  # the data begin again


def test_a_dataset_without_padding_stacks_what_has_one_shape():
    assert next(Rows([[1, 2], [3, 4]]).to_dataset("int32", [2]))[:2].tolist() == [[1, 2], [3, 4]]
    named = next(Rows([([1], [2])], batch_size=1).to_dataset(("int32", "int32"), ([1], [1]), ("a", "b")))
    assert {name: array.tolist() for name, array in named.items()} == {"a": [[1]], "b": [[2]]}
    with pytest.raises(DataError, match=r"the items have the shapes \(2,\), \(1,\); give padded_batch=True"):
        next(Rows([[1, 2], [3]], batch_size=2).to_dataset("int32", [None]))


def test_progress_logs_every_period(caplog):
    with caplog.at_level("INFO"):
        assert list(snippets.Progress("abcd", period=2, desc="read")) == ["a", "b", "c", "d"]
        assert list(snippets.Progress(iter("a"))) == ["a"]
    assert [record.getMessage() for record in caplog.records] == ["read - 2/4 passed", "read - 4/4 passed", "1 passed"]


def test_every_public_name_is_there_and_what_is_not_supported_says_so():
    assert sorted(snippets.__all__) == sorted(NAMES)
    assert all(hasattr(snippets, name) for name in NAMES)
    for name in ("K", "keras", "tf"):
        with pytest.raises(Unsupported, match=rf"bert4keras.snippets.{name}.x is not supported: it is Keras's"):
            getattr(snippets, name).x()
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        snippets.nonsense  # noqa: B018
    assert importlib.import_module("hanmo.compat.bert4keras.snippets") is snippets


def test_the_snippets_do_not_import_torch():
    import subprocess
    import sys

    code = "import hanmo.compat.bert4keras.snippets, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
