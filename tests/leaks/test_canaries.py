"""The finder finds: whatever it overlooked, the whole harness would."""

from __future__ import annotations

import base64
import html
import json
import textwrap
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import pytest

from tests.leaks.canaries import ENCODINGS, STEP, WINDOW, Canaries


def _basic(client: str, text: str) -> str:
    return base64.b64encode(f"{client}:{quote_plus(text)}".encode()).decode()


def _lower(text: str) -> str:
    return "".join(c if c.isalnum() else f"%{ord(c):02x}" for c in text)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "percent-encoded": lambda text: quote(text, safe=""),
    "percent-encoded in lower case": _lower,
    "as a form": lambda text: urlencode({"token": text}),
    "percent-encoded, some of it": lambda text: quote(text, safe="+/="),
    "as JSON": json.dumps,
    "as JSON in ASCII only": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "as Python": repr,
    "as Python bytes": lambda text: repr(text.encode()),
    "as HTML": html.escape,
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal in capitals": lambda text: text.encode().hex().upper(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 behind one byte": lambda text: base64.b64encode(b":" + text.encode()).decode(),
    "base64 behind two bytes": lambda text: base64.b64encode(b"::" + text.encode()).decode(),
    "base64url behind two bytes": lambda text: base64.urlsafe_b64encode(b"::" + text.encode() + b"::").decode(),
    "as Basic credentials": lambda text: _basic("client", text),
    "as Basic credentials of one letter more": lambda text: _basic("client1", text),
    "as Basic credentials of two letters more": lambda text: _basic("client12", text),
    "base64 in a URL": lambda text: quote(base64.b64encode(text.encode()), safe=""),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
}
PIECES: dict[str, Callable[[str], str]] = {
    "in one piece": lambda text: f"before {text} after",
    "cut off": lambda text: f"before {text[: len(text) * 2 // 3]}…",
    "over lines": lambda text: "\n    ".join(textwrap.wrap(text, 9, break_on_hyphens=False)),
    "in chunks": lambda text: "".join(f"\r\n5\r\n{text[at : at + 5]}" for at in range(0, len(text), 5)),
    "as a list of strings": lambda text: repr([text[at : at + 7] for at in range(0, len(text), 7)]),
    "as a list of bytes": lambda text: repr([text[at : at + 7].encode() for at in range(0, len(text), 7)]),
}


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_canary_is_found_however_it_is_spelled_and_cut(spelling: str, pieces: str) -> None:
    """With letters of all kinds, and with the characters that spellings differ in."""
    for special in ("", "+/%~&=."):
        canaries = Canaries(seed=1)
        value = canaries.make("it", special=special)
        canaries.make("another")
        text = PIECES[pieces](SPELLINGS[spelling](value))
        assert {find.canary for find in canaries.find(text)} == {"it"}, text
        assert {find.canary for find in canaries.find(text.encode())} == {"it"}


def test_every_encoding_that_is_counted_is_told_by_its_name() -> None:
    """The number that the harness reports is of encodings that mean something."""
    found = set()
    for special in ("+/%~&=.", "&<\"'", "\\"):
        canaries = Canaries(seed=1)
        value = canaries.make("it", special=special)
        for spelling in SPELLINGS.values():
            for piece in PIECES.values():
                found |= {find.encoding for find in canaries.find(piece(spelling(value)))}
    assert found == set(ENCODINGS)


def test_a_part_of_a_canary_is_found_and_a_few_letters_are_not() -> None:
    """`…a1ce` at the end of a masked token is no leak; a token that was cut off is."""
    canaries = Canaries(seed=2)
    value = canaries.make("it", special="")
    for start in range(len(value) - WINDOW - STEP):
        assert canaries.find(value[start : start + WINDOW + STEP])
    assert not canaries.find(value[: WINDOW - 1] + " " + value[-WINDOW + 2 :])


def test_other_text_is_no_find() -> None:
    """A harness that cries wolf is turned off."""
    canaries = Canaries(seed=3)
    for number in range(20):
        canaries.make(f"{number}")
    other = Canaries(seed=4)
    noise = "\n".join(spell(other.make(f"{number}")) for number in range(200) for spell in SPELLINGS.values())
    assert canaries.find(noise) == set()
    assert Canaries().find("anything") == set()


def test_only_the_part_that_tells_counts() -> None:
    """The head of a JWT, the prefix of a kind of token and a public key are in everybody's hands."""
    canaries = Canaries()
    canaries.add(
        "token",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.c2lnbmF0dXJlIHRoYXQgdGVsbHM",
        telling="c2lnbmF0dXJlIHRoYXQgdGVsbHM",
    )
    assert canaries.find("eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.") == set()
    assert canaries.find("c2lnbmF0dXJlIHRoYXQgdGVsbHM")
