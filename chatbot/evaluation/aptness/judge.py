"""A language model as judge, behind any OpenAI-compatible endpoint, which rates replies in both orders."""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from chatbot.errors import XianliaoError, first_line, shown
from chatbot.evaluation.aptness.scores import HIGHEST
from chatbot.evaluation.aptness.sheets import Key, sheet_lines
from chatbot.language.translation import translate
from chatbot.storage import append_row, resume_rows

API_KEY = "OPENAI_API_KEY"
"""Environment variable with the key of the endpoint."""

ATTEMPTS, SECONDS, WORKERS = 4, 120, 4
"""Attempts per question, seconds until an attempt ends, and questions at a time."""

MAX_ANSWER_BYTES = 1 << 20
"""Maximum size of an answer; scores need a few hundred bytes."""

INSTRUCTIONS = """你是一位严格的评委。下面是一段两个人的日常聊天，最后一句在等回复；后面是几条候选回复。
请给每条候选回复打分：
0 分：不通顺、答非所问、前后矛盾、弄反了意思或人物，或者与聊天无关；
1 分：说得过去，但空泛、牵强或有小毛病；
2 分：通顺、对题，正常人会这样接。
只看它接得好不好，不看长短和文采。只输出一个 JSON 整数列表，按候选的顺序，例如 [0,2,1]。"""


class JudgeError(XianliaoError):
    """The judge cannot be reached, or its answer does not have the required form."""


class RedirectError(JudgeError):
    """The endpoint redirects to another address; further attempts would not help."""


Ask = Callable[[str], str]
"""Function that sends a question to a judge and returns the text of the answer."""


def endpoint(url: str, model: str) -> Ask:
    """Return a function that asks an OpenAI-compatible endpoint.

    Args:
        url: Base address, which usually ends with /v1.
        model: Name of the model.

    Raises:
        JudgeError: The address is not one of http or https.
    """
    if not re.match(r"https?://[^/\s]+", url):
        raise JudgeError(f"--judge must be an address like http://127.0.0.1:8000/v1, got {url!r}.")
    return partial(_post, f"{url.rstrip('/')}/chat/completions", model)


def _post(url: str, model: str, question: str) -> str:
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": question}]
    body = json.dumps({"model": model, "messages": messages, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json"}
    if os.environ.get(API_KEY):
        headers["Authorization"] = f"Bearer {os.environ[API_KEY]}"
    request = urllib.request.Request(url, body, headers)
    answer = json.loads(_within(SECONDS, partial(_answer_to, request)))
    return str(answer["choices"][0]["message"]["content"])


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """Handler that refuses redirects: the request with the key would be sent to an address that the user did not give."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> NoReturn:
        target = shown(headers.get("Location", ""))
        raise RedirectError(
            f"The endpoint redirects to {target}, and the key is sent to no address but --judge. Give the final address"
            " with --judge."
        )

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _answer_to(request: urllib.request.Request) -> bytes:
    with urllib.request.build_opener(_RefuseRedirects).open(request, timeout=SECONDS) as response:
        data: bytes = response.read(MAX_ANSWER_BYTES + 1)
    if len(data) > MAX_ANSWER_BYTES:
        raise JudgeError(f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
    return data


def _within(seconds: float, call: Callable[[], bytes]) -> bytes:
    """Return the result of a call, which runs in a separate thread.

    The timeout of a socket limits one read only, so an endpoint that sends a byte now and then could keep a call forever.

    Raises:
        TimeoutError: The call has not ended after `seconds`; its thread runs on, and does not delay the exit.
    """
    result: Future[bytes] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError:
        if result.done():  # the error of the call itself
            raise
        raise TimeoutError(f"no whole answer within {seconds:g} seconds") from None


def question_of(context: Sequence[str], replies: Sequence[str]) -> str:
    """Return the question about one row, with the speakers as 甲 and 乙."""
    last = len(context) - 1  # the last turn is 甲's, the reply is 乙's
    turns = [f"{'甲乙'[(last - index) % 2]}：{turn}" for index, turn in enumerate(context)]
    numbered = [f"{number}. {reply}" for number, reply in enumerate(replies, 1)]
    return "\n".join(["聊天：", *turns, "", "乙的候选回复：", *numbered])


def parse_answer(text: str, count: int) -> list[int]:
    """Return the last list of `count` scores in an answer.

    Raises:
        JudgeError: The answer has no such list.
    """
    for numbers in reversed(re.findall(r"\[[\d,，\s]*\]", text)):
        scores = [int(number) for number in re.findall(r"\d+", numbers)]
        if len(scores) == count and max(scores, default=0) <= HIGHEST:
            return scores
    raise JudgeError(f"The judge did not answer with {count} scores from 0 to {HIGHEST}, but with {text[:80]!r}.")


def rate(key: Key, sheet: int, ask: Ask, path: Path, pause: float = 1.0) -> None:
    """Let a judge rate a sheet and append the ratings to a file; rows that are in the file already are skipped.

    Args:
        key: The key; the judge sees only its contexts and replies.
        sheet: Number of the sheet.
        ask: The judge.
        path: File of the ratings.
        pause: Seconds before the second attempt, doubled for each further one.

    Raises:
        JudgeError: The judge failed `ATTEMPTS` times or redirects; the ratings so far are in the file.
    """
    done = _rated(path)
    lines = [line for line in sheet_lines(key, sheet) if line["id"] not in done]

    def scores_of(line: dict) -> dict:
        given = _ask(ask, line["context"], line["replies"], pause)
        swapped = _ask(ask, line["context"], line["replies"][::-1], pause)[::-1]
        return {"sheet": sheet, "id": line["id"], "scores": given, "reversed": swapped}

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(scores_of, line) for line in lines]
        try:
            for future in tqdm(futures, desc=translate(f"judge, sheet {sheet}"), file=sys.stderr, mininterval=1):
                append_row(path, future.result())
        finally:
            for future in futures:
                future.cancel()


def _rated(path: Path) -> set[int]:
    """Return the rows in a file of ratings; a line that a stopped run left unfinished is cut off."""
    return {row["id"] for row in resume_rows(path) if type(row.get("id")) is int}


_FAULTS = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError)
"""Exceptions that an endpoint can cause: in its connection, its headers and its JSON; JudgeError is a ValueError."""


def _ask(ask: Ask, context: Sequence[str], replies: Sequence[str], pause: float) -> list[int]:
    """Ask until the judge's answer has the required form, at most `ATTEMPTS` times."""
    question = question_of(context, replies)
    for attempt in range(ATTEMPTS):
        try:
            return parse_answer(ask(question), len(replies))
        except RedirectError:
            raise
        except _FAULTS as error:
            if attempt + 1 == ATTEMPTS:
                reason = first_line(error)
                text = f"The judge failed {ATTEMPTS} times ({reason}). Check --judge; the same command continues."
                raise JudgeError(text) from None
        time.sleep(pause * 2**attempt)
    raise AssertionError("unreachable")
