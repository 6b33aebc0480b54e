"""Cleaning rules for a turn: pure functions of its text, each with a name and a switch.

The rules are those of LCCC (Wang et al. 2020, "A Large-Scale Chinese Short-Text Conversation Dataset", arXiv
2008.03946, section 3) and of clean-dialog, the program that made LCCC. A *normaliser* removes or replaces parts of a
turn, a *filter* removes the whole turn. Tests check on arbitrary Unicode that

* a rule never raises and is idempotent: applying it twice equals applying it once;
* a normaliser never makes a turn longer. It maps characters one to one (`full_width`, `punctuation`), maps several to
one (`markup`, `repeats`) or removes them. `traditional` is the exception, because OpenCC does the conversion.

The order in `NORMALISERS` matters: a rule that uncovers something comes before the rule that looks for it.
"""

from __future__ import annotations

from chatbot.text.characters import control_characters, full_width, simplified
from data_prep.cleaning.characters import (
    no_chinese,
    punctuation,
    spaced_letters,
)
from data_prep.cleaning.platform_marks import (
    bracket_faces,
    emails,
    emoji,
    hashtags,
    kaomoji,
    markup,
    mentions,
    reply_marks,
    repost_marks,
    urls,
)
from data_prep.cleaning.private_data import contacts, id_numbers, long_codes, phone_numbers
from data_prep.cleaning.repetition import repeats
from data_prep.cleaning.rule import FilterRule, NormaliserRule
from data_prep.cleaning.unwanted_turns import advertisement, platform_template

NORMALISERS = (
    NormaliserRule(
        "control_characters",
        "remove zero-width, control and replacement characters; turn any white space into a space",
        apply=control_characters,
    ),
    NormaliserRule(
        "spaced_letters",
        "join letters and digits if spaces separate all characters: `1 8 岁` becomes `18岁`",
        is_on=False,
        apply=spaced_letters,
    ),
    NormaliserRule(
        "full_width", "turn full-width letters and digits into ASCII; keep Chinese punctuation", apply=full_width
    ),
    NormaliserRule(
        "traditional", "turn traditional characters into simplified (OpenCC)", is_on=False, apply=simplified
    ),
    NormaliserRule("markup", "remove HTML tags, turn entities into characters", apply=markup),
    NormaliserRule("repost_marks", "remove weibo's `//@name: …`", apply=repost_marks),
    NormaliserRule("reply_marks", "remove `回复 @name:`", apply=reply_marks),
    NormaliserRule("emails", "remove e-mail addresses", apply=emails),
    NormaliserRule("urls", "remove web addresses", apply=urls),
    NormaliserRule("mentions", "remove `@name`, or only the mark if the end of the name is unknown", apply=mentions),
    NormaliserRule("hashtags", "remove `#topic#`; of other tags only the mark", apply=hashtags),
    NormaliserRule(
        "phone_numbers", "remove telephone numbers, but not service numbers (400, 800)", apply=phone_numbers
    ),
    NormaliserRule("id_numbers", "remove identity card and bank card numbers", apply=id_numbers),
    NormaliserRule("contacts", "remove QQ and WeChat numbers", apply=contacts),
    NormaliserRule("long_codes", "remove codes of 16 or more mixed letters and digits", apply=long_codes),
    NormaliserRule("bracket_faces", "remove faces such as `[doge]`", apply=bracket_faces),
    NormaliserRule("kaomoji", "remove faces such as `(≧▽≦)` and `T_T`", apply=kaomoji),
    NormaliserRule("emoji", "remove emoji", is_on=False, apply=emoji),
    NormaliserRule("punctuation", "turn `, ? !` after a Chinese character into `， ？ ！`", apply=punctuation),
    NormaliserRule(
        "repeats",
        "keep at most 4 equal characters and 3 equal phrases in a row; turn dots into one `…`",
        apply=repeats,
    ),
)
"""Applied in this order, repeatedly, until no rule changes anything."""

FILTERS = (
    FilterRule("no_chinese", "remove turns without a Chinese character", matches=no_chinese),
    FilterRule(
        "advertisement", "remove turns that ask to add a contact, to buy or to join a draw", matches=advertisement
    ),
    FilterRule(
        "platform_template",
        "remove bare reposts, votes, shared pictures and recalled messages",
        matches=platform_template,
    ),
)
"""A turn that one of these filters matches is removed; `cleaner` has the filters that need settings or the turn before."""
