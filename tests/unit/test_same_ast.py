"""tests/same_ast.py: what changes a syntax tree, and what only its layout."""

from __future__ import annotations

import pytest

from tests.same_ast import differences, normal

FILE = '''"""A file
of one function."""

def add(first, second):
    """Both."""
    return first + second  # at once
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A file\nof", "A\n   file of"),
        ("first + second  # at once", "(\n        first\n        + second\n    )"),
        ('"""Both."""', '"""\n    Both.\n    """'),
        ("return first + second", "return first+second"),
    ],
)
def test_layout_alone_is_the_same(old: str, new: str) -> None:
    changed = FILE.replace(old, new)
    assert changed != FILE and normal(changed) == normal(FILE)
    assert differences({"a.py": FILE}, {"a.py": changed}) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("of one", "of a"),
        ("first + second ", "second + first "),
        ("second):", "second=0):"),
        ('    """Both."""\n', ""),
        ("return first", "return - first"),
    ],
)
def test_anything_else_is_named(old: str, new: str) -> None:
    assert old in FILE
    assert differences({"a.py": FILE}, {"a.py": FILE.replace(old, new)}) == ["a.py: another syntax tree"]


def test_strings_keep_their_white_space() -> None:
    assert normal("x = 'a  b'") != normal("x = 'a b'")
    assert normal("x = 'a ' 'b'") == normal("x = 'a b'")


def test_a_file_of_one_alone_is_named() -> None:
    assert differences({"a.py": ""}, {"b.py": ""}) == ["a.py: in one of the two only", "b.py: in one of the two only"]
