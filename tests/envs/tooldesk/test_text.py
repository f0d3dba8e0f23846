"""The desk's prompts: short, in plain characters, and without anything to remember."""

from __future__ import annotations

from tooldesk_search import box, drawn

from poad.envs.tooldesk.desk import Row
from poad.envs.tooldesk.text import MOST_NOTES, Notes, clean, listed, prompt, told


def test_notes_merge_the_fields_of_a_record_and_put_the_newest_last():
    notes = Notes()
    assert str(notes) == "nothing"
    notes.add([Row("C3", (("name", "Ada"), ("city", "Ulm"))), Row("O5", (("item", "lamp"),))])
    assert str(notes) == "C3: name Ada, city Ulm; O5: item lamp"
    notes.add([Row("C3", (("city", "Bern"), ("language", "German")))])
    assert str(notes) == "O5: item lamp; C3: name Ada, city Bern, language German"


def test_notes_forget_the_oldest_records():
    notes = Notes()
    for number in range(MOST_NOTES + 3):
        notes.add([Row(f"O{number}", (("price", number),))])
    told = str(notes).split("; ")
    assert len(told) == MOST_NOTES
    assert told[0] == "O3: price 3"


def test_a_prompt_has_a_line_for_each_thing_that_there_is():
    notes = Notes()
    first = prompt("Cancel O1.", "", notes, "")
    assert first == "Goal: Cancel O1.\nFound: nothing\nCall:"
    full = prompt("Cancel O1.", "Tools: answer", notes, "answer R1 gave R1")
    assert full.splitlines()[0] == "Tools: answer"
    assert full.splitlines()[-2:] == ["Last: answer R1 gave R1", "Call:"]


def test_results_repeat_the_call():
    rows = [Row("C1"), Row("C3")]
    assert told("find_customer", ("Ada", "any"), rows, "") == "find_customer Ada any gave C1 and C3"
    error = "4 is not the price of O1."
    assert told("cancel", ("O1", 4, True), (), error) == f"cancel O1 4 true failed. {error}"


def test_foreign_characters_are_replaced_and_long_texts_cut():
    assert clean("Bj\u00f8rn\n\ud800\t\x07") == "Bj?rn????"
    assert clean("a" * 1_000_000, limit=50) == "a" * 46 + " ..."
    assert clean("a" * 50, limit=50) == "a" * 50


def test_tools_are_listed_as_asked():
    toolbox = box(drawn("status"), distractors=0)
    shown = tuple(toolbox.shown.values())
    assert listed(shown, "none") == ""
    assert listed(shown, "names") == "Tools: get_order, answer, decline"
    full = listed(shown, "full").splitlines()
    assert full[0] == "get_order(order_id: order) shows customer, item, status and price."
    assert len(full) == 3
