"""The measures of the code (tests/measures.py): none is broken, and each catches what it should."""

import measures
import pytest

BROKEN = measures.broken()


@pytest.mark.parametrize("measure", BROKEN)
def test_nothing_breaks_a_measure(measure):
    assert not BROKEN[measure], "\n".join([measure, *BROKEN[measure]])


@pytest.mark.parametrize("room", measures.CORE)
def test_the_core_says_why(room):
    assert measures.comment_rate(room) >= measures.COMMENTS
