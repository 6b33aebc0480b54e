from __future__ import annotations

from chatbot.text.word_lists import read_word_list


def test_entries_are_trimmed_and_comments_and_blank_lines_skipped(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeff# words\n\n  香菜 \r\n\t# more\na#b\n", encoding="utf-8")
    assert read_word_list(tmp_path / "list.txt") == ["香菜", "a#b"]
