"""Normalisers that remove marks of a platform from a text: HTML, reposts, replies, addresses, names, tags, faces."""

from __future__ import annotations

import re
from pathlib import Path

from chatbot.text.characters import EMOJI, HAN
from chatbot.text.word_lists import read_word_list
from data_prep.cleaning.rule import remover, stable

FACES = Path(__file__).with_name("faces.txt")

_TAG = re.compile(
    r"""
    </?
    (?:a|abbr|b|big|blockquote|body|br|center|code|div|em|font|h[1-6]|head|hr|html|i|iframe|img|input|li|link|meta
    |ol|p|pre|s|script|small|span|strong|style|sub|sup|table|tbody|td|th|title|tr|u|ul|video)
    (?: [\s/] [^<>\u4e00-\u9fff]{0,300} )?
    >                                                   # <b>  </span>  <a href="t.cn">
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ENTITY = re.compile(r"&(nbsp|lt|gt|amp|quot|apos|#39);")
_ENTITIES = {"nbsp": " ", "lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'", "#39": "'"}


@stable
def markup(text: str) -> str:
    """Remove HTML tags; turn the entities `&nbsp; &lt; &gt; &amp; &quot; &apos;` into their characters."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: _ENTITIES[match[1]], text)
    return _TAG.sub("", text) if "<" in text else text


repost_marks = remover(r"//\s*@.*", needs="/", flags=re.DOTALL)  # 说得好//@路人: 转了

_REPLY = r"(?: 回[复復覆] | reply\s+to ) \s* @"
reply_marks = remover(
    rf"{_REPLY} [^:：@\n]{{1,30}}? \s* [:：]",  # 回复 @小明 王: 好的
    rf"{_REPLY} [\w·-]{{1,30}}",  # 回复@小明 好的
    needs="@",
    flags=re.IGNORECASE,
)

emails = remover(
    r"""
    (?<![A-Za-z0-9._%+-]) [A-Za-z0-9._%+-]{1,64}
    @ [A-Za-z0-9-]{1,63} (?: \. [A-Za-z0-9-]{1,63} ){0,4} \. [A-Za-z]{2,24}     # a.b@c-d.com.cn
    """,
    needs="@",
)

_MENTION = r"(?<![A-Za-z0-9._%+-]) @ \s?"
mentions = remover(
    rf"{_MENTION} [\w·-]{{1,30}} (?: \s* [:：] | (?=\s) )",  # @小明: 你好   @小明 你好
    rf"{_MENTION} [\w·-]{{1,8}} (?= [，。！？、,!?)）@] | $ )",  # 谢谢@小明！
    rf"{_MENTION} (?=\w)",  # @看了你的经历我很难过: where the name ends is unknown, so only the mark is removed
    needs="@",
)

hashtags = remover(
    r"(?<![A-Za-z0-9&]) [#] [^#\n，。！？,!?]{1,20} [#]",  # #晚安 心语#
    # #晚安: a run of marks is removed at once, because one mark per search of the text would take quadratic time
    r"(?: (?<![\w&#]) | (?<=[^#][#]) ) [#]++ (?=[^\W\d]) (?! [^#\n，。！？,!?]{1,20} [#] )",
    r"(?<=[^\W\d]) [#] (?=\s|$) (?<![A-Za-z0-9][#])",  # 怎么办#, but not C#
    needs="#",
)

_URL_END = f"\\s{HAN}，。！？；：、“”‘’《》（）【】「」"
urls = remover(
    rf"""
    (?i: (?:https?|ftp) \s? :// [^{_URL_END}]*                  # http://t.cn/A6x_b
       | (?<![A-Za-z0-9.-]) www\. [^{_URL_END}]+ )              # www.baidu.com/s?w=1
    """,
    rf"""
    (?<![A-Za-z0-9.@-]) (?: [a-z0-9-]{{1,63}} \. ){{1,4}}
    (?: com|cn|net|org|edu|gov|info|cc|tv|io|me|top|xyz ) (?![A-Za-z0-9])
    (?: / [^{_URL_END}]* )?                                     # taobao.com/a
    """,
    needs=".:",
)

_FACE_NAMES = "|".join(re.escape(name) for line in read_word_list(FACES) for name in line.split())
_FACE = rf"\[ (?:{_FACE_NAMES}) \]"
bracket_faces = remover(rf"^ (?: {_FACE} \s* )+ [，,、；;] \s*", _FACE, needs="[")  # [doge]，  [doge]

emoji = remover(f"[{EMOJI}\u200d\ufe0f\u20e3]+")

_ORDINARY = "A-Za-z0-9" + HAN
_MARKS = "，。！？；：、…～~,.!?;:\\s"
_SYMBOLS = "★☆↑↓←→+×÷=%℃°…—·/\\\\&￥$~～\"'“”‘’\\-"
kaomoji = remover(
    # (≧▽≦) o(*^▽^*)o (╯°□°)╯︵ ┻━┻: brackets around a few characters, one of them neither ordinary, a mark nor a symbol
    rf"""
    [oOヽ╮╭╰╯<＜~～ヾψ┑┌Σง୨ᕙ]?
    [(（] (?= [^()（）]{{0,15}} [^()（）{_ORDINARY}{_MARKS}{_SYMBOLS}] ) [^()（）{_ORDINARY}]{{2,15}} [)）]
    [oOノ╭╮╰╯>＞~～ﾉ┍┐งﾞ୧ᕗ]?
    (?: \s* ︵ \s* ┻━*┻ )?
    """,
    r"_? [(（] :[з3]」∠ [)）] _?",  # _(:з」∠)_
    r"""
    (?<![A-Za-z0-9_^=>-])
    (?: [TQ]_+[TQ] | \*?\^[_oO.]*\^\*? | =_+= | -_+-[|b]* | >_+< | @_+@ | 0_+0 | ⊙[_﹏]⊙ | ●[_﹏]●   # T_T  *^_^*
      | T\.T | TAT | QAQ | QwQ | OTZ | orz )                                                        # T.T  QAQ
    (?![A-Za-z0-9_^=<-])
    """,
    r"[(（] \s* [)）]",  # brackets that another rule has emptied
    needs="(（_^⊙●TQOo",
)
