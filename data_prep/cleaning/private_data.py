"""Normalisers that remove private data: telephone, identity card and bank card numbers, accounts, codes."""

from __future__ import annotations

import re

from data_prep.cleaning.rule import remover

_PHONE = r"""
    (?: \+? 86 [- ]? )? 1 [- ]? [3-9] (?: [- ]? \d ){9} (?!\d)      # 13812345678  +86 138-1234-5678  1 3 8 1 2 …
  | (?<!\d) 0 \d{2,3} [- ] \d{7,8} (?!\d)                           # 010-12345678
"""
phone_numbers = remover(
    rf"(?<!\d) (?<!\d[- ]) (?:{_PHONE}) (?: \s* [,，、/] \s* (?:{_PHONE}) )*",
    needs="0123456789",
)

_SPACED_DIGIT = "(?: [ ]? \\d )"
id_numbers = remover(
    # identity card: 6 digits of a region, birth date from 1800 to 2099, 3 digits, check digit: 110101199003074578
    rf"""
    (?<!\d) (?<!\d[ ]) [1-9] {_SPACED_DIGIT}{{5}}
    [ ]? (?: 1 [ ]? [89] | 2 [ ]? 0 ) {_SPACED_DIGIT}{{2}}
    [ ]? (?: 0 [ ]? [1-9] | 1 [ ]? [0-2] )
    [ ]? (?: 0 [ ]? [1-9] | [12] [ ]? \d | 3 [ ]? [01] )
    {_SPACED_DIGIT}{{3}} [ ]? [\dXx] (?! [ ]? [\dA-Za-z] )
    """,
    # bank card: 16 to 19 digits that begin with 62, 4 or 51 to 55: 6222 0212 3456 7890 123
    rf"(?<!\d) (?<!\d[ ]) (?: 6 [ ]? 2 | 4 [ ]? \d | 5 [ ]? [1-5] ) {_SPACED_DIGIT}{{14,17}} (?! [ ]? \d )",
    needs="0123456789",
)

contacts = remover(
    r"""
    (?<![A-Za-z]) (?: qq | vx | wechat | weixin | 微信 | 威信 | 薇信 | 扣扣 ) \s?
    (?: 群 | 号码 | 号 )? \s? [:：是]? \s?
    (?= [a-z_-]{0,19} \d ) [a-z0-9_-]{5,20}                         # QQ：123456789  微信abc_1234
    """,
    needs="qQvVwW微威薇扣",
    flags=re.IGNORECASE,
)

_CODE = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{16,}(?![A-Za-z0-9])", re.ASCII)  # a1b2c3d4e5f6g7h8i9
_CODE_PARTS = re.compile(r"[A-Za-z]+|[0-9]+")


def long_codes(text: str) -> str:
    """Remove words of 16 or more letters and digits in which letters and digits alternate at least five times."""
    return _CODE.sub(lambda match: "" if len(_CODE_PARTS.findall(match[0])) > 5 else match[0], text)
