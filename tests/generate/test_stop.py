import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hanmo.errors import ConfigError
from hanmo.generate.stop import ENDS, LONGEST_RUN, Stopper, StopRules


def cut(text, rules, *, before=""):
    """Cut a complete text: the text that is left, and the reason if a rule was met."""
    stopper = Stopper(rules, before=before)
    return stopper.push(text) + stopper.flush(), stopper.reason


SENTENCE = StopRules(sentence_after=0)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("天气不错。明天", "天气不错。"),
        ("他说：“好。”然后", "他说：“好。”"),
        ("（他说：「好！」）然后", "（他说：「好！」）"),
        ("真的？！……然后", "真的？！……"),
        ("双十一到了!你还", "双十一到了!"),
        ("没有结尾", "没有结尾"),
        ("。", "。"),
        ('他说"好。"她说', '他说"好。"'),
        ('好。"她说', "好。"),  # the quote opens what comes next
        ("他说'好。'她说", "他说'好。'"),
        ("I don't. 'Yes", "I don't."),
        ("It is 3.14 or 2. That", "It is 3.14 or 2. That"),  # "2." may as well be a number in a list
        ("Mail a.b now. Then", "Mail a.b now."),
        ("(Good.) Then", "(Good.)"),
        ("Wait... what", "Wait..."),
        ("好。️然后", "好。️"),
        ("哈" + "！" * 20, "哈" + "！" * LONGEST_RUN),
    ],
)
def test_a_text_ends_with_its_first_sentence_and_what_closes_it(text, left):
    assert cut(text, SENTENCE)[0] == left


def test_the_sentence_may_not_end_before_the_given_character():
    text = "一。二三。四五六。七"
    assert [cut(text, StopRules(sentence_after=after))[0] for after in (0, 2, 3, 5, 6, 9, 10)] == [
        "一。", "一。", "一。二三。", "一。二三。", "一。二三。四五六。", "一。二三。四五六。", text,
    ]  # fmt: skip
    assert cut(text, StopRules(sentence_after=10))[1] is None


def test_quotes_that_the_prompt_opened_are_closed():
    assert cut('好。"她说', SENTENCE, before='他说"') == ('好。"', "sentence")
    assert cut('好。"她说', SENTENCE, before='他说"好"，"') == ('好。"', "sentence")
    assert cut('好。"她说', SENTENCE, before='他说"好"') == ("好。", "sentence")


def test_a_sentence_at_the_very_end_is_the_reason_all_the_same():
    assert cut("好。", SENTENCE) == ("好。", "sentence")
    assert cut("Good.", SENTENCE) == ("Good.", None)  # nothing came after to tell it from "Good.com"


@pytest.mark.parametrize(
    ("text", "most", "left"),
    [
        ("一二三四", 2, "一二"),
        ("一二", 2, "一二"),
        ("一“二”三", 3, "一“二”"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301e\u0301"),
        ("👨‍👩‍👧👍🏽🇨🇳🇩🇪好", 3, "👨‍👩‍👧👍🏽🇨🇳"),
        ("\r\n\r\n", 1, "\r\n"),
    ],
)
def test_characters_are_counted_as_readers_see_them(text, most, left):
    assert cut(text, StopRules(max_chars=most)) == (left, "chars")


def test_fewer_characters_than_the_most_are_no_reason():
    assert cut("一二", StopRules(max_chars=3)) == ("一二", None)


def test_a_text_ends_before_a_stop_string():
    rules = StopRules(strings=("\n\n", "用户："))
    assert cut("好的\n\n用户：再", rules) == ("好的", "string")
    assert cut("好的\n用户：再", rules) == ("好的\n", "string")
    assert cut("好的\n用户", rules) == ("好的\n用户", None)
    assert cut("用户：", rules) == ("", "string")
    assert cut("a\u0301", StopRules(strings=("\u0301",))) == ("a\u0301", None)  # not inside a character
    assert cut("🇨🇳🇩🇪", StopRules(strings=("🇳🇩", "🇩🇪"))) == ("🇨🇳", "string")


def test_only_what_may_begin_a_stop_string_is_held_back():
    stopper = Stopper(StopRules(strings=("ABC",)))
    assert [stopper.push(piece) for piece in ("xA", "B", "D", "AB", "C", "更多")] == ["x", "", "ABD", "", "", ""]
    assert (stopper.reason, stopper.flush()) == ("string", "")


def test_a_sentence_end_is_shown_at_once_and_its_quote_when_it_comes():
    stopper = Stopper(SENTENCE)
    assert [stopper.push(piece) for piece in ("他说“好", "。", "”", "“不")] == ["他说“好", "。", "”", ""]
    assert stopper.reason == "sentence"


def test_the_first_rule_that_is_met_is_the_reason():
    rules = StopRules(sentence_after=3, strings=("停",), max_chars=6)
    assert cut("一二三四。五六七", rules) == ("一二三四。", "sentence")
    assert cut("一二停。五六七", rules) == ("一二", "string")
    assert cut("一二三四五六七。", rules) == ("一二三四五六", "chars")
    assert cut("一二三四五。”", rules) == ("一二三四五。”", "sentence")
    assert cut("一二三四五！！！", rules) == ("一二三四五！", "sentence")  # max_chars holds for marks too


WHOLE = ["好", "a", "b", "1", "。", "！", "…", ".", " ", "“", "”", "」", ")", '"', "'", "\n", "é", "e\u0301", "👍🏽"]
WHOLE += ["👨‍👩‍👧", "🇨🇳", "。️", "\r\n", "!"]
CLOSING = {"”", "」", ")"}
RULES = st.builds(
    StopRules,
    sentence_after=st.none() | st.integers(0, 12),
    strings=st.lists(st.sampled_from(["好a", "。。", "a", "🇨🇳", "\n", "好a好", "'"]), max_size=2).map(tuple),
    max_chars=st.none() | st.integers(1, 15),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(WHOLE), max_size=25), RULES, st.data())
@example(["a", "b", "。", "”", "”", "好"], StopRules(sentence_after=2, max_chars=3), None)
def test_cuts_fall_between_characters_and_never_before_a_closing_quote(characters, rules, data):
    text = "".join(characters)
    left, reason = cut(text, rules)
    assert text.startswith(left)
    assert reason is not None or left == text
    # "\r" and "\n" of two entries, or two entries joined by nothing, never form a new character here.
    borders = {len("".join(characters[:count])) for count in range(len(characters) + 1)}
    assert len(left) in borders
    rest = characters[len([count for count in sorted(borders) if count < len(left)]) :] if left else characters
    if reason in ("sentence", "chars") and rest:
        assert rest[0] not in CLOSING
    if reason == "string":
        assert text[len(left) :].startswith(rules.strings)
    if rules.max_chars is not None:
        shown = characters[: len(characters) - len(rest)]
        while shown and len(shown) > rules.max_chars:
            assert shown.pop() in CLOSING | {'"', "'"}
    if reason == "sentence":
        marks = ENDS | {".", "。️"}
        assert any(mark in marks for mark in characters[: len(characters) - len(rest)])
    if data is not None:
        _check_pieces(text, rules, left, reason, data)


def _check_pieces(text, rules, left, reason, data):
    """However the text is broken into pieces, even inside characters, what is shown is the same."""
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    stopper = Stopper(rules)
    broken = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    shown = "".join([*(stopper.push(piece) for piece in broken), stopper.flush()])
    assert (shown, stopper.reason) == (left, reason)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sentence_after": -1}, "sentence_after is -1; expected a whole number of 0 or more"),
        ({"max_chars": 0}, "max_chars is 0; expected a whole number of 1 or more"),
        ({"strings": ("", "a")}, "an empty string would stop every text"),
        ({"strings": "ab"}, r"strings is the text 'ab'; expected a tuple of texts, \('ab',\)"),
    ],
)
def test_rules_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        StopRules(**setting)
