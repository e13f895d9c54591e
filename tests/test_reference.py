"""Pages of the documentation say what the declarations say."""

from __future__ import annotations

import pytest

from calibdask.reference import DIRECTORY, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_declarations_say(name):
    written = (DIRECTORY / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "write it again: python -m calibdask.reference"
