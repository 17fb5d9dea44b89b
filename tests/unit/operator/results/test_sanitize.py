"""What a node says is safe to print and reveals no kernel address."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_operator.results.sanitize import clean_json, clean_text, clip


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("nginx: worker", "nginx: worker", id="ordinary"),
        pytest.param("żółw 🐢", "żółw 🐢", id="other scripts"),
        pytest.param("\x1b[31mred\x1b[0m", "[31mred[0m", id="terminal escapes"),
        pytest.param("a\nb\tc\r\x00d", "abcd", id="line breaks and NUL"),
        pytest.param("a\x9b31mb", "a31mb", id="C1 control"),
        pytest.param("abc\u202egpj.exe", "abcgpj.exe", id="bidirectional override"),
        pytest.param("a\u2028b\u200bc\ufeffd", "abcd", id="separators and zero width"),
        pytest.param("a\u00a0b\u3000c", "a b c", id="spaces of other widths"),
        pytest.param("bad \ud800 surrogate", "bad  surrogate", id="surrogate"),
        pytest.param("at 0xffff888012345678 now", "at [address] now", id="address"),
        pytest.param("FFFFFFFF81000000", "[address]", id="address in capitals, without 0x"),
        pytest.param("0xff11000012345678", "[address]", id="5-level paging, direct map"),
        pytest.param("0xffd4000000abcdef", "[address]", id="5-level paging, vmemmap"),
        pytest.param("ffa0000000123456", "[address]", id="5-level paging, vmalloc"),
        pytest.param("fff0000012345678", "[address]", id="arm64 with 52 bits"),
        pytest.param("ffffffc080123456", "[address]", id="arm64 with 39 bits"),
        pytest.param("ff00000000000000,ffffffffffffffff", "[address],[address]", id="both ends"),
        pytest.param("0xfe00000000000000", "0xfe00000000000000", id="below the kernel"),
        pytest.param("ff1100001234567", "ff1100001234567", id="15 digits"),
        pytest.param("sha256:" + "ff" * 32, "sha256:" + "ff" * 32, id="digest"),
        pytest.param("ff" * 20, "ff" * 20, id="commit"),
        pytest.param("ffffffff-ffff-4fff-bfff-ffffffffffff", "ffffffff-ffff-4fff-bfff-ffffffffffff", id="UUID"),
        pytest.param("ff02::1:ff12:3456", "ff02::1:ff12:3456", id="IPv6 multicast"),
        pytest.param("do_it+0x1f/0x40", "do_it+0x1f/0x40", id="symbol and offset"),
        pytest.param("ffff\u200b8880\x00123456\x0178", "[address]", id="address behind invisible characters"),
        pytest.param("a" * 20 + "ffff888012345678", "a" * 20 + "ffff888012345678", id="inside a longer hex id"),
        pytest.param("0x00007f0012345678", "0x00007f0012345678", id="user address"),
        pytest.param("ffff:8880:1234:5678::1", "ffff:8880:1234:5678::1", id="IPv6"),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@given(st.text())
def test_nothing_unsafe_survives(text: str) -> None:
    cleaned = clean_text(text)
    assert not {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} & {unicodedata.category(one) for one in cleaned}
    assert len(cleaned) <= len(text)
    assert clean_text(cleaned) == cleaned


@given(st.text(alphabet="0123456789abcdefABCDEFx \x00\u200b"))
def test_no_address_survives(text: str) -> None:
    words = re.split(r"[^0-9a-f]", clean_text(text).lower())
    assert not [word for word in words if re.fullmatch("ff[0-9a-f]{14}", word)]


def test_all_strings_of_a_document_are_cleaned_and_nothing_else_is_touched() -> None:
    assert clean_json({"a\n": ["\x1b", 1, None, True, {"b": "ffff888012345678"}], "c": 1.5}) == {
        "a": ["", 1, None, True, {"b": "[address]"}],
        "c": 1.5,
    }


def test_a_cut_is_marked() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdefg", 6) == "abcde…"
