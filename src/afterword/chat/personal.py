"""Finds personal data by its form: e-mail and IP addresses; phone, card and account numbers; national ids.

Numbers are validated by libraries (phonenumbers, python-stdnum); a pattern without a check digit needs a label before
it. Reads folded text (`chat.folding`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

Hit = tuple[str, int, int]
"""A kind of private data and its characters [start, end)."""

_BEFORE, _AFTER = r"(?<![A-Za-z0-9_.\-])", r"(?![A-Za-z0-9_])(?!-\w)"
_SPACED = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f\u0590-\u06ff"
"""Letters of scripts with spaces, for internationalised addresses: those of others stand beside one, not in it."""
_EMAIL = re.compile(
    rf"(?<![{_SPACED}.+_%-])(?:[A-Za-z0-9][A-Za-z0-9.+_%'-]{{0,63}}|[{_SPACED}][{_SPACED}.+_%-]{{0,63}})"
    rf"(?<![.'])@(?:[{_SPACED}](?:[{_SPACED}-]{{0,61}}[{_SPACED}])?\.){{1,5}}(?:xn--[a-z0-9-]{{2,59}}"
    rf"|[A-Za-z]{{2,24}}|[{_SPACED}]{{2,24}})"
    r"(?![A-Za-z0-9_@]|[.-][A-Za-z0-9])"
)
_EMAIL_CJK = re.compile(r"[\u3400-\u9fff]{1,12}@[\u3400-\u9fff]{1,12}\.[\u3400-\u9fff]{2,4}")
_HOSTS = re.compile(r"(?i)^git@|\.(?:localhost|localdomain|svc)$|@\d")
_SHELL = re.compile(r"(?:^|[\s;&|$`])(?:ssh|scp|sftp|rsync|ssh-copy-id|mosh|autossh)\s[^\"\n]*$|\w://$")
_PLUS = re.compile(
    r"(?<![A-Za-z0-9_+])\+\d{1,3}[ .\-/]?(?:\(\d{1,4}\)[ .\-/]?)?\d{1,4}(?:[ .\-/]{0,2}\d{2,4}){2,4}(?!\d)"
)
_AMERICAN = re.compile(r"(?<![A-Za-z0-9_.\-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![A-Za-z0-9_]|-\w)")
_BARE = re.compile(r"(?<![A-Za-z0-9_.,:/+#$\-])(?:0\d{9,10}|1[3-9]\d{9})(?![A-Za-z0-9_%]|[.,:/\-]\d)")
_LIST, _MORE = re.compile(r"\d[ .\-/]{1,2}\Z"), re.compile(r"[ .\-/]{1,2}\d")
"""More numbers before and behind one: a row of a table."""
_NO_PHONE = re.compile(r"\d+\.\d+$|\d\.\d|\d{5}-\d{4}$")
"""Decimal numbers and American postal codes."""
_DATE = re.compile(r"^(?:\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{4})(?:\D|$)")
_CALLED = re.compile(
    r"(?i)(?:\b(?:tel|tél|phone|telephone|mobile|mob|cell|cellphone|call|fax|whats ?app|sms|text me"
    r"|handy\w*|telefon\w*|mobil\w*"
    r"|rufnummer|téléphone|portable|appel\w*|joi\w*|teléfono|móvil|celular|llám\w*|llam\w*|telefone|telem[óo]vel"
    r"|lig(?:a|ue|ar)\w*"
    r"|telefono|cellulare|chiam\w*|тел|телефон\w*|(?:мой|мобильный) номер|номер\w* (?:телефона|мобильного)|звон\w*"
    r"|позвон\w*|\w*phone(?:[ _]?number)?)\b"
    r"|phone|电话|电話|電話|手机|手機|联系方式|拨打|致电|携帯|โทร|เบอร์|มือถือ|전화|핸드폰|휴대폰|연락처"
    r"|هاتف|جوال|موبايل|טלפון|נייד)"
    r"[^\n\d@\[\]+]{0,24}\Z"
)
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_\-+])(?<!\d[.,:/])(?:\(\d{1,5}\)|\d{1,15})(?:(?:[ .\-/]{1,2}| / )(?:\(\d{1,5}\)|\d{1,8})){0,6}"
    r"(?![A-Za-z0-9_]|[.:]\d)"
)
_CARD = re.compile(r"(?<![A-Za-z0-9_.\-])\d(?:[ \-]?\d){12,18}(?![A-Za-z0-9_]|-\w|\.\d)")
_IBAN = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z]{2}\d{2}(?:[ \-]?[A-Za-z0-9]){11,30}(?![A-Za-z0-9_])")
_V4 = re.compile(r"(?<![A-Za-z0-9_.\-])\d{1,3}(?:\.\d{1,3}){3}(?![A-Za-z0-9_]|\.\d|-\w)")
_V6 = re.compile(
    r"(?<![A-Za-z0-9_:.])(?:[0-9a-fA-F]{1,4}:){2,7}(?::|[0-9a-fA-F]{1,4})(?::?[0-9a-fA-F]{1,4}){0,6}(?![A-Za-z0-9_:])"
)
_VERSION = re.compile(
    r"(?i)(?:version|release|build|section|chapter|clause|step|figure|table|appendix|§|\boid\w*|\bv|ver\.?|>=|<="
    r"|==|~=|\^)\s*[:=]?\s*$"
)
_NETWORK = re.compile(r"/\d")
_PRODUCT = re.compile(r"[^/:]/$")
"""A product's version: what stands behind one slash (two begin an address)."""
_NATION = "|".join(
    (
        r"passport\w*|reisepass\w*|personalausweis\w*|passeport|pasaporte|passaporto|passaporte|паспорт\w*|护照|護照"
        r"|パスポート|หนังสือเดินทาง|여권",
        r"national id\w*|id (?:card|number|no)|identity (?:card|number)|ausweis\w*|steuer-?id\w*|idnr"
        r"|steueridentifikationsnummer|sozialversicherungs\w*",
        r"carte d'identité|numéro (?:de )?sécu\w*|sécurité sociale|dni|nif|cédula|curp|seguridad social|codice fiscale"
        r"|carta d'identità",
        r"cpf|contribuinte|cartão de cidadão|инн|снилс|身份证\w{0,4}|身份證\w{0,4}|マイナンバー|個人番号|在留カード"
        r"|免許証|เลขประจำตัวประชาชน|บัตรประชาชน|주민등록번호|주민번호",
        r"ssn|social security(?: number| no)?|national insurance(?: number)?|nino|ni number|driver'?s? licen[cs]e"
        r"|führerschein\w*|aadhaar|pesel|bsn|tckn|tc kimlik",
    )
)
_NATIONAL_ID = re.compile(rf"(?i)(?<![A-Za-z])(?:{_NATION})(?![A-Za-z])[^\n\d@\[\]]{{0,20}}\Z")
_ID = re.compile(
    r"(?P<v>(?<![A-Za-z0-9])(?:[A-Za-z]{0,4}\d[A-Za-z0-9]{5,17}|[A-Za-z]{0,3}\d"
    r"(?:[ .\-/]?\d){5,15}[ \-]?[A-Za-z]?))(?![A-Za-z0-9])"
)
_IDS: tuple[tuple[str, str], ...] = (
    ("cn.ric", r"\d{17}[\dXx]"),
    ("kr.rrn", r"\d{6}-[1-8]\d{6}"),
    ("th.pin", r"\d-\d{4}-\d{5}-\d{2}-\d"),
    ("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    ("es.dni", r"\d{8}[- ]?[A-Z]"),
    ("es.nie", r"[XYZ][- ]?\d{7}[- ]?[A-Z]"),
    ("it.codicefiscale", r"[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]"),
    ("fr.nir", r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}"),
)
"""Modules of stdnum whose check digits and form make a number of it sure."""
_SSN = re.compile(_BEFORE + r"(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}" + _AFTER)
_SNILS = re.compile(_BEFORE + r"\d{3}-\d{3}-\d{3}[ -]\d{2}" + _AFTER)
_NINO = re.compile(r"(?<![A-Za-z0-9_])[A-CEGHJ-PR-TW-Z]{2} \d{2} \d{2} \d{2} [A-D](?![A-Za-z0-9_])")
_REGIONS = [
    "US",
    "GB",
    "IE",
    "AU",
    "IN",
    "DE",
    "AT",
    "CH",
    "FR",
    "BE",
    "ES",
    "MX",
    "AR",
    "CO",
    "CL",
    "IT",
    "PT",
    "BR",
    "RU",
    "UA",
    "CN",
    "TW",
    "HK",
    "JP",
    "KR",
    "TH",
    "NL",
    "PL",
    "TR",
    "VN",
    "SE",
    "SA",
    "EG",
    "IL",
]
_MAYBE = re.compile(r"@|\d[ .\-/()]{0,2}\d[ .\-/()]{0,2}\d|[0-9a-fA-F]:[0-9a-fA-F:]")


def find_personal(text: str) -> Iterator[Hit]:
    """Returns the personal data in folded `text`; pieces may overlap."""
    if not _MAYBE.search(text):
        return
    if "@" in text:
        yield from _mails(text)
    if text.count(":") > 1:
        yield from (
            ("ip", *m.span())
            for m in _V6.finditer(text)
            if _public_v6(m.group()) and text[m.end() : m.end() + 1] != "/"
        )
    if not any(digit in text for digit in "0123456789"):
        return
    yield from (("card", *m.span()) for m in _CARD.finditer(text) if _card(m.group()))
    for m in _IBAN.finditer(text):
        if end := _iban(m.group()):
            yield "iban", m.start(), m.start() + end
    yield from _ids(text)
    yield from (
        ("ip", *m.span())
        for m in _V4.finditer(text)
        if _public_v4(m.group())
        and not _NETWORK.match(text, m.end())
        and not _PRODUCT.search(text, max(0, m.start() - 2), m.start())
        and not _VERSION.search(text, max(0, m.start() - 12), m.start())
    )
    yield from _phones(text)


def _mails(text: str) -> Iterator[Hit]:
    at, before = text.find("@"), -1
    while at >= 0:
        for pattern in (_EMAIL, _EMAIL_CJK):
            m = pattern.search(text, max(before + 1, at - 64), at + 256)
            if m and m.start() < at < m.end() and _is_mail(text, m):
                yield "email", *m.span()
        at, before = text.find("@", at + 1), at


def _is_mail(text: str, m: re.Match[str]) -> bool:
    """Is it an address of e-mail and no account of ssh or git?"""
    if _HOSTS.search(m.group()):
        return False
    line = text[text.rfind("\n", 0, m.start()) + 1 : m.start()][-80:]
    return _SHELL.search(line) is None


def _phones(text: str) -> Iterator[Hit]:
    yield from (("phone", *m.span()) for m in _PLUS.finditer(text))
    yield from (("phone", *m.span()) for m in _AMERICAN.finditer(text) if _is_alone(text, m))
    for m in _NUMBER.finditer(text):
        number, digits = m.group(), _digits(m.group())
        if not 7 <= digits <= 15 or _DATE.match(number):
            continue
        if _CALLED.search(text[max(0, m.start() - 48) : m.start()]) or (
            _is_alone(text, m)
            and 9 <= digits <= (15 if number.startswith("00") else 13)
            and not number.isdigit()
            and _is_national(number)
        ):
            yield "phone", *m.span()
    for m in _BARE.finditer(text):
        spoken = m.group()[0] == "0" or not text[max(0, m.start() - 20) : m.end() + 20].isascii()
        if spoken and _is_mobile(m.group()):
            yield "phone", *m.span()


def _is_alone(text: str, m: re.Match[str]) -> bool:
    """Is it no part of a row of numbers?"""
    return not _LIST.search(text, max(0, m.start() - 3), m.start()) and not _MORE.match(text, m.end())


def _digits(text: str) -> int:
    return sum(c.isdigit() for c in text)


@lru_cache(maxsize=4096)
def _is_national(number: str) -> bool:
    """Is it grouped as a region groups a valid number of its own? A plain grouping by threes is a large number."""
    if re.fullmatch(r"\d{1,3}(?:[ .]\d{3})+", number) and number[0] not in "0679":
        return False
    if (number[0] not in "0(" and _digits(number) > 11) or _NO_PHONE.match(number):
        return False
    numbers = _library("phonenumbers")
    if number.startswith("00") and number[2] != "0":
        try:
            return bool(numbers.is_valid_number(numbers.parse("+" + number[2:])))
        except numbers.NumberParseException:
            return False
    for region in _valid_in(number):
        matcher = numbers.PhoneNumberMatcher(number, region, leniency=numbers.Leniency.STRICT_GROUPING)
        if any(match.start == 0 and match.end == len(number) for match in matcher):
            return True
    return False


@lru_cache(maxsize=4096)
def _is_mobile(number: str) -> bool:
    """Is it a mobile number of a region whose people write them without groups?"""
    if number in "01234567890123456789" or len(set(number)) < 3:
        return False
    numbers = _library("phonenumbers")
    mobile = {numbers.PhoneNumberType.MOBILE, numbers.PhoneNumberType.FIXED_LINE_OR_MOBILE}
    return any(numbers.number_type(numbers.parse(number, region)) in mobile for region in _valid_in(number))


def _valid_in(number: str) -> Iterator[str]:
    """The regions in which `number` is a valid one of their own."""
    numbers = _library("phonenumbers")
    for region in _REGIONS:
        try:
            parsed = numbers.parse(number, region)
        except numbers.NumberParseException:
            continue
        if numbers.is_valid_number_for_region(parsed, region):
            yield region


def _card(text: str) -> bool:
    """A number of a card issuer's range and length, with its check digit, grouped as cards are or not at all."""
    digits = re.sub(r"\D", "", text)
    if not _CARD_RANGES.fullmatch(digits) or len(set(digits)) < 2:
        return False
    doubled = [int(d) if i % 2 == 0 else sum(divmod(2 * int(d), 10)) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


_CARD_RANGES = re.compile(
    r"4\d{12}(?:\d{3})?(?:\d{3})?|5[0-9]\d{14}|2[2-7]\d{14}|6\d{15}(?:\d{3})?|3[47]\d{13}|3[0689]\d{12}|35\d{14}"
    r"|81\d{14}|9[0-9]\d{14}"
)


def _iban(text: str) -> int:
    """How many characters of `text` are an IBAN; 0 when none is."""
    iban = _library("stdnum.iban")
    ends = [len(text), *reversed([m.start() for m in re.finditer(r"[ \-]", text)])]
    return next((end for end in ends if end >= 15 and iban.is_valid(text[:end], check_country=False)), 0)


def _ids(text: str) -> Iterator[Hit]:
    for name, pattern in _id_patterns():
        check = _library(f"stdnum.{name}").is_valid
        yield from (("id", *m.span()) for m in pattern.finditer(text) if check(m.group()))
    yield from (("ssn", *m.span()) for m in _SSN.finditer(text))
    yield from (("id", *m.span()) for m in _SNILS.finditer(text) if _snils(m.group()))
    yield from (("id", *m.span()) for m in _NINO.finditer(text))
    for m in _ID.finditer(text):
        if (
            _digits(m["v"]) >= 6
            and not _DATE.match(m["v"])
            and _NATIONAL_ID.search(text[max(0, m.start() - 56) : m.start()])
        ):
            yield "id", *m.span("v")


@cache
def _id_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((name, re.compile(_BEFORE + pattern + _AFTER)) for name, pattern in _IDS)


def _snils(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    return sum((9 - n) * d for n, d in enumerate(digits[:9])) % 101 % 100 == digits[9] * 10 + digits[10]


def _public_v4(text: str) -> bool:
    """An address that other networks can reach; one of small numbers alone is a version."""
    parts = [int(p) for p in text.split(".")]
    if (
        any(p > 255 for p in parts)
        or max(parts) <= 9
        or parts[1:] == [0, 0, 0]
        or parts[0] in {0, 10, 127, 255}
        or parts[0] >= 224
    ):
        return False
    return parts[:2] not in ([192, 168], [169, 254]) and not (parts[0] == 172 and 16 <= parts[1] < 32)


def _public_v6(text: str) -> bool:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return (address.is_global or text.lower().startswith("2001:")) and text.count(":") > 2


@cache
def _library(name: str) -> Any:
    """A library, loaded when the first text needs it."""
    return import_module(name)


Finder = Callable[[str], Iterator[Hit]]
