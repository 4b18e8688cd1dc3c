"""SQL stores codes and no sentences, and each code has its sentence."""

from __future__ import annotations

import re

import pytest

from engine.sentences import SENTENCES
from store import sql

LITERAL = re.compile(r"'((?:[^'\n]|'')*)'")
CODE = re.compile(r"""'(?:text_code|error_code|code)',\s*(CASE\b.*?\bEND\b|'\w+')|\berror = ('\w+')|"code": ("\w+")""", re.S)
PHRASE = re.compile(r"[A-Za-z]+ [a-z]+ [a-z]+")  # three words
EXCEPTION = re.compile(r"RAISE EXCEPTION '[^']*'")  # for the log; the code recognises it by its ERRCODE


def body(name: str) -> str:
    """Return the text of a function's file without comments and messages of exceptions."""
    return EXCEPTION.sub("", re.sub(r"--.*", "", sql.text(name)))


def codes() -> set[str]:
    """Return all codes that SQL can store."""
    found: set[str] = set()
    for name in sql.names():
        for match in CODE.finditer(body(name)):
            text = next(group for group in match.groups() if group)
            if text.startswith("CASE"):
                found.update(re.findall(r"(?:THEN|ELSE) '(\w+)'", text))
            else:
                found.add(text.strip("'\""))
    return found


def test_each_code_has_a_sentence_and_each_sentence_a_code():
    assert codes() == SENTENCES.keys()


@pytest.mark.parametrize("name", sql.names())
def test_sql_holds_no_sentences(name: str):
    literals = [match.group(1) for match in LITERAL.finditer(body(name))]
    assert [text for text in literals if PHRASE.search(text) and "{" not in text] == []
