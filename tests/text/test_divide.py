"""The rule about what is held out, on items of each kind, beside one written with sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomed.errors import UserError
from nanomed.systems.overlap import finder
from nanomed.text import corpus, heldout
from nanomed.text.conversations import Conversation
from nanomed.text.divide import divide, draw
from nanomed.text.heldout import Excluded, HeldOut, Items
from nanomed.text.pairs import Pairs
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import make_texts, write_jsonl

documents, rows = Items.of_texts, Items.of_rows


def excluding(items):
    return Excluded(items.held_out(), list(items.texts))


def first(n):
    """A draw: the first n of what may be drawn."""
    return lambda allowed: np.arange(allowed.sum()) < n


TEXTS = st.lists(st.sampled_from("abcdefgh"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS, st.integers(0, 3))
def test_against_sets(data, excluded, validation, earlier, n):
    texts = documents(data)
    by_hand = set(excluded) | set(validation)
    d = divide(texts, excluding(documents(excluded)), {"a": documents(validation)}, None)
    assert [t for t, on in zip(data, d.training, strict=True) if on] == [t for t in data if t not in by_hand]
    assert (d.removed, d.overlap) == (
        sum(t in by_hand for t in data),
        sum(t in set(excluded) for t in validation),
    )
    assert d.held.documents == {heldout.digest(t) for t in by_hand} and not d.validation.any()

    before = documents(earlier).held_out()
    d = divide(texts, excluding(documents(excluded)), {}, first(n), earlier=before)
    left = [t for t in data if t not in excluded]
    drawn, kept = left[:n], [t for t in left[n:] if t not in left[:n]]
    assert [t for t, on in zip(data, d.validation, strict=True) if on] == drawn
    assert [t for t, on in zip(data, d.training, strict=True) if on] == kept
    assert d.removed == len(data) - len(drawn) - len(kept) and d.earlier == sum(t in earlier for t in kept)


def test_exact_duplicates_leave_the_training_side_only(tmp_path, bpe_dir):
    tokenizer = load_tokenizer(bpe_dir)

    def items(name, *texts):
        read = corpus.encode_corpus(str(write_jsonl(tmp_path / name, texts)), tokenizer).all()
        return corpus.items([read], tokenizer)

    training, v = items("t.jsonl", "a", "b", "c", "b", "B", "d "), items("v.jsonl", "b", "d")
    d = divide(training, Excluded(), {"v": v, "w": items("w.jsonl", "c")}, None)
    assert (np.flatnonzero(d.training).tolist(), d.removed) == ([0, 4, 5], 3)
    assert [training.texts[k] for k in (0, 4, 5)] == ["a", "B", "d "]


def test_rows_go_with_their_question_their_group_and_what_they_quote():
    held = rows([Conversation.of("q", "", "one", "g"), Conversation.of("r", "quoted", "said")]).held_out()
    asked = [
        Conversation.of("q", "", "other"),
        Conversation.of("q", "but of", "other"),
        Conversation.of("s", "", "one", "g"),
        Conversation.of("s", "quoted", "two rows may quote the same"),
    ]
    assert held.has(rows(asked)).tolist() == [True, False, True, False]
    assert held.has(documents(["said", "quoted", "g", "q"])).tolist() == [True, True, False, False]
    assert documents(["quoted"]).held_out().has(rows(asked)).tolist() == [False, False, False, True]
    assert HeldOut().has(rows([])).tolist() == held.has(documents([])).tolist() == []


def test_what_nearly_repeats_a_held_text_is_held_out_too_with_the_rows_of_its_group(capsys):
    near, far, other = make_texts(3, 5, 40, 60)
    items = rows(
        [
            Conversation.of("1", "", near + " so", "g"),
            Conversation.of("2", "", far, "g"),
            Conversation.of("3", "", other),
            Conversation.of("4", "", other + " so"),
        ]
    )
    sides = {"v": rows([Conversation.of("5", "", near)])}
    d = divide(items, Excluded(), sides, None, finder(0.7, 0))
    assert d.training.tolist() == [False, False, True, False]
    assert d.facts() == {"duplicates_removed": 0, "near_duplicates_removed": 3}
    d.say("rows", "m")
    assert "1 training rows of the same groups" in capsys.readouterr().out
    assert heldout.digest("g") in d.held.groups and heldout.digest(far) not in d.held.quoted
    again = documents([near + "!", other + " yes", "new"])
    assert d.replayed(again, documents(["new"]).held_out(), finder(0.7, 0)).tolist() == [False, True, False]


def test_nothing_that_is_handed_in_is_changed(tmp_path):
    excluded, before = excluding(documents(["a"])), documents(["z"]).held_out()
    d = divide(documents(["a", "b", "c"]), excluded, {}, first(1), earlier=before)
    heldout.write(d.held, tmp_path, before)
    assert excluded.held == documents(["a"]).held_out() and before == documents(["z"]).held_out()
    assert d.held == documents(["a", "b"]).held_out() == heldout.earlier(tmp_path, own=True)
    assert heldout.earlier(tmp_path) == d.held | before


def test_a_draw_is_by_item_seeded_and_complete():
    def of(*seed):
        return draw(np.arange(40), 0.1, *seed, "x.jsonl")

    assert of(3).sum() == 4 and (of(3) == of(3)).all() and (of(3) != of(4)).any()
    assert not draw(np.arange(40), 0.0, 3, "x").any() and not len(draw(np.arange(0), 0.5, 3, "x"))
    with pytest.raises(UserError, match=r"x.jsonl: 1 .* cannot be split"):
        draw(np.arange(1), 0.5, 0, "x.jsonl")


def test_groups_stay_on_one_side():
    class Settings:
        val_fraction, seed, data = 0.2, 0, ["x.jsonl"]

    items = [Conversation.of(f"q{i}", "", "a", group=f"g{i % 10}") for i in range(100)]
    drawn = Pairs(Settings, None, Excluded(), items).draw(np.ones(100, bool))
    groups = np.array([item.group for item in items])
    assert drawn.sum() == 20 and not {*groups[drawn]} & {*groups[~drawn]}
    with pytest.raises(UserError, match="cannot be split"):
        Pairs(Settings, None, Excluded(), items).draw(np.arange(100) < 1)
