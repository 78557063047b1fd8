"""Find personal data and secrets in text by their form and, where they have one, their checksum.

What has no form of its own (names, addresses, anything that only its meaning gives away) is not
found. Dates, times, amounts, version numbers and UUIDs are left alone. Sources of the forms:
ISO 13616 and its registry (IBAN), ISO/IEC 7812 (card numbers, Luhn), ITU-T E.164 and the North
American Numbering Plan (telephone), the Social Security Administration's rules since 2011, and
the prefixes that providers document for their keys.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal, NamedTuple, get_args

Kind = Literal[
    "SECRET",
    "CREDENTIALS",
    "API_KEY",
    "EMAIL",
    "IBAN",
    "CARD",
    "SSN",
    "IP",
    "PHONE",
    "ACCOUNT",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Found(NamedTuple):
    """A place in a text. `value` is the same for two spellings of the same thing."""

    start: int
    end: int
    kind: Kind
    value: str


PLACEHOLDER = re.compile(rf"<({'|'.join(KINDS)})_([0-9]+)>")
UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")

# Repetitions are bounded throughout: a log holds whatever somebody sent, and no text may take
# time that grows faster than its length.
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----"
    r"(?:[^-]|-(?!----)){0,20000}(?:-----END[A-Z ]{0,50}-----)?"
)
ASSIGNED = re.compile(
    r"(?i)(?<![a-z0-9])(?:pass(?:word|wd|phrase)|pwd|secret(?:[_-]?access)?[_-]?(?:key)?|"
    r"api[_-]?key|(?:access|auth|refresh)[_-]?token|client[_-]?secret|account[_-]?key)"
    r"[\"']?\s{0,3}(?::|=>?|\bis\b)\s{0,3}"
    r"(?:\"([^\"\n]{4,256})\"|'([^'\n]{4,256})'"
    r"|((?:[^\s\"',;&<>]|&(?![\w-]{1,40}=)){6,256}))"
)
# «password: required» is a sentence; a password is more than small letters.
NO_WORD = re.compile(r"[0-9]|[^\w.()/-]|[a-z][A-Z]")
NO_SECRET = {"none", "null", "true", "false"}
QUERY = re.compile(
    r"(?i)[?&](?:(?:access_|auth_)?token|api_?key|sig|(?:x-(?:amz|goog)-)?signature|"
    r"x-(?:amz|goog)-credential|password|secret)=([^\s&#\"'<>]{4,2048})"
)
URL_CREDENTIALS = re.compile(
    r"(?i)(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,20}://([^\s/:@\"'<>]{0,128}:[^\s/\"'<>]{1,256})@"
)
API_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-(?:ant-|proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_-]{20,256}"  # OpenAI, Anthropic, …
    r"|(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"  # AWS access key id
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|gl(?:pat|ptt|dt|rt)-[A-Za-z0-9_.-]{20,255}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|xapp-[A-Za-z0-9-]{10,255}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,2048}"  # Google
    r"|[rsp]k_(?:live|test)_[A-Za-z0-9]{16,255}|whsec_[A-Za-z0-9]{24,255}"  # Stripe
    r"|hf_[A-Za-z0-9]{30,255}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,512}"
    r"|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"  # SendGrid
    r"|(?:SK|AC)[0-9a-f]{32}|key-[0-9a-f]{32}"  # Twilio, Mailgun
    r"|do[op]_v1_[0-9a-f]{64}|dapi[0-9a-f]{32}"  # DigitalOcean, Databricks
    r"|[0-9]{8,10}:[A-Za-z0-9_-]{35}"  # Telegram
    r"|eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{4,8192}\.[A-Za-z0-9_-]{0,2048}"  # JWT
    r")(?![A-Za-z0-9_])"
)
BEARER = re.compile(
    r"(?i)\b(?:bearer|basic)\s{1,3}((?=[^\s]{0,64}[0-9])[A-Za-z0-9._~+/=-]{16,4096})"
)
EMAIL = re.compile(
    r"(?<![\w.+%-])[\w+%](?:[\w.+%'-]{0,254}[\w+%-])?@"
    r"(?:[\w-]{1,63}\.){1,10}([^\W\d_]{2,24})(?![\w-])"
)
# `icon@2x.png` is a file.
FILE_SUFFIXES = {"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "json"}
IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}")
DIGIT_RUN = re.compile(r"(?<![\w.])[0-9](?:[ -]?[0-9])*")
SSN = re.compile(
    r"(?<![\w-])((?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4})(?![\w-])"
    r"|(?i:\b(?:ssn|social security)(?: number| no\.?)?)\W{0,5}"
    r"((?!000|666|9)[0-9]{3}[- ]?(?!00)[0-9]{2}[- ]?(?!0000)[0-9]{4})(?!\w)"
)
IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|[.,][0-9])")
IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9A-Fa-f]{0,4})"
    r"(?![\w:])"
)
NUMBERED = re.compile(
    r"(?i)(?:[=~<>]=|\bversion|\brelease|\bver\.?|\bv|\bsection|\bchapter|\bbuild|§)\s?$"
)

PHONE_INTERNATIONAL = re.compile(
    r"(?<![\w+.,/-])(?:\+|00)[1-9(][0-9 ().\-/\u00a0]{6,26}(?<=[0-9])(?!\w|[.,][0-9])"
)
PHONE_NANP = re.compile(
    r"(?<![\w+.,/(-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])"
    r"[2-9][0-9]{2}[ .-][0-9]{4}(?!\w|[.,-][0-9])"
)
PHONE_NATIONAL = re.compile(
    r"(?<![\w+.,/(:-])(?:\(0[0-9]{1,5}\)|0[0-9]{1,5})(?:[ /-]{1,3}[0-9]{1,8}){1,5}"
    r"(?!\w|[.,:/-][0-9])"
)
PHONE_FRENCH = re.compile(r"(?<![\w+.,/(:-])0[1-9](?:[ .-][0-9]{2}){4}(?!\w|[.,:/-][0-9])")
PHONE_NAMED = re.compile(
    r"(?i)\b(?:tel(?:ephone|efon)?|(?:cell )?phone|mobile|mobil|fax|whatsapp|"
    r"call(?: me)?(?: at| on)?)(?: number| no| nr)?[.:#]{0,2}\s{0,3}"
    r"([+(]?[0-9][0-9 ().\-/]{4,24}(?<=[0-9]))(?!\w|[.,][0-9])"
)
ACCOUNT = re.compile(r"(?<![\w.,+])[0-9]{6,}(?!\w|[.,][0-9])")
DATE = re.compile(
    r"(?<![0-9])(?:[0-9]{4}[./ -](?:0?[1-9]|1[0-2])[./ -](?:0?[1-9]|[12][0-9]|3[01])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])[./-](?:0?[1-9]|[12][0-9]|3[01])[./-](?:[0-9]{4}|[0-9]{2}))"
    r"(?![0-9])"
)
DECIMAL = re.compile(r"\+?[0-9]{1,3}(?:[ \u00a0]?[0-9]{3})*\.[0-9]{1,2}")
CURRENCY = (
    "USD|EUR|GBP|JPY|CHF|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|MXN|KRW|ZAR|SGD|HKD|TRY"
)
MONEY_BEFORE = re.compile(rf"(?:[$€£¥₹]|\b(?:{CURRENCY}))\s?[+-]?$")
MONEY_BEHIND = re.compile(rf"\s?(?:[$€£¥₹]|(?:{CURRENCY})\b)")

IBAN_LENGTHS = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
IBAN_LENGTH = {code: size for size, codes in IBAN_LENGTHS.items() for code in codes.split()}
# First digits and lengths of the card networks.
CARDS = (
    (re.compile("4"), (16, 13, 19)),
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile("3[47]"), (15,)),
    (re.compile("6011|64[4-9]|65"), (16, 19)),
    (re.compile("30[0-5]|3[68]"), (14, 16)),
    (re.compile("35(?:2[89]|[3-8])"), (16, 19)),
    (re.compile("62|60|81|82"), (16, 19)),
    (re.compile("50|5[6-9]|6[37]"), (16, 18, 19)),
)


def find_personal_data(
    text: str, *, kinds: tuple[Kind, ...] = KINDS, min_account_digits: int = 9
) -> list[Found]:
    """Return what is found in a text, first to last, without overlaps.

    Where two findings overlap the more certain one stays: `KINDS` is the order. An `ACCOUNT` is a
    run of at least `min_account_digits` digits that is nothing else.
    """
    taken = bytearray(len(text))
    for pattern in (PLACEHOLDER, UUID):
        for match in pattern.finditer(text):
            taken[match.start() : match.end()] = b"\x01" * len(match[0])
    result: list[Found] = []
    for kind, find in FINDERS.items():
        if kind not in kinds:
            continue
        for start, end, value in find(text):
            if any(taken[start:end]):
                continue
            if kind == "ACCOUNT" and end - start < min_account_digits:
                continue
            taken[start:end] = b"\x01" * (end - start)
            result.append(Found(start, end, kind, value))
    return sorted(result)


Places = Iterator[tuple[int, int, str]]


def _secrets(text: str) -> Places:
    for match in PRIVATE_KEY.finditer(text):
        yield match.start(), match.end(), match[0]
    for match in QUERY.finditer(text):
        yield match.start(1), match.end(1), match[1]
    for match in ASSIGNED.finditer(text):
        group = match.lastindex or 0
        value = match[group]
        if group == 3 and not NO_WORD.search(re.sub(r"\W+$", "", value)):
            continue
        if value.casefold() in NO_SECRET:
            continue
        yield match.start(group), match.end(group), value


def _credentials(text: str) -> Places:
    for match in URL_CREDENTIALS.finditer(text):
        yield match.start(1), match.end(1), match[1]


def _api_keys(text: str) -> Places:
    for match in API_KEY.finditer(text):
        yield match.start(), match.end(), match[0]
    for match in BEARER.finditer(text):
        yield match.start(1), match.end(1), match[1]


def _emails(text: str) -> Places:
    for match in EMAIL.finditer(text):
        if match[1].lower() not in FILE_SUFFIXES:
            yield match.start(), match.end(), match[0].casefold()


def _ibans(text: str) -> Places:
    for match in IBAN_START.finditer(text):
        size = IBAN_LENGTH.get(match[0][:2].upper())
        end = _end_of(text, match.start(), size) if size else None
        if end is None:
            continue
        value = re.sub(r"[ \u00a0-]", "", text[match.start() : end]).upper()
        # ISO 7064 MOD 97-10 over the number with its first four signs behind, letters as 10 to 35.
        if int("".join(str(int(sign, 36)) for sign in value[4:] + value[:4])) % 97 == 1:
            yield match.start(), end, value


def _end_of(text: str, start: int, size: int) -> int | None:
    """Return where `size` letters and digits end, single separators between; None if they do not.

    A longer word means that it is something else.
    """
    position = start
    while size:
        sign = text[position : position + 1]
        if sign in " \u00a0-" and sign and position > start and text[position - 1].isalnum():
            position += 1
            continue
        if not (sign.isascii() and sign.isalnum()):
            return None
        position += 1
        size -= 1
    return None if text[position : position + 1].isalnum() else position


def _cards(text: str) -> Places:
    for run in DIGIT_RUN.finditer(text):
        signs = run[0]
        places = [i for i, sign in enumerate(signs) if sign.isdigit()]
        digits = "".join(signs[i] for i in places)
        behind = text[run.end() : run.end() + 2]
        bad_end = behind[:1].isalnum() or behind[:1] == "_" or re.match(r"[.,][0-9]", behind)
        next_free = 0
        for index, place in enumerate(places):
            if index < next_free or (place and signs[place - 1].isdigit()):
                continue
            for size in _card_sizes(digits, index):
                last = index + size - 1
                if last >= len(places) or (last == len(places) - 1 and bad_end):
                    continue
                ends_group = last == len(places) - 1 or places[last + 1] > places[last] + 1
                number = digits[index : index + size]
                if ends_group and _luhn(number):
                    yield run.start() + place, run.start() + places[last] + 1, number
                    next_free = index + size
                    break


def _card_sizes(digits: str, index: int) -> tuple[int, ...]:
    return next((sizes for first, sizes in CARDS if first.match(digits, index)), ())


def _luhn(digits: str) -> bool:
    """Luhn's checksum: every second digit from the right doubled, digit sums added."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + position % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _ssns(text: str) -> Places:
    for match in SSN.finditer(text):
        group = match.lastindex or 0
        yield match.start(group), match.end(group), re.sub(r"\D", "", match[group])


def _addresses(text: str) -> Places:
    for pattern in (IPV6, IPV4):
        for match in pattern.finditer(text):
            if NUMBERED.search(text, max(0, match.start() - 12), match.start()):
                continue
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if address.is_loopback or address.is_unspecified or address.is_multicast:
                continue
            # `x[1::2]` is Python.
            if address.version == 6 and max(map(len, match[0].split(":"))) < 3:
                continue
            yield match.start(), match.end(), str(address)


def _phones(text: str) -> Places:
    for match in PHONE_INTERNATIONAL.finditer(text):
        number = _shortened(match[0], _is_international)
        if number:
            digits = re.sub(r"\D", "", number.replace("(0)", ""))
            yield match.start(), match.start() + len(number), digits.removeprefix("00")
    for match in PHONE_NANP.finditer(text):
        yield match.start(), match.end(), re.sub(r"\D", "", match[0]).removeprefix("1")
    for match in PHONE_FRENCH.finditer(text):
        yield match.start(), match.end(), re.sub(r"\D", "", match[0])
    for match in PHONE_NATIONAL.finditer(text):
        number = _shortened(match[0], _is_national)
        if number:
            yield match.start(), match.start() + len(number), re.sub(r"\D", "", number)
    for match in PHONE_NAMED.finditer(text):
        number = _shortened(match[1], _may_be_phone)
        if number:
            yield match.start(1), match.start(1) + len(number), re.sub(r"\D", "", number)


def _shortened(candidate: str, holds: Callable[[str], bool]) -> str:
    """Cut groups off the end until what is left holds: a date or a price may stand behind it."""
    while candidate:
        if holds(candidate):
            return candidate
        cut = max(candidate.rfind(" "), candidate.rfind("\u00a0"))
        candidate = candidate[: max(cut, 0)].rstrip(" \u00a0().-/")
    return ""


def _is_international(number: str) -> bool:
    digits = re.sub(r"\D", "", number.replace("(0)", "")).removeprefix("00")
    if DATE.search(number) or DECIMAL.fullmatch(number):
        return False
    return len(digits) == 11 if digits[:1] in ("1", "7") else 8 <= len(digits) <= 15


def _is_national(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    return 9 <= len(digits) <= 12 and digits[:2] != "00" and not DATE.search(number)


def _may_be_phone(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    return 6 <= len(digits) <= 15 and not DATE.search(number) and not DECIMAL.fullmatch(number)


def _accounts(text: str) -> Places:
    for match in ACCOUNT.finditer(text):
        before = text[max(0, match.start() - 6) : match.start()]
        signed = before.endswith("-") and not before[-2:-1].isalnum()
        if signed or MONEY_BEFORE.search(before) or MONEY_BEHIND.match(text, match.end()):
            continue
        # 1000000000 is a limit or a quantity.
        is_round = len(match[0].rstrip("0")) <= 2
        if not is_round and not _is_time(match[0]):
            yield match.start(), match.end(), match[0]


def _is_time(digits: str) -> bool:
    """Whether digits are a date, with or without a time: 20240508, 20240508123000."""
    form = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if form is None or digits[:2] not in ("19", "20"):
        return False
    try:
        datetime.strptime(digits, form)
    except ValueError:
        return False
    return True


FINDERS: dict[Kind, Callable[[str], Places]] = {
    "SECRET": _secrets,
    "CREDENTIALS": _credentials,
    "API_KEY": _api_keys,
    "EMAIL": _emails,
    "IBAN": _ibans,
    "CARD": _cards,
    "SSN": _ssns,
    "IP": _addresses,
    "PHONE": _phones,
    "ACCOUNT": _accounts,
}
