import asyncio
import os
import signal

import pytest

from common.process import in_background


async def test_a_background_task_that_breaks_ends_the_process_in_order(monkeypatch: pytest.MonkeyPatch):
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, sig: signals.append((pid, sig)))

    async def breaks() -> None:
        raise RuntimeError("unexpected")

    task = in_background(breaks(), "breaks")
    with pytest.raises(RuntimeError):
        await task
    await asyncio.sleep(0)

    assert signals == [(os.getpid(), signal.SIGTERM)]


async def test_one_that_is_cancelled_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("no signal is due"))

    task = in_background(asyncio.sleep(60), "sleeps")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
