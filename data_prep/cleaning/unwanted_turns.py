"""Filters: turns that are advertisements or were written by a platform."""

from __future__ import annotations

import re

_CONTACT = r"(?:微信|威信|薇信|[vｖ]信|vx|qq|扣扣)"
_ADD_CONTACT = rf"[加➕][^，。！？]{{0,4}}{_CONTACT}"
_ADVERTISEMENT = re.compile(
    rf"""
    (?:请|欢迎|有意|需要|想[要买学]|详情|咨询|代理|批发|兼职|赚钱) [^。！？]{{0,20}} {_ADD_CONTACT}       # 需要的加我微信
  | {_ADD_CONTACT} [^。！？]{{0,12}} (?:领取|详聊|咨询|了解|优惠|发货|代理|进群)                           # 加微信领取
  | ^ {_ADD_CONTACT} .{{0,4}} $                                                                          # 加我微信
  | 转发 [^。！？]{{0,12}} 抽奖                                                                           # 转发此微博抽奖
  | (?:淘宝|天猫|旗舰) [^。！？]{{0,6}} (?:店铺|下单|有售)                                                 # 淘宝店铺
  | 领(?:取)?优惠券                                                                                      # 领取优惠券
  | 全国包邮
  | 代购 [^。！？]{{0,8}} 联系                                                                            # 代购请联系
  | 招代理
  | 点击 [^。！？]{{0,6}} 链接                                                                            # 点击下面的链接
  | 扫 [^。！？]{{0,4}} 二维码 [^。！？]{{0,10}} (?:领|加|关注)                                            # 扫码二维码加群
  | 公众号 [^。！？]{{0,8}} (?:领取|抽奖|免费)                                                             # 公众号免费领
    """,
    re.IGNORECASE | re.VERBOSE,
)
_TEMPLATE = re.compile(
    r"""
    我投给了 .{0,60} 你也快来                                              # 我投给了A你也快来表态吧
  | ^ \s* (?:转发微博|轉發微博|repost) \s*+ [。！!.]*+ \s*+ $                # 转发微博
  | ^ 分享(?:图片|视频|单曲|歌曲|网页) \s* $                                # 分享图片
  | ^ 分享自 \s* [@《]                                                     # 分享自@小明
  | ^ (?:抱歉[，,])? (?:该|此)微博已                                        # 抱歉，此微博已被删除
  | 撤回了一条消息                                                         # 你撤回了一条消息
  | ^ [\[【] (?:动画表情|图片|语音|视频|文件|链接|表情|红包|转账|位置|名片) [\]】] $   # [图片]
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)


def advertisement(text: str) -> bool:
    """Whether a text asks to add a contact, to buy, or to take part in a draw."""
    return _ADVERTISEMENT.search(text) is not None


def platform_template(text: str) -> bool:
    """Whether a platform wrote a text: bare reposts, votes, shared pictures, recalled messages."""
    return _TEMPLATE.search(text) is not None
