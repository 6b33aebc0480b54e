"""Bodies that arrive take turns, so that a small request between them waits for one part, not for one part of each."""

from __future__ import annotations

import asyncio
import itertools

from ui.server.limits import ArrivingBytes, BodyReader, Turns

BODIES, PARTS = 20, 10


class Body:
    """A body whose parts all wait to be received; it notes which body each part was of, in `received`."""

    def __init__(self, name: int, received: list[int]):
        self.name, self.received, self.left = name, received, PARTS

    async def receive(self):
        self.received.append(self.name)
        self.left -= 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": self.left > 0}


async def read_all(turns: Turns, received: list[int]) -> list[bytes | None]:
    arriving = ArrivingBytes(2**20)
    readers = [BodyReader(Body(name, received).receive, turns) for name in range(BODIES)]
    return await asyncio.gather(*(reader.read(2_000, "1000", 5, arriving, True) for reader in readers))


def test_one_part_is_received_in_a_round_of_the_event_loop():
    received: list[int] = []

    async def run() -> list[int]:
        reading = asyncio.create_task(read_all(Turns(), received))
        sizes = []
        while not reading.done():
            sizes.append(len(received))
            await asyncio.sleep(0)  # one round
        assert await reading == [b"x" * 100 * PARTS] * BODIES
        return sizes

    sizes = asyncio.run(run())
    after_first_parts = [size for size in sizes if size >= BODIES]
    assert max(b - a for a, b in itertools.pairwise(after_first_parts)) == 1


def test_the_body_that_began_first_is_complete_first():
    received: list[int] = []
    asyncio.run(read_all(Turns(), received))
    assert received[BODIES:] == [name for name in range(BODIES) for _ in range(PARTS - 1)]


def test_a_body_that_is_given_up_leaves_its_turn_to_the_others():
    async def run() -> None:
        turns = Turns()
        leaving, staying = (asyncio.create_task(turns.wait(turns.number())) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        async with asyncio.timeout(5):
            await staying
            await turns.wait(0)

    asyncio.run(run())


def test_a_body_that_came_too_slowly_takes_turns_when_it_is_thrown_away():
    """Its turn of before has the same number."""

    async def run() -> None:
        turns = Turns()
        number = turns.number()
        late = asyncio.create_task(turns.wait(number))
        await asyncio.sleep(0)
        late.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(turns.wait(number), turns.wait(turns.number()))

    asyncio.run(run())
