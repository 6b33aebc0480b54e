"""Cleaning rules for a turn: pure functions of its text, each with a name and a switch.

The list is that of LCCC (Wang et al. 2020, "A Large-Scale Chinese Short-Text Conversation Dataset", arXiv 2008.03946,
section 3) and of clean-dialog, the program it was made with. A *normaliser* takes something out of a turn, a *filter*
says that the turn is to go. What all of them keep to, tested on any Unicode:

* a rule never raises and is idempotent: applied twice it does what it does once;
* a normaliser never makes a turn longer. It maps characters one to one (`full_width`, `punctuation`), maps several to
  one (`markup`, `repeats`) or removes them; only `traditional`, which is OpenCC's, may do otherwise.

The order in `NORMALISERS` matters: what hides something comes before what looks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

from chatbot.errors import FileError
from chatbot.text.dialogue import valid_text

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
EMOJI = (
    "\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u27bf\u2934\u2935\u2b05-\u2b55\u3030\u303d"
    "\u3297\u3299\U0001f000-\U0001faff"
)
_MARKS = "，。！？；：、…～~,.!?;:\\s"
_STOP = f"\\s{HAN}，。！？；：、“”‘’《》（）【】「」"
"""What ends a web address in Chinese text."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: What `--skip` and `--also` call it.
        says: What it does, in a sentence.
        apply: A normaliser's `str -> str`, or a filter's `str -> bool`, true for a turn that goes; None where a turn
            alone does not tell.
        is_on: Whether it runs unless told otherwise.
    """

    name: str
    says: str
    apply: Callable[[str], str] | Callable[[str], bool] | None = None
    is_on: bool = True


def stable(rule: Callable[[str], str]) -> Callable[[str], str]:
    """Applies a normaliser until nothing changes; it ends because every change makes the text shorter."""

    @wraps(rule)
    def until_stable(text: str) -> str:
        while (changed := rule(text)) != text:
            text = changed
        return text

    return until_stable


def _remover(*patterns: str, needs: str = "", flags: int = 0) -> Callable[[str], str]:
    """A normaliser that takes out all that matches; without one of the characters in `needs` there is nothing to do."""
    sub = re.compile("|".join(patterns), flags).sub
    is_needless = frozenset(needs).isdisjoint

    @stable
    def remove(text: str) -> str:
        return text if needs and is_needless(text) else sub("", text)

    return remove


# --- characters ---

_WHITE = re.compile("[\t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\uffff\ud800-\uf8ff\U000e0000-\U0010ffff]"
    f"|(?<![{EMOJI}\ufe0f])\u200d|\u200d(?![{EMOJI}])|(?<![{EMOJI}#*0-9])\ufe0f"
)
_SEEN_AS_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\ufffc\ufffd").union(
    map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0))
)
"""Characters of `_INVISIBLE` that Python calls printable."""


@stable
def control_characters(text: str) -> str:
    """White space of any kind becomes a space; what is not to be seen, is no text or stands for a lost character goes.

    Joiners within an emoji stay.
    """
    if text.isprintable() and _SEEN_AS_LETTERS.isdisjoint(text):
        return text
    return _INVISIBLE.sub("", _WHITE.sub(" ", text))


_FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_FULL_WIDTH |= {
    ord(wide): ord(narrow) for wide, narrow in zip("＃％＆＋－．／＝＠＿｀＂＇", "#%&+-./=@_`\"'", strict=True)
}
_WIDE = frozenset(map(chr, _FULL_WIDTH))


def full_width(text: str) -> str:
    """Full-width letters, digits and `＃％＆＋－．／＝＠＿｀＂＇` become their ASCII forms; Chinese punctuation stays."""
    return text if _WIDE.isdisjoint(text) else text.translate(_FULL_WIDTH)


_WESTERN = re.compile(f"(?<=[{HAN}])[,?!]+")
_CHINESE = str.maketrans(",?!", "，？！")


def punctuation(text: str) -> str:
    """`, ? !` right after a Chinese character become `， ？ ！`; nothing else, so numbers and English stay."""
    return _WESTERN.sub(lambda match: match[0].translate(_CHINESE), text)


_TAG = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|body|br|center|code|div|em|font|h[1-6]|head|hr|html|i|iframe|img|input|li|link|meta|ol|p|pre|s"
    r"|script|small|span|strong|style|sub|sup|table|tbody|td|th|title|tr|u|ul|video)(?:[\s/][^<>\u4e00-\u9fff]{0,300})?>",
    re.I,
)
_ENTITY = re.compile(r"&(nbsp|lt|gt|amp|quot|apos|#39);")
_NAMED = {"nbsp": " ", "lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'", "#39": "'"}


@stable
def markup(text: str) -> str:
    """HTML tags go, the entities `&nbsp; &lt; &gt; &amp; &quot; &apos;` become what they stand for."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: _NAMED[match[1]], text)
    return _TAG.sub("", text) if "<" in text else text


def spaced_letters(text: str) -> str:
    """Where every character stands alone, as in LCCC, letters and digits are joined as well: `1 8 岁` is `18岁`.

    Off by default: a file does not say whether `1 8` was 18, and scores on LCCC are those of its text as it is.
    """
    parts = text.split()
    if len(parts) > 2 and all(len(part) == 1 for part in parts) and not no_chinese(text):
        return "".join(parts)
    return text


# --- what a platform leaves in a text ---

repost_marks = _remover(r"//\s*@.*", needs="/", flags=re.S)
reply_marks = _remover(
    r"(?:回[复復覆]|reply\s+to)\s*@[^:：@\n]{1,30}?\s*[:：]",
    r"(?:回[复復覆]|reply\s+to)\s*@[\w·-]{1,30}",
    needs="@",
    flags=re.I,
)
emails = _remover(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}",
    needs="@",
)
_MENTION = r"(?<![A-Za-z0-9._%+-])@\s?"
mentions = _remover(
    rf"{_MENTION}[\w·-]{{1,30}}(?:\s*[:：]|(?=\s))",
    rf"{_MENTION}[\w·-]{{1,8}}(?=[，。！？、,!?)）@]|$)",
    rf"{_MENTION}(?=\w)",  # without an end there is no telling a name from what follows it
    needs="@",
)
hashtags = _remover(
    r"(?<![A-Za-z0-9&])#[^#\n，。！？,!?]{1,20}#",
    r"(?<![\w&])#(?=[^\W\d])|(?<=[^\W\d])#(?=\s|$)(?<![A-Za-z0-9]#)",
    needs="#",
)
urls = _remover(
    rf"(?i:(?:https?|ftp)\s?://[^{_STOP}]*|(?<![A-Za-z0-9.-])www\.[^{_STOP}]+)",
    r"(?<![A-Za-z0-9.@-])(?:[a-z0-9-]{1,63}\.){1,4}(?:com|cn|net|org|edu|gov|info|cc|tv|io|me|top|xyz)(?![A-Za-z0-9])"
    rf"(?:/[^{_STOP}]*)?",
    needs=".:",
)
FACES = Path(__file__).with_name("faces.txt")
_FACES = FACES.read_text(encoding="utf-8").split("\n", 1)[1].split()
bracket_faces = _remover(rf"\[(?:{'|'.join(map(re.escape, _FACES))})\]", needs="[")
emoji = _remover(f"[{EMOJI}\u200d\ufe0f\u20e3]+")
_ORDINARY = "A-Za-z0-9" + HAN
_SYMBOLS = "★☆↑↓←→+×÷=%℃°…—·/\\\\&￥$~～\"'“”‘’\\-"
kaomoji = _remover(
    rf"[oOヽ╮╭╰╯<＜~～ヾψ┑┌Σง୨ᕙ]?[(（](?=[^()（）]{{0,15}}[^()（）{_ORDINARY}{_MARKS}{_SYMBOLS}])[^()（）{_ORDINARY}]{{2,15}}[)）]"
    r"[oOノ╭╮╰╯>＞~～ﾉ┍┐งﾞ୧ᕗ]?(?:\s*︵\s*┻━*┻)?",
    r"_?[(（]:[з3]」∠[)）]_?",
    r"(?<![A-Za-z0-9_^=>-])(?:[TQ]_+[TQ]|\*?\^[_oO.]*\^\*?|=_+=|-_+-[|b]*|>_+<|@_+@|0_+0|⊙[_﹏]⊙|●[_﹏]●|T\.T|TAT|QAQ|QwQ|OTZ|orz)"
    r"(?![A-Za-z0-9_^=<-])",
    r"[(（]\s*[)）]",
    needs="(（_^⊙●TQOo",
)


# --- private data ---

_PHONE = r"(?:\+?86[- ]?)?1[- ]?[3-9](?:[- ]?\d){9}(?!\d)|(?<!\d)0\d{2,3}[- ]\d{7,8}(?!\d)"
phone_numbers = _remover(rf"(?<!\d)(?<!\d[- ])(?:{_PHONE})(?:\s*[,，、/]\s*(?:{_PHONE}))*", needs="0123456789")
_DIGITS = "(?: ?\\d)"
id_numbers = _remover(
    rf"(?<!\d)(?<!\d )[1-9]{_DIGITS}{{5}} ?(?:1 ?[89]|2 ?0){_DIGITS}{{2}} ?(?:0 ?[1-9]|1 ?[0-2])"
    rf" ?(?:0 ?[1-9]|[12] ?\d|3 ?[01]){_DIGITS}{{3}} ?[\dXx](?! ?[\dA-Za-z])",
    rf"(?<!\d)(?<!\d )(?:6 ?2|4 ?\d|5 ?[1-5]){_DIGITS}{{14,17}}(?! ?\d)",
    needs="0123456789",
)
contacts = _remover(
    r"(?<![A-Za-z])(?:qq|vx|wechat|weixin|微信|威信|薇信|扣扣)\s?(?:群|号码|号)?\s?[:：是]?\s?(?=[a-z_-]{0,19}\d)[a-z0-9_-]{5,20}",
    needs="qQvVwW微威薇扣",
    flags=re.I,
)
_CODE = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{16,}(?![A-Za-z0-9])", re.A)
_CODE_PARTS = re.compile(r"[A-Za-z]+|[0-9]+")


def long_codes(text: str) -> str:
    """Words of 16 and more letters and digits go when the two change at least five times."""
    return _CODE.sub(lambda match: "" if len(_CODE_PARTS.findall(match[0])) > 5 else match[0], text)


# --- repetition ---

MOST_REPEATS = 4
"""A character stands at most so often in a row, a phrase of 2 to 10 characters at most one time less."""
_CHARACTERS = re.compile(rf"([^0-9A-Za-z\s])\1{{{MOST_REPEATS},}}")
_LETTERS = re.compile(r"([A-Za-z])\1{7,}")
_PHRASES = re.compile(rf"(?=[^0-9])(.{{2,10}}?)\1{{{MOST_REPEATS - 1},}}", re.S)
_ELLIPSES = re.compile(r"\.{3,}|。{3,}|…{2,}|⋯+|・{3,}")


@stable
def repeats(text: str) -> str:
    """Runs of one character and of one phrase are cut to 4 and 3, dots to one `…`; digits stay as they are."""
    if "。。。" in text or "……" in text or "..." in text or "⋯" in text or "・・・" in text:
        text = _ELLIPSES.sub("…", text)
    if len(text) - len(set(text)) < MOST_REPEATS:
        return text
    most = max(map(text.count, set(text)))  # quicker than the search for what is not there
    if most < MOST_REPEATS:
        return text
    text = _CHARACTERS.sub(lambda match: match[1] * MOST_REPEATS, text)
    text = _LETTERS.sub(lambda match: match[1] * 7, text)
    return _PHRASES.sub(lambda match: match[0] if match[1].isdigit() else match[1] * (MOST_REPEATS - 1), text)


def traditional(text: str) -> str:
    """Traditional characters become simplified ones (OpenCC, t2s), the one rule that is not ours and may lengthen.

    Raises:
        FileError: OpenCC is not installed.
    """
    return _opencc().convert(valid_text(text))


def _opencc():
    global _converter
    if _converter is None:
        try:
            import opencc
        except ImportError:
            raise FileError("The rule traditional needs OpenCC; install it with pip install opencc.") from None
        _converter = opencc.OpenCC("t2s")
    return _converter


_converter = None

# --- filters ---

_CHINESE_CHARACTER = re.compile(f"[{HAN}]")
_CONTACT = r"(?:微信|威信|薇信|[vｖ]信|vx|qq|扣扣)"
_ADVERTISEMENT = re.compile(
    rf"(?:请|欢迎|有意|需要|想[要买学]|详情|咨询|代理|批发|兼职|赚钱)[^。！？]{{0,20}}[加➕][^，。！？]{{0,4}}{_CONTACT}"
    rf"|[加➕][^，。！？]{{0,4}}{_CONTACT}[^。！？]{{0,12}}(?:领取|详聊|咨询|了解|优惠|发货|代理|进群)|^[加➕][^，。！？]{{0,4}}{_CONTACT}.{{0,4}}$"
    r"|转发[^。！？]{0,12}抽奖|(?:淘宝|天猫|旗舰)[^。！？]{0,6}(?:店铺|下单|有售)|领(?:取)?优惠券|全国包邮|代购[^。！？]{0,8}联系|招代理"
    r"|点击[^。！？]{0,6}链接|扫[^。！？]{0,4}二维码[^。！？]{0,10}(?:领|加|关注)|公众号[^。！？]{0,8}(?:领取|抽奖|免费)",
    re.I,
)
_TEMPLATE = re.compile(
    r"我投给了.{0,60}你也快来|^\s*(?:转发微博|轉發微博|repost)\s*[。！!.]*\s*$|^分享(?:图片|视频|单曲|歌曲|网页)\s*$|^分享自\s*[@《]"
    r"|^(?:抱歉[，,])?(?:该|此)微博已|撤回了一条消息|^[\[【](?:动画表情|图片|语音|视频|文件|链接|表情|红包|转账|位置|名片)[\]】]$",
    re.S | re.I,
)


def no_chinese(text: str) -> bool:
    """Whether there is no Chinese character in it."""
    return _CHINESE_CHARACTER.search(text) is None


def advertisement(text: str) -> bool:
    """Whether it asks to add a contact, to buy or to take part in a draw."""
    return _ADVERTISEMENT.search(text) is not None


def platform_template(text: str) -> bool:
    """Whether a platform wrote it: bare reposts, votes, shared pictures, recalled messages."""
    return _TEMPLATE.search(text) is not None


NORMALISERS = (
    Rule(
        "control_characters",
        "zero-width, control and lost characters go; any white space is a space",
        control_characters,
    ),
    Rule(
        "spaced_letters",
        "where every character stands alone, `1 8 岁` becomes `18岁`",
        spaced_letters,
        is_on=False,
    ),
    Rule("full_width", "full-width letters and digits become ASCII; Chinese punctuation stays", full_width),
    Rule("traditional", "traditional characters become simplified (OpenCC)", traditional, is_on=False),
    Rule("markup", "HTML tags go, entities become characters", markup),
    Rule("repost_marks", "weibo's `//@name: …` goes", repost_marks),
    Rule("reply_marks", "`回复 @name:` goes", reply_marks),
    Rule("emails", "e-mail addresses go", emails),
    Rule("urls", "web addresses go", urls),
    Rule("mentions", "`@name` goes; where it has no end, the mark", mentions),
    Rule("hashtags", "`#topic#` goes; of other tags the mark", hashtags),
    Rule("phone_numbers", "telephone numbers go, not those of services (400, 800)", phone_numbers),
    Rule("id_numbers", "identity card and bank card numbers go", id_numbers),
    Rule("contacts", "QQ and WeChat numbers go", contacts),
    Rule("long_codes", "codes of 16 and more mixed letters and digits go", long_codes),
    Rule("bracket_faces", "faces such as `[doge]` go", bracket_faces),
    Rule("kaomoji", "faces such as `(≧▽≦)` and `T_T` go", kaomoji),
    Rule("emoji", "emoji go", emoji, is_on=False),
    Rule("punctuation", "`, ? !` after a Chinese character become `， ？ ！`", punctuation),
    Rule("repeats", "one character at most 4 times in a row, one phrase 3 times, dots one `…`", repeats),
)
"""Applied in this order, again and again until nothing changes."""

FILTERS = (
    Rule("no_chinese", "turns without a Chinese character", no_chinese),
    Rule("advertisement", "turns that ask to add a contact, to buy, to take part in a draw", advertisement),
    Rule(
        "platform_template",
        "bare reposts, votes, shared pictures, recalled messages",
        platform_template,
    ),
)
"""A turn that one of them meets goes; `clean` adds those that need settings or the turn before."""
