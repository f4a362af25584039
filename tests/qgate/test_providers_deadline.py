"""A deadline that moves: which bound ends what is inside, and which does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from qgate.capability.providers.deadline import Deadline

LONG = 60.0
SHORT = 0.01

Inside = Callable[[Deadline], Awaitable[None]]


async def waiting(deadline: Deadline) -> None:
    await asyncio.get_running_loop().create_future()


async def within(deadline: Deadline, inside: Inside = waiting) -> None:
    async with deadline:
        await inside(deadline)


async def test_the_first_part_may_be_what_takes_too_long() -> None:
    deadline = Deadline(LONG, "all", SHORT, "the first part")
    with pytest.raises(TimeoutError):
        await within(deadline)
    assert deadline.expired
    assert deadline.what == "the first part"


async def test_a_part_that_is_given_more_time_has_it_and_a_later_one_less() -> None:
    async def parts(deadline: Deadline) -> None:
        deadline.within(LONG, "the second part")
        await asyncio.sleep(3 * SHORT)
        deadline.within(SHORT, "the third part")
        await waiting(deadline)

    deadline = Deadline(LONG, "all", SHORT, "the first part")
    with pytest.raises(TimeoutError):
        await within(deadline, parts)
    assert deadline.what == "the third part"


async def test_everything_ends_in_time_whatever_its_parts_are_allowed() -> None:
    async def unhurried(deadline: Deadline) -> None:
        deadline.unhurried()
        await waiting(deadline)

    deadline = Deadline(2 * SHORT, "all", SHORT, "the first part")
    with pytest.raises(TimeoutError):
        await within(deadline, unhurried)
    assert deadline.what == "all"


async def test_what_ends_in_time_is_left_alone() -> None:
    async def at_once(deadline: Deadline) -> None:
        return

    deadline = Deadline(LONG, "all", SHORT, "the first part")
    await within(deadline, at_once)
    await asyncio.sleep(3 * SHORT)
    assert not deadline.expired


async def test_being_cancelled_is_no_lack_of_time() -> None:
    task = asyncio.create_task(within(Deadline(LONG, "all", LONG, "the first part")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_inside_is_not_hidden() -> None:
    async def failing(deadline: Deadline) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await within(Deadline(LONG, "all", LONG, "the first part"), failing)
