"""Properties of every rule on any Unicode, and the effect of each."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cleaning import rules
from data_prep.cleaning.rules import FILTERS, NORMALISERS

OURS = [rule for rule in NORMALISERS if rule.name != "traditional"]
# Any Unicode, surrogates too, and text made of what the rules look for, so that they meet each other.
MARKS = [
    *"@#/:：&<>[]()（）*^▽≦￣_=-.。…⋯，,!？?！~～ \t\n\u3000\u200b\u200d\ufe0f\ufeff\ufffd0１8+Aａ你好哈加😂❤👨",
    "\ud800",
]
MARKS += [
    "http://t.cn/Ab1",
    "www.a.com",
    "a.cn",
    "a@b.com",
    "@小明",
    "//@",
    "回复@",
    "转发微博",
    "#话题#",
    "[doge]",
    "微信",
]
MARKS += [
    "13812345678",
    "110101199003074578",
    "哈哈哈哈哈",
    "好的好的",
    "&amp;",
    "&lt;",
    "nbsp;",
    "<b>",
    "T_T",
    "qq12345",
    "A1b2" * 5,
]
TEXTS = st.one_of(
    st.text(alphabet=st.characters(), max_size=40),
    st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=3)), max_size=25).map("".join),
)


@pytest.mark.parametrize("rule", OURS, ids=lambda rule: rule.name)
@given(text=TEXTS)
@settings(deadline=None, max_examples=60)
def test_a_normaliser_is_idempotent_and_never_lengthens(rule, text):
    once = rule.apply(text)
    assert rule.apply(once) == once
    assert len(once) <= len(text)


@pytest.mark.parametrize("rule", FILTERS, ids=lambda rule: rule.name)
@given(text=TEXTS)
@settings(deadline=None, max_examples=50)
def test_a_filter_answers_for_any_text(rule, text):
    assert rule.matches(text) in (True, False)


@given(text=TEXTS)
@settings(deadline=None, max_examples=50)
def test_script_conversion_is_idempotent_and_answers_for_any_text(text):
    pytest.importorskip("opencc")
    once = rules.simplified(text)
    assert rules.simplified(once) == once


CASES = [
    ("control_characters", "你\u200b好\x00\ufeff\ufffd", "你好"),
    ("control_characters", "a\tb\u3000c\u00a0d", "a b c d"),
    ("control_characters", "👨\u200d👩\u200d👧 ❤\ufe0f", "👨\u200d👩\u200d👧 ❤\ufe0f"),
    ("control_characters", "a\u200db\ufe0f", "ab"),
    ("spaced_letters", "我 1 8 岁 ， p l u s", "我18岁，plus"),
    ("spaced_letters", "我 买 了 iPhone 1 5", "我 买 了 iPhone 1 5"),
    ("full_width", "Ｈｅｌｌｏ，２０２６年！", "Hello，2026年！"),
    ("traditional", "後來她讀書了", "后来她读书了"),
    ("markup", "vector<int> x<y>z List<String>", "vector<int> x<y>z List<String>"),
    ("markup", "A&amp;B <b>粗</b>体 3 < 5 &lt;br&gt;", "A&B 粗体 3 < 5 "),
    ("repost_marks", "说得好//@路人: 转了 //@别人：好", "说得好"),
    ("reply_marks", "回复 @小明: 好的", " 好的"),
    ("reply_marks", "回覆@Bob：好", "好"),
    ("emails", "写给 a.b@c-d.com.cn 吧", "写给  吧"),
    ("urls", "看http://t.cn/A6x_b，真的", "看，真的"),
    ("urls", "去 www.baidu.com/s?w=1 搜", "去  搜"),
    ("urls", "上taobao.com看看", "上看看"),
    ("urls", "用ASP.NET和Vue.js", "用ASP.NET和Vue.js"),
    ("urls", "版本3.14.com?不", "版本?不"),
    ("urls", "圆周率 3.14 和 e.g. 这样", "圆周率 3.14 和 e.g. 这样"),
    ("mentions", "@小明 你好", " 你好"),
    ("mentions", "寄到 a@b.com", "寄到 a@b.com"),
    ("mentions", "@看了你的经历我很难过，真的", "看了你的经历我很难过，真的"),
    ("mentions", "谢谢@小明", "谢谢"),
    ("hashtags", "#晚安 心语# 睡吧", " 睡吧"),
    ("hashtags", "#我可能还忘不了他，怎么办#", "我可能还忘不了他，怎么办"),
    ("hashtags", "我学C#和#1号", "我学C#和#1号"),
    ("phone_numbers", "打13812345678或010-12345678", "打或"),
    ("phone_numbers", "电话 1 3 8 1 2 3 4 5 6 7 8，13912345678。热线400-161-9995", "电话 。热线400-161-9995"),
    ("phone_numbers", "2026年11月23日，1000000块，12345678901234", "2026年11月23日，1000000块，12345678901234"),
    ("id_numbers", "身份证110101199003074578，卡6222 0212 3456 7890 123", "身份证，卡"),
    ("id_numbers", "1 1 0 1 0 1 1 9 9 0 0 3 0 7 4 5 7 8", ""),
    ("id_numbers", "123456789012345678", "123456789012345678"),
    ("contacts", "我QQ：123456789", "我"),
    ("contacts", "加微信abc_1234吧", "加吧"),
    ("contacts", "用微信支付", "用微信支付"),
    ("long_codes", "码是a1b2c3d4e5f6g7h8i9", "码是"),
    ("long_codes", "iPhone15ProMax256GB LeonFestinger1957", "iPhone15ProMax256GB LeonFestinger1957"),
    ("long_codes", "supercalifragilisticexpialidocious", "supercalifragilisticexpialidocious"),
    ("bracket_faces", "好[doge][哈哈]", "好"),
    ("bracket_faces", "[图片][doge]，妈让我们回去", "妈让我们回去"),
    ("bracket_faces", "[图片]？妈，好", "？妈，好"),
    ("bracket_faces", "我[很爱很爱]a[0]和[过去]", "我[很爱很爱]a[0]和[过去]"),
    ("kaomoji", "好(≧▽≦)的", "好的"),
    ("kaomoji", "T_T 难过", " 难过"),
    ("kaomoji", "(ง•̀_•́)ง 好(T_T)*^_^* _(:з」∠)_ (╯°□°)╯︵ ┻━┻", " 好  "),
    ("kaomoji", "评分(★★★)，方向（↑↓）", "评分(★★★)，方向（↑↓）"),
    ("kaomoji", "他（小明）说（2026）！", "他（小明）说（2026）！"),
    ("kaomoji", "什么（……）？", "什么（……）？"),
    ("emoji", "好😂👨\u200d👩\u200d👧的", "好的"),
    ("punctuation", "好,吗?3,000 ok?", "好，吗？3,000 ok?"),
    ("punctuation", "你好,,,?!", "你好，，，？！"),
    ("repeats", "哈哈哈哈哈哈哈", "哈哈哈哈"),
    ("repeats", "好的好的好的好的好的", "好的好的好的"),
    ("repeats", "10000000 和 123123123123", "10000000 和 123123123123"),
    ("repeats", "嗯。。。。好......吧………", "嗯…好…吧…"),
    ("repeats", "！！！！！！", "！！！！"),
]


@pytest.mark.parametrize(("name", "before", "after"), CASES)
def test_what_a_normaliser_does(name, before, after):
    if name == "traditional":
        pytest.importorskip("opencc")
    (rule,) = [rule for rule in NORMALISERS if rule.name == name]
    assert rule.apply(before) == after


def test_every_normaliser_has_a_case_that_it_changes():
    assert {name for name, before, after in CASES if before != after} == {rule.name for rule in NORMALISERS}


@pytest.mark.parametrize(
    ("rule", "meets", "passes"),
    [
        (rules.no_chinese, ["", "ok", "233", "？？", "😂"], ["ok吧", "𠮷"]),
        (
            rules.advertisement,
            ["需要的加我微信", "转发此微博抽奖", "点击下面的链接", "领取优惠券吧"],
            [
                "我用微信",
                "今天抽奖了",
                "链接打不开",
                "他加我微信聊了两天",
                "我们加了QQ",
                "有没有优惠券",
                "我在京东下单了",
                "我今天加班没看微信",
                "发一个淘宝链接",
            ],
        ),
        (
            rules.platform_template,
            ["我投给了A你也快来表态吧", "分享图片", "[图片]", "你撤回了一条消息", "转发微博", "分享自@小明"],
            ["给你看图片", "图片", "我在签到", "我在周末现场进行活动。", "分享自己的经历很难", "你转发微博了吗"],
        ),
    ],
)
def test_what_a_filter_meets(rule, meets, passes):
    assert all(map(rule, meets))
    assert not any(map(rule, passes))


@pytest.mark.parametrize("rule", OURS, ids=lambda rule: rule.name)
@pytest.mark.parametrize("part", ["a", "1", "@", "#", "[", "(", "哈", "ab.", "http://", "<a", "&", "-", "a1"])
def test_no_rule_takes_long_over_hostile_text(rule, part):
    """Seconds would mean a pattern that backtracks: 8,192 characters is the longest that cleaning looks at."""
    import time

    text = part * (8192 // len(part))
    start = time.process_time()
    rule.apply(text)
    assert time.process_time() - start < 2
