"""Parts of chat exports that are not speech: quotations, system messages, placeholders of pictures and files."""

from __future__ import annotations

import re

_PICTURES = (
    "图片|圖片|照片|相片|表情|表情包|動畫表情|动画表情|贴图|貼圖|自定义表情|商城表情|动画|视频|影片|短视频|小视频|语音|語音"
    "|语音消息|語音訊息|图片消息|视频消息|表情消息|闪照|スタンプ|写真|動画|ボイスメッセージ|アルバム"
    "|GIF|Photo|Picture|Image|Sticker|Video|Voice|Voice message|Audio|Animation|Emoji"
)
"""Names of attachments beside which a message can hold text."""
_THINGS = (
    "文件|檔案|链接|連結|位置|地理位置|实时位置|位置共享|红包|紅包|QQ红包|微信红包|口令红包|拼手气红包|转账|轉帳|向你转账|向您转账"
    "|微信转账|名片|个人名片|聊天记录|合并转发|转发|转发消息|小程序|音乐|音樂|卡片消息|卡片|分享|视频号|公众号|语音通话|视频通话"
    "|語音通話|視訊通話|通话|群公告|群收款|接龙|投票|拍一拍|系统消息|不支持的消息|未知消息|应用消息|引用消息|礼物|日历|记事本"
    "|戳一戳|窗口抖动|离线文件|ファイル|位置情報|連絡先|連絡先情報|プレゼント|File|Link|Location|Contact|Call|Poll|Gift"
)
"""Names of attachments that are followed by a title. The whole line is removed."""

_PICTURE = re.compile(rf"[\[【](?:{_PICTURES})(?:[\s:：][^\]】\n]{{0,200}})?[\]】]", re.IGNORECASE)
_THING = re.compile(rf"\s*[\[【](?:{_THINGS})(?:[\s:：/][^\]】\n]{{0,200}})?[\]】].*", re.IGNORECASE)

_SYSTEM = re.compile(
    r"""
    .{0,60}(?:撤回了|收回了?|撤回)(?:了)?一[条則则](?:消息|訊息|成员消息).*     # "小海" 撤回了一条消息
    | ["“「].{1,40}["”」]\s?拍了拍.{1,40}                                        # "小海" 拍了拍你
    | [你我]\s?拍了拍\s?(?:自己.{0,12}|["“「].{1,40})                         # 我拍了拍 "小海"
    | .{0,20}(?:☎|📞).{0,40}                                                     # ☎ 通話時間 0:35
    | .{0,4}(?:通話時間|通话时间|未接來電|未接来电).{0,20}
    | .{0,60}(?:成功)?接收了.{0,10}(?:离线文件|文件).{0,80} # 对方已成功接收了您发送的离线文件“合影.jpg”
    | (?:这条|此|该|這則|此則)?(?:消息|訊息|信息)(?:已|已被|已經)(?:删除|刪除|撤回).?
    | (?:您|你)(?:已)?(?:删除|刪除|收回)了?(?:此|这条|這則|该)?(?:消息|訊息|信息)。?
    | .{0,30}(?:已收回|收回了|收回)(?:了)?(?:訊息|消息|一条消息)。?
    | 已读(?:\s?\d+)? | 未读(?:\s?\d+)? | 既読 | 已送达
    | null | \{(?:Attachments|Reactions|Embed|Stickers|Inline\ Emotes)\}
    | .{0,60}(?:创建了(?:群组|群聊|群)|将您添加到群组|将你添加到群组|退出了群组|加入了群组|更改了群组).{0,60}
    | .{0,60}has\ (?:joined|left)\ the\ (?:channel|group).{0,20}
    | .{0,60}(?:邀请|邀請).{1,60}(?:加入|进入|進入)了?(?:群聊|群|群組|讨论组).*  # 你邀请"小红"加入了群聊
    | .{0,60}(?:加入|退出|移出|离开)了?(?:群聊|本群|该群|群組)[。.]?
    | .{0,60}(?:修改|更改)群(?:名|名称|聊名称).{0,60}
    | (?:你|您)?已(?:经)?(?:添加|加)了?.{1,60}(?:现在可以开始聊天|作为好友).*   # 你已添加了小海，现在可以开始聊天了。
    | (?:我们|你们)?已(?:经)?(?:是|成为)好友.{0,40}(?:聊天|吧|了)?.{0,20}
    | 我通过了(?:你|您)的(?:朋友|好友)验证请求.*
    | 以上是打招呼的(?:内容|消息)。?
    | .{0,60}(?:开启了|关闭了|启用了)(?:朋友验证|消息免打扰|限时消息|阅后即焚).*
    | 收到(?:红包|转账|一条微信转账|一个红包).{0,60}(?:手机|查看|确认).*
    | .{0,30}(?:领取了|领取了你的|领取你的|领取了你发的)红包.{0,20}
    | (?:对方|对方已|已|您已)?(?:取消|拒绝|挂断|无应答|忙线|忙线中|未接听|未接通|已取消|已拒绝)(?:通话|接听)?[。.]?
    | (?:通话|聊天|语音|视频)(?:时长|已结束|已取消|中断|结束)[\s:：]?[\d:：]*.{0,10}
    | (?:未接|已取消的?)(?:语音|视频|来电|通话).{0,20}
    | (?:消息|訊息|信息)(?:和|與|与)(?:通话|通話).{0,20}(?:加密|端到端).*
    | Messages\ and\ calls\ are\ end-to-end\ encrypted.*
    | (?:This\ message\ was\ deleted|You\ deleted\ this\ message|此(?:消息|訊息)已(?:被)?(?:删除|刪除)|你删除了此消息)[.。]?
    | Missed\ (?:voice|video)\ call.{0,40} | (?:Voice|Video)\ call.{0,40}
    | .{0,60}(?:unsent\ a\ message|joined\ the\ (?:chat|group)|left\ the\ (?:chat|group)|pinned\ a\ message).{0,40}
    | (?:<\?xml|<msg|<sysmsg|<appmsg|<revokemsg|<voipmsg|<img\s|<emoji\s).*
    | 暂不支持.{0,20}(?:消息|类型|查看).* | \[?该消息类型暂不(?:能展示|支持).*
    """,
    re.VERBOSE | re.IGNORECASE,
)
_OMITTED = re.compile(
    r"""
    [<‹]?(?:图像|圖像|图片|照片|视频|影片|音频|音訊|文档|文件|贴图|貼圖|GIF|联系人卡片|媒体文件|媒體)(?:已忽略|已略過|已略去|已省略)[>›]?
    | .*[<‹](?:附件|attached|已附加)\s?[:：].*
    | \S+\.\w{2,5}\s\((?:file\ attached|文件附件|附件|檔案附件|文件已附加)\)
    | (?:位置|Location|地点|实时位置)\s?[:：]\s?https?://\S+
    | (?:https?|ftp)://\S+
    | /(?:[^/\n]{1,120}/){1,20}[^/\n]{1,120}\.\w{2,5}                                # the path of an attachment
    | \(-\s.{1,200}\s-\)                                                            # a reaction in Signal: (- 小秦: 😂 -)
    | (?:Loved|Liked|Disliked|Laughed|Emphasized|Questioned)\ by\ .{1,60}
    | <?(?:省略|忽略|略過)(?:多媒体|多媒體|影音|媒体|媒體)(?:文件|檔案|内容|內容)?>?
    | <?(?:Media|image|video|audio|sticker|GIF|document|Contact\ card)\ omitted>?
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_QUOTE = re.compile(
    r"""
    \s*(?:
      (?:引用|回复|Quote|Replying\ to)\s?[:：].*                    # 引用:小海:周末去爬山吗
    | [\[【](?:引用|回复|Reply)(?:[\s:：][^\]】\n]{0,300})?[\]】]   # [回复 小海: 周末去爬山吗]
    | 「[^「」\n]{1,40}[:：][^\n]*」\s*                              # 「小海：我马上到」
    | [-—－\s]{9,}                                                  # - - - - - - - - - -
    | ┌.* | │.* | └.*
    )
    """,
    re.VERBOSE,
)
_LINK_FIELD = re.compile(r"\s*(?:title|description|url|name|desc|des|thumburl|appname)\s*[:：].*", re.IGNORECASE)
_EDITED = re.compile(r"(?:(?<!\s)\s++|)[<‹](?:这条消息已经过编辑|此訊息已編輯|已编辑|This message was edited)[>›]\s*$")
_MARKUP = re.compile(
    r"!\[[^\]\n]{0,200}\]\([^()\n]{0,500}\)"  # a picture in Markdown
    r"|<a?:\w{1,40}:\d+>"  # an emoji of Discord
    r"|<[@#!][\w|!&-]{1,60}>|<https?://[^<>\n]{1,2000}>"  # a mention or link of Slack
    r"|(?<![\w:]):[a-z][a-z0-9_+-]{1,30}:(?![\w:])"  # :ramen:
    r"|\[(?:[\u4e00-\u9fff]{1,4}|[A-Za-z]{1,10})\]"  # a face of QQ or WeChat: [捂脸], [OK]
)
_MENTION = re.compile(r"^(?:@[^\s@]{1,30}[\u2005\s]\s*)+")
_REACTIONS = re.compile(r"(?:Tapbacks|Reactions)\s?:|\{(?:Attachments|Reactions|Embed|Stickers)\}")
"""Line of an export after which reactions or attachments are listed, until the next message."""
MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
"""Invisible marks of direction. WhatsApp begins its notices with one."""


def is_system(text: str) -> bool:
    """Whether a text is a message of the program, such as a withdrawn message or a call."""
    return _SYSTEM.fullmatch(text.strip(MARKS + ' \t"“”')) is not None or _SYSTEM.fullmatch(text.strip()) is not None


def speech(text: str) -> str:
    """Return the lines of a message that a person said: without quotations, placeholders and system messages."""
    if not text or text[0] in MARKS:
        return ""
    lines: list[str] = []
    in_attachment = False  # behind [链接] stand its title, its address and so on, one per line
    for line in text.split("\n"):
        line = _EDITED.sub("", line.strip(MARKS + " \t\r\0")).strip(MARKS)
        if _REACTIONS.fullmatch(line):
            break
        if in_attachment and (not line or _LINK_FIELD.fullmatch(line)):
            continue
        in_attachment = _THING.fullmatch(line) is not None
        if in_attachment or not line or line.startswith(">") or _OMITTED.fullmatch(line) or is_system(line):
            continue
        quote = _QUOTE.match(line)
        if quote:
            line = line[quote.end() :].strip()
        line = _MENTION.sub("", _PICTURE.sub("", _MARKUP.sub("", line)).strip(MARKS + " "))
        if line:
            lines.append(line)
    return "\n".join(lines)
