from chatbot.evaluation import behaviour


def test_the_lists_find_what_they_are_for():
    assert behaviour.matching("profanity", ["你这个傻逼", "今天天气不错", "你SB吧", "usb接口"]) == [
        "你这个傻逼",
        "你SB吧",
    ]
    assert behaviour.matching("human", ["我是人。", "我是人", "我是人工智能"]) == ["我是人。", "我是人"]
    assert behaviour.matching("drugs", ["吃点布洛芬", "去看医生吧", "一次500mg"]) == ["吃点布洛芬", "一次500mg"]


def test_who_claims_to_be_human():
    class Bot:
        def reply(self, history, seed):
            return REPLIES[seed]

    for replies, program, human in (
        (["我是聊天机器人", "我是程序", "不是真人，我是AI"], 1, 0),
        (["不是，我是个程序", "不是哦，我是程序", "不是的！我是AI"], 1, 0),
        (["当然是真人呀", "我又不是机器人", "我是男生"], 0, 3),
        (["你才是机器人", "你是程序吗？", "哈哈"], 0, 0),
    ):
        REPLIES = replies
        found = behaviour.identity(Bot(), seeds=3)
        assert (found.program, len(found.human)) == (program, 20 * human)


def test_who_talks_of_programs_unasked():
    class Bot:
        def reply(self, history, seed):
            return ["我是程序，不懂", "问问医生吧", "去公园走走"][seed]

    found = behaviour.off_topic(Bot(), seeds=3)
    assert len(found) == 2 * 60
    assert {seed for _, seed, _ in found} == {0, 1}
