"""Private data is found, ordinary numbers stay, and the placeholders are where they are said to be."""

from __future__ import annotations

import importlib.util
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.chat.redact import find_private, redact
from afterword.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to ana.reis@example.com.", "write to [EMAIL]."),
        ("call +49 170 1234567 or (415) 555-2671", "call [PHONE] or [PHONE]"),
        ("card 4111 1111 1111 1111", "card [CARD]"),
        ("iban DE89 3704 0044 0532 0130 00 ok", "iban [IBAN] ok"),
        ("ssn 078-05-1120 from 84.23.1.9", "ssn [SSN] from [IP]"),
        ("OPENAI_API_KEY=sk-proj-abcdefghijklmnopqrstuvwx12", "OPENAI_API_KEY=[SECRET]"),
        ("password: hunter2hunter!", "password: [SECRET]"),
        ("postgres://bob:s3cretpw@db/x", "postgres://bob:[SECRET]@db/x"),
        ("Authorization: Bearer abcdefghij.klmnopqrstuv", "Authorization: Bearer [SECRET]"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        ("我的邮箱是ana.reis@example.com。", "我的邮箱是[EMAIL]。"),
        ("アドレスはａｎａ＠ｅｘａｍｐｌｅ．ｃｏｍです", "アドレスは[EMAIL]です"),
        ("รหัสผ่านคือwalnut64!kettle", "รหัสผ่านคือ[SECRET]"),
        ("الهاتف +٩٧١ ٥٠ ١٢٣ ٤٥٦٧ شكرا", "الهاتف [PHONE] شكرا"),
        ("ruf 0171 5079661 an, nicht 1 000 000 mal", "ruf [PHONE] an, nicht 1 000 000 mal"),
        ('{"to": "ana\\u0040example.com"}', '{"to": "[EMAIL]"}'),
        ("Hello,\\nana@example.com\\nBye", "Hello,\\n[EMAIL]\\nBye"),
        ("BE68 5390 0754 7034 WITH MORE", "[IBAN] WITH MORE"),
        ("from 2a02:8109:9c40:1a2b::1f at 10:22:01", "from [IP] at 10:22:01"),
        ("CPF 529.982.247-25, ИНН 500100732259", "CPF [ID], ИНН [ID]"),
        ("export DB_PASS=hunter22 USER=bob", "export DB_PASS=[SECRET] USER=bob"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend", "[SECRET]\nend"),
    ],
)
def test_private_data_is_taken_out(text: str, wanted: str) -> None:
    done = redact(text)
    assert done.text == wanted
    for start, end in done.spans:
        assert done.text[start] == "[" and done.text[end - 1] == "]"


@pytest.mark.parametrize(
    "text",
    ["on 2026-11-21 at 10:30, version 1.2.3.4, 10000000 times", "ISBN 978-3-16-148410-0", "1234567890123456",
     "password: changeme", "token = value", "x = a[1] + b[22] * 333", "127.0.0.1 and 192.168.0.12", "@decorator",
     "It costs 1,234,567.89 and weighs 12.5 kg", "Chrome/120.0.0.0 on 10.15.7.21",
     "password: str", "token = get_token()", 'os.environ["SECRET"]', "git clone git@github.com:a/b.git",
     "4,096 tokens: 1.3 a word", "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
     "password: $PASSWORD1", ""],
)  # fmt: skip
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text).text == text and not find_private(text)


def test_modes() -> None:
    assert redact("a@example.com", "off").text == "a@example.com"
    with pytest.raises(ConfigError, match="rules, presidio"):
        redact("a@example.com", "loud")


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="the extra is installed")
def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ConfigError, match=r"afterword\[privacy\]"):
        redact("I am Ana.", "presidio")


@given(st.text(max_size=300))
def test_any_text_can_be_redacted_and_twice_is_once(text: str) -> None:
    once = redact(text)
    assert redact(once.text).text == once.text
    assert bool(once.kinds) == bool(once.spans)


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is None, reason="needs the extra privacy")
def test_presidio_adds_names_and_places_without_the_network() -> None:
    """Sockets are closed in tests: whatever it would fetch fails here."""
    found = redact("I am Maria Keller from Hamburg, maria.keller@example.com, version 1.2.3.4.", "presidio")
    assert found.text == "I am [NAME] from [PLACE], [EMAIL], version 1.2.3.4."
    assert found.kinds == ("name", "place", "email")
    assert redact(found.text, "presidio").text == found.text
    assert redact("The quick brown fox is not a person.", "presidio").kinds == ()


@pytest.mark.parametrize(
    "text",
    ["a@" * 20_000, "password " * 5_000, "1.2.3.4 " * 5_000, "0 1" * 20_000, "我" * 40_000, "token=" * 6_000,
     "-----BEGIN RSA PRIVATE KEY-----" * 500, "\\" * 40_000 + "pass: ", "x:y:" * 10_000, "A1b2C3d4" * 5_000,
     "https://" * 5_000, "\\n" * 20_000, "eyJ_" * 40_000,
     "(((((" * 8_000, " " * 40_000, "a.b-c_" * 8_000, "curl -u " * 5_000, "<password>" * 4_000, "\n" * 40_000],
)  # fmt: skip
def test_long_texts_take_time_in_proportion(text: str) -> None:
    text = "password = token <login auth key set mysql curl -p phone " + text  # so that no rule is passed over
    begin = time.process_time()
    redact(text[: len(text) // 4])
    quarter = time.process_time() - begin
    redact(text)
    assert time.process_time() - begin < 6 * quarter + 1.0
