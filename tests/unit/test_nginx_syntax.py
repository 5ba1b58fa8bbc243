"""What is written is what NGINX reads: the writing side against crossplane, NGINX's grammar in Python."""

import os

import crossplane
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyttle_ops.nginx.errors import UnsafeValue
from lyttle_ops.nginx.syntax import Directive, build, literal, meaning, number, quote

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("\t\r\n\"'\\{};$#() "))


def tokens(text: str) -> list[tuple[str, bool]]:
    descriptor = os.memfd_create("test")
    try:
        os.write(descriptor, text.encode())
        return [(token, quoted) for token, _, quoted in crossplane.lex(f"/proc/self/fd/{descriptor}")]
    finally:
        os.close(descriptor)


@given(TEXT)
def test_any_text_stays_one_argument_with_its_own_meaning(text: str) -> None:
    (name, _), (argument, quoted), (end, _) = tokens(f"name {quote(text)};\n")
    assert (name, end) == ("name", ";")
    assert meaning(argument) == text
    assert quoted or argument == text


@pytest.mark.parametrize("text", ["a\x00b", "\x1b[31m", "\x7f", "\ud800"])
def test_control_characters_and_broken_unicode_are_refused(text: str) -> None:
    with pytest.raises(UnsafeValue):
        quote(text)


def test_a_dollar_sign_is_refused_where_nothing_may_be_a_variable() -> None:
    with pytest.raises(UnsafeValue):
        literal("$host")


@pytest.mark.parametrize("value", [-1, True, 1.5, "1", None])
def test_only_whole_numbers_are_numbers(value: object) -> None:
    with pytest.raises(UnsafeValue):
        number(value)


@pytest.mark.parametrize("name", ["a b", "a;", "", "A", "a{", "#a"])
def test_a_directive_has_the_name_of_a_directive(name: str) -> None:
    with pytest.raises(UnsafeValue):
        build([Directive.of(name)])


def test_the_parentheses_of_an_if_stand_inside_its_quoted_words() -> None:
    condition = Directive.of("if", "$uri", "~", "a b)", block=[Directive.of("return", "404")])
    assert build([condition]) == 'if "($uri" ~ "a b))" {\n    return 404;\n}\n'
