import asyncio
import os
import signal

import pytest
from structlog.testing import capture_logs

import common.process.process
from common.process.process import start_background_task, supervised


async def test_a_background_task_that_breaks_ends_the_process_in_order(monkeypatch: pytest.MonkeyPatch):
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, sig: signals.append((pid, sig)))

    async def breaks() -> None:
        raise RuntimeError("unexpected")

    with capture_logs() as logs:
        task = start_background_task(breaks(), "breaks")
        with pytest.raises(RuntimeError):
            await task
        await asyncio.sleep(0)

    assert [(line["event"], line["task"]) for line in logs] == [("background_task_broke", "breaks")]
    assert signals == [(os.getpid(), signal.SIGTERM)]


async def test_one_that_is_cancelled_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("no signal is due"))

    task = start_background_task(asyncio.sleep(60), "sleeps")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_loop_whose_turn_breaks_begins_again_and_says_so_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common.process.process, "RESTART_PAUSE_S", 0)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("no signal is due"))
    turns = 0
    is_over = asyncio.Event()

    async def loop() -> None:
        nonlocal turns
        while turns < 5:
            turns += 1
            raise ValueError("one bad answer")
        is_over.set()

    with capture_logs() as logs:
        task = supervised(loop, "patrol")
        async with asyncio.timeout(10):
            await is_over.wait()
            await task

    assert [(line["event"], line["task"]) for line in logs] == [("background_turn_broke", "patrol")]


async def test_a_loop_that_is_cancelled_ends():
    task = supervised(asyncio.Event().wait, "waits")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
