"""How checks show rows."""


def test_lines_leave_out_the_template(checked):
    made = checked(*((f"Answer in one word: {word}?", "-") for word in "abcdefghijk"))
    assert made.line(made.views[0]) == "a? -> -"
    few = checked(("Answer in one word: a?", "-"), ("Answer in one word: b?", "-"))
    assert few.line(few.views[0]) == "Answer in one word: a? -> -"
