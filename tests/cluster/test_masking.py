"""What is masked, what is left alone, and that one value has one placeholder in a record."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.masking import MaskingConfig, mask_messages, mask_texts
from cluster.personal_data import find_personal_data


def masked(text, **config):
    (result,), _ = mask_texts([text], MaskingConfig(**config))
    return result


# Text -> what is left of it. The numbers are published examples or have been made up.
MASKED = {
    "write to jo.smith+tag@mail.example.co.uk.": "write to <EMAIL_1>.",
    "'o'brien@example.com'": "'<EMAIL_1>'",
    "Max.Müller@exämple.de": "<EMAIL_1>",
    "IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFFXXX": "IBAN <IBAN_1> BIC COBADEFFXXX",
    "gb29nwbk60161331926819": "<IBAN_1>",
    "FR14 2004 1010 0505 0001 3M02 606, please": "<IBAN_1>, please",
    "card 4111 1111 1111 1111 12/26": "card <CARD_1> 12/26",
    "5500-0000-0000-0004 or 378282246310005": "<CARD_1> or <CARD_2>",
    "SSN 078-05-1120": "SSN <SSN_1>",
    "social security number: 078051120": "social security number: <SSN_1>",
    "from 192.168.1.20:8080": "from <IP_1>:8080",
    "fe80::1ff:fe23:4567:890a and 2001:db8::1": "<IP_1> and <IP_2>",
    "call +49 30 1234567 on 2024-05-08": "call <PHONE_1> on 2024-05-08",
    "+1 (415) 555-0123 2024-05-08": "<PHONE_1> 2024-05-08",
    "+44 (0)20 7946 0958": "<PHONE_1>",
    "0049 30 1234567": "<PHONE_1>",
    "(415) 555-0123": "<PHONE_1>",
    "1-800-555-0199.": "<PHONE_1>.",
    "Tel. 555-1234": "Tel. <PHONE_1>",
    "030 1234567, 0151-23456789": "<PHONE_1>, <PHONE_2>",
    "01 23 45 67 89": "<PHONE_1>",
    "01.23.45.67.89": "<PHONE_1>",
    "postgres://app:p@ssw0rd@db/x": "postgres://<CREDENTIALS_1>@db/x",
    "key sk-ant-api03-abcdefghijklmnopqrstuv": "key <API_KEY_1>",
    "AKIAIOSFODNN7EXAMPLE": "<API_KEY_1>",
    "ghp_" + "a1" * 18: "<API_KEY_1>",
    "Authorization: Bearer abc123def456ghi789": "Authorization: Bearer <API_KEY_1>",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln": "<API_KEY_1>",
    "password=hunter2!": "password=<SECRET_1>",
    'my password is Tr0ub4dor&3, "api_key": "abcd"': (
        'my password is <SECRET_1>, "api_key": "<SECRET_2>"'
    ),
    "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG": "AWS_SECRET_ACCESS_KEY=<SECRET_1>",
    "GET /a?token=abcdef&page=2": "GET /a?token=<SECRET_1>&page=2",
    "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: x\n\nMIIE\n-----END RSA PRIVATE KEY-----\n": (
        "<SECRET_1>\n"
    ),
    "account 123456789": "account <ACCOUNT_1>",
    "ACC-1234567890": "ACC-<ACCOUNT_1>",
}

LEFT_ALONE = """
1,438,798.03 | 1.438.798,03 | 1 438 798,03 | USD 1438798000 | $1438798000.50 | 1438798000 EUR
+1438798.03 | -1438798000 | 99.99% | 3.14159265358979 | 0.1234567890 | 1e-10 | EUR 27.13
2024-05-08 | 08.05.2024 | 05/08/2024 | 20240508 | 20240508123000 | 2024-05-08T12:30:45.123456789Z
2024-05-08 2024-05-09 | 12:30:45 | 12/31/1999 23:59 | Q3 2024 | 2023/24 | call 2024-05-08
550e8400-e29b-41d4-a716-446655440000 | 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b
version 1.2.3.4 | section 10.2.3.4 | 127.0.0.1 | ::1 | x[1::2] | std::vector | lodash@4.17.21
icon@2x.png | ISO 13616 | INV-20391 | Pages 1234-5678 | lat 48.137154, lon 11.576124
DE89370400440532013001 | 4111 1111 1111 1112 | 000-12-3456 | 5-10 days | 300.400.500.600
password: required | api_key="none" | pass: 12/14 | 1000000000 | opencv==5.0.0.93
the secret is out | Basic troubleshooting/maintenance | <EMAIL_1> | a@b
"""


@pytest.mark.parametrize(("text", "left"), MASKED.items(), ids=list(MASKED.values()))
def test_personal_data_goes(text, left):
    assert masked(text) == left


@pytest.mark.parametrize("text", [t.strip() for t in LEFT_ALONE.replace("\n", "|").split("|")])
def test_dates_amounts_and_what_only_looks_alike_stay(text):
    assert masked(text) == text


def test_a_record_uses_one_placeholder_for_one_value_and_counts_every_one():
    messages = [
        {"role": "system", "content": "Answer for ANN@example.com."},
        {"role": "user", "content": "ann@example.com, bob@example.com: +49 30 1234567"},
        {"role": "assistant", "content": "I call 0049-30-1234567 for ann@example.com"},
    ]
    clean, counts = mask_messages(messages)
    assert [message["content"] for message in clean] == [
        "Answer for <EMAIL_1>.",
        "<EMAIL_1>, <EMAIL_2>: <PHONE_1>",
        "I call <PHONE_1> for <EMAIL_1>",
    ]
    assert counts == {"EMAIL": 4, "PHONE": 2}
    assert [message["role"] for message in clean] == ["system", "user", "assistant"]


def test_placeholders_that_were_there_stand_for_what_they_stood_for():
    assert masked("<EMAIL_4> wrote to ann@example.com") == "<EMAIL_4> wrote to <EMAIL_5>"


def test_what_is_masked_can_be_chosen():
    text = "ann@example.com 12345678 123456789012"
    assert masked(text, kinds=("ACCOUNT",)) == "ann@example.com 12345678 <ACCOUNT_1>"
    assert masked(text, kinds=("ACCOUNT",), min_account_digits=8) == (
        "ann@example.com <ACCOUNT_1> <ACCOUNT_2>"
    )
    assert masked(text, kinds=("EMAIL",)) == "<EMAIL_1> 12345678 123456789012"


PIECES = st.sampled_from([*MASKED, *LEFT_ALONE.split("|"), "<PHONE_2>", ":", "+", "-", "@", "0"])


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES | st.text(max_size=4), max_size=5).map("".join))
def test_masking_twice_changes_nothing(text):
    once = masked(text)
    assert masked(once) == once
    assert not find_personal_data(once)


@pytest.mark.parametrize(
    "piece",
    ["a'", "@a.a", "1 ", "1-", "-----BEGIN PRIVATE KEY-----", "+1 ", "a:", "://:", "(0", "AB12 ",
     "eyJ", "password", "token=", "12", "."],
)  # fmt: skip
def test_no_text_takes_long(piece):
    """Time grows with the length only: twenty times the text, not four hundred times the time."""
    times = []
    for length in (5_000, 100_000):
        text = piece * (length // len(piece))
        start = time.process_time()
        masked(text)
        times.append(time.process_time() - start)
    assert times[1] < 120 * times[0] + 0.2
