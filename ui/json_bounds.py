"""Bound on the number of values in JSON from a client, counted before the JSON is parsed.

Parsing holds Python's lock, and every list and object that it makes can start a run of the garbage collector. A body of a
million empty lists would hold up all other requests for seconds.
"""

from __future__ import annotations

MARKS = (b"[", b"{", b",")
MAX_MARKS = 50_000
"""Largest number of opening brackets, opening braces and commas outside of strings. The largest conversation of the page
(4,000 messages with all fields) has about 44,000; a request to the API with many tools has a few thousand."""


def has_too_many_values(body: bytes) -> bool:
    """Whether JSON in UTF-8 has more than `MAX_MARKS` opening brackets, opening braces and commas outside of its strings.

    The count is exact up to the first fault of the JSON, where every parser stops.
    """
    if sum(map(body.count, MARKS)) <= MAX_MARKS:  # also with those inside of strings, which is quicker to count
        return False
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 4 * (MAX_MARKS + 1):  # values after the first have a mark, and 4 quotes with their keys
        return True
    outside = b"".join(unescaped.split(b'"')[::2])
    return sum(map(outside.count, MARKS)) > MAX_MARKS
