"""The findings of the first attack (2026-11-29, commit 020f5e7), and the tests that hold their mends.

Each of these tests failed at that commit. `tests/attack/test_findings.py` checks that all of them exist, and
`python -m tests.attack.figures` runs them: a row of its table is a finding, an attempt is a case of a test.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.attack.target import Row
from tests.conftest import ROOT

FILES, BOUNDS, ORIGINS = (f"ui/server/test_{name}.py" for name in ("files", "bounds", "origins"))
FOLDERS, TEMPLATES = "chatbot/checkpoint/test_hostile_folders.py", "chatbot/text/test_template_sandbox.py"
TOKENIZER_FILE, SAVED = "chatbot/text/test_tokenizer_file.py", "training/test_saved_state_files.py"
FORMATS, RULES, PAGE = "data_prep/test_formats.py", "chatbot/safety/test_rules.py", "ui/page/test_page_bounds.py"

FINDINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "A1": (
        "whoever reaches the page reads any file",
        (
            f"{FILES}::test_a_named_file_reaches_no_function",
            f"{FILES}::test_gradio_itself_refuses_a_file_that_nobody_uploaded",
            f"{FILES}::test_routes_that_the_page_does_not_use_are_closed",
            f"{FILES}::test_what_names_a_file",
        ),
    ),
    "A2": (
        "whoever reaches the page deletes files",
        (
            f"{FILES}::test_a_named_file_reaches_no_function",
            f"{FILES}::test_state_saved_for_links_is_not_read",
            f"{FILES}::test_the_page_needs_no_folder_of_files",
        ),
    ),
    "A3": (
        "other web sites use the server",
        (
            f"{ORIGINS}::test_other_names_are_refused",
            f"{ORIGINS}::test_a_rebound_name_reaches_no_function",
            f"{ORIGINS}::test_other_sites_change_and_compute_nothing",
            f"{ORIGINS}::test_no_cors_unless_asked_for",
            f"{ORIGINS}::test_every_answer_has_the_security_headers",
            f"{ORIGINS}::test_cookies_are_lax",
            "test_browser_origins.py::test_a_foreign_page_reads_and_posts_nothing",
            "test_browser_origins.py::test_a_foreign_page_frames_nothing",
            "test_browser_origins.py::test_a_rebound_name_gets_nothing",
        ),
    ),
    "A4": (
        "people in need get no help line",
        (
            f"{RULES}::test_spelling_does_not_hide_it",
            f"{RULES}::test_ordinary_sentences_do_not_trigger_it",
            f"{RULES}::test_lists_that_were_held_out",
            f"{RULES}::test_need_lasts_until_talk_has_moved_on",
            "chatbot/safety/test_hidden.py::test_a_harmless_context_hides_no_clear_sentence",
            "chatbot/safety/test_respelled.py::test_another_spelling_hides_nothing",
            "chatbot/safety/test_histories.py::test_replies_in_a_state_of_need_have_no_means_numbers_or_farewells",
            "chatbot/safety/test_lists.py::test_no_sentence_of_a_list_that_is_only_measured_is_trained_on",
        ),
    ),
    "A5": (
        "anybody fills the disk",
        (
            f"{FILES}::test_uploads_leave_nothing",
            f"{PAGE}::test_the_feedback_file_is_bounded",
            f"{PAGE}::test_a_line_of_feedback_is_bounded",
            f"{PAGE}::test_invented_replies_are_not_recorded",
            f"{PAGE}::test_a_rating_does_not_wait_for_the_whole_file",
        ),
    ),
    "A6": (
        "training crashes on a slow machine",
        (
            "training/test_throughput.py::test_a_product_slower_than_the_measurement_is_measured_all_the_same",
            "training/test_throughput.py::test_a_useless_peak_leaves_utilisation_out_of_the_metrics",
        ),
    ),
    "A7": (
        "bodies are held before credentials are checked",
        (
            f"{BOUNDS}::test_credentials_are_checked_before_the_body_is_read",
            f"{BOUNDS}::test_all_arriving_bodies_have_one_bound",
            f"{BOUNDS}::test_strangers_may_send_less",
            f"{BOUNDS}::test_gets_count_too",
            f"{ORIGINS}::test_a_body_where_none_belongs_is_not_read",
        ),
    ),
    "A8": (
        "large page messages hold up everybody",
        (
            f"{PAGE}::test_what_is_too_large_is_refused_by_every_function",
            f"{PAGE}::test_long_messages_are_refused_before_they_are_tokenized",
            f"{BOUNDS}::test_a_conversation_of_four_mebibytes_costs_little_on_the_page",
            "ui/page/test_queue.py::test_results_that_no_browser_reads_are_bounded",
        ),
    ),
    "A9": (
        "prepare: bombs and logs without headers",
        (
            "chatbot/text/test_packed_files.py::test_a_small_file_with_much_content_takes_bounded_memory",
            f"{FORMATS}::test_a_chat_log_without_headers_is_read_in_linear_time",
            f"{FORMATS}::test_a_line_without_end_stops_the_build_soon_and_in_bounded_memory",
            f"{FORMATS}::test_messages_and_dialogues_without_end_are_cut",
        ),
    ),
    "A10": (
        "files of a checkpoint from elsewhere: special tokens, templates, nesting, bombs, sizes",
        (
            "chatbot/text/test_tokenizer.py::test_a_file_from_elsewhere_does_not_turn_typed_text_into_special_tokens",
            f"{TOKENIZER_FILE}::test_a_file_that_asks_for_padding_or_truncation_gets_neither",
            f"{TOKENIZER_FILE}::test_bombs_are_refused_and_named",
            f"{TOKENIZER_FILE}::test_patterns_that_can_backtrack_are_not",
            f"{TEMPLATES}::test_hostile_templates_end_in_a_sentence",
            f"{FOLDERS}::test_damaged_files_end_in_a_sentence",
            f"{FOLDERS}::test_absurd_sizes_are_refused_before_memory_is_taken",
            "chatbot/checkpoint/test_foreign_folders.py::test_a_folder_from_elsewhere_is_refused_in_a_sentence_or_answers",
        ),
    ),
    "A11": (
        "terminal and Python give other replies than the page and the API",
        (
            "ui/test_same_replies.py::test_thirty_three_replies",
            "training/test_training.py::test_a_run_keeps_the_banned_words_of_its_start",
        ),
    ),
    "A12": (
        "checkpoints ask for code",
        (
            f"{FOLDERS}::test_keys_that_name_code_are_not_read",
            f"{FOLDERS}::test_keys_of_an_adapter_that_name_code_are_not_read",
            f"{FOLDERS}::test_quantized_weights_are_refused",
        ),
    ),
    "A13": (
        "library, configs, templates, saves, routes, log, links",
        (
            "chatbot/native/test_library.py::test_the_folder_is_private",
            "chatbot/native/test_library.py::test_what_others_can_write_is_not_loaded",
            "chatbot/native/test_library.py::test_a_library_without_our_symbols_is_not_an_error",
            f"{FOLDERS}::test_numbers_that_are_none",
            f"{FOLDERS}::test_sizes_out_of_proportion_are_refused",
            f"{FOLDERS}::test_weights_that_lie_are_refused",
            f"{TEMPLATES}::test_usual_templates_render_as_in_transformers",
            "training/test_training.py::test_a_flipped_bit_in_a_save_is_noticed",
            f"{SAVED}::test_damaged_progress_is_refused",
            f"{SAVED}::test_a_damaged_optimizer_of_a_state_without_checksums_ends_in_a_sentence",
            "training/test_identity.py::test_another_checkpoint_of_the_same_name_is_noticed",
            f"{BOUNDS}::test_a_log_in_opens_the_page_and_a_key_the_api",
            f"{BOUNDS}::test_a_refusal_reaches_a_client_that_sends_its_whole_body_first",
            f"{BOUNDS}::test_malformed_calls_leave_no_text_in_the_log",
            f"{BOUNDS}::test_a_conversation_in_the_log_cannot_be_recognized",
            f"{FORMATS}::test_links_that_leave_a_folder_are_refused",
        ),
    ),
}

BESIDE = {
    "files of a hub's server and names of models": ("chatbot/checkpoint/test_hostile_hub.py",),
    "a folder from elsewhere in the training view": ("ui/studio/test_hostile_folder.py", "ui/studio/test_local.py"),
    "long chats: undo, edit, overflow, eviction": (
        "chatbot/chat/test_prefix_reuse.py",
        "chatbot/chat/test_histories.py",
    ),
    "compiled and torch decoding give the same tokens": ("chatbot/decoding/test_native_draw.py",),
    "C code under AddressSanitizer and UBSan": ("chatbot/native/test_sanitizers.py",),
}
"""Promises of the table of the first attack, and promises of later attacks, that have tests beside the code."""


def run_tests(row: Row, tests: tuple[str, ...], folder: Path) -> None:
    """Run tests in a process and count each case as an attempt; a case that is skipped is none."""
    report = folder / "report.xml"
    names = [str(ROOT / "tests" / test) for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, f"--junitxml={report}", *names], cwd=ROOT, capture_output=True, text=True)
    if not report.is_file():
        row.check(False, done.stdout[-200:])
        return
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            bad = case.find("failure") is not None or case.find("error") is not None
            row.check(not bad, f"{case.get('classname')}::{case.get('name')}")
