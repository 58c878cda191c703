"""Which generations does this process listen to, and for which viewers?

There is one subscription per generation, however many viewers it has. A watchdog covers lost messages and lost workers: it
checks a generation that has been silent for too long, and ends one that nobody else will end.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from api.relay.viewer import DIVERGED, LOG_LOST, Viewer
from api.server.store_errors import answer_lost
from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreRefused, StoreUnavailable
from common.channel.base import NOBODY, START, Channel, Cursor, Feed, FrameKind, Message, State, Stop, stop_failure
from common.config.settings import Settings
from common.process.loop_lag import LoopLag, loop_lag
from common.process.process import supervised
from common.process.rhythm import next_turn
from common.queue.jobs import JobQueue, JobStatus
from common.redis.errors import is_refusal

log = structlog.get_logger()

WATCHDOG_S = 1.0
UNCLAIMED_CHECK_S = 5.0
MISSED_HEARTBEATS = 2
CHECK_BATCH = 200  # Generations per check.
# A client that comes to read is never refused for load. It only waits for its turn. If all came at once, as after a restart of
# another replica, they would hold up the loop, and with it every running stream.
JOINING_MAX = 64

_NONE_FREE = Failed(ErrorKind.DEADLINE_EXCEEDED, "No worker was free in time. Try again later.", code="deadline_exceeded")
_NONE_RUNS = Failed(
    ErrorKind.DEADLINE_EXCEEDED, "No worker of the gateway is running. Try again later.", code="deadline_exceeded"
)
_WORKER_LOST = Failed(ErrorKind.WORKER_LOST, "The answer's worker was lost. Send the request again.", code="worker_lost")


@dataclass(slots=True)
class _Subscription:
    """One generation that this process listens to."""

    subscribed: "asyncio.Future[None]"
    viewers: list[Viewer] = field(default_factory=list)
    is_claimed: bool = False
    lag: LoopLag = field(default_factory=loop_lag)
    # These moments count only the time in which this process could read: what a busy process has not read yet is no silence.
    last_heard_s: float = field(init=False)  # The last message from its worker, or the last check of the watchdog.
    last_progress_s: float = field(init=False)  # The last message from its worker, or the last check that found it unclaimed.

    def __post_init__(self) -> None:
        self.last_heard_s = self.last_progress_s = self.lag.unblocked_s

    def deliver(self, message: Message) -> None:
        # Hot path: once per message.
        self.last_heard_s = self.last_progress_s = self.lag.ticked_s
        self.is_claimed = True
        for viewer in self.viewers:
            viewer.offer(message)

    def fail(self, failed: Failed) -> None:
        for viewer in self.viewers:
            viewer.fail(failed)


class Hub:
    """All subscriptions of one API process. ``replica`` is its name among the viewers of a channel."""

    def __init__(self, channel: Channel, feed: Feed, queue: JobQueue, settings: Settings) -> None:
        self.replica = secrets.token_hex(6)
        self._channel = channel
        self._feed = feed
        self._queue = queue
        self._settings = settings
        self._subscriptions: dict[str, _Subscription] = {}
        self._watchdog: asyncio.Task[None] | None = None
        self._joining = asyncio.Semaphore(JOINING_MAX)
        self._leaving: set[asyncio.Task[None]] = set()
        feed.on_resubscribed(self._reread_all)

    def start(self) -> None:
        self._watchdog = supervised(self._watch_for_ever, "watchdog")

    async def stop(self) -> None:
        if self._watchdog:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)

    @property
    def open_viewers(self) -> int:
        return sum(len(subscription.viewers) for subscription in self._subscriptions.values())

    async def join(self, generation_id: str, after: Cursor | None = None, reader_id: str = "") -> Viewer:
        """Return a viewer that misses nothing from now on. The caller must give it back with ``leave``.

        Args:
            reader_id: the generation that the client knows, if it reads the log of another one.
        Raises:
            StoreUnavailable: the subscription could not be made.
        """
        viewer = Viewer(generation_id, self._channel, self._settings.viewer_buffer_bytes_max, after, reader_id)
        subscription = self._subscriptions.get(generation_id)
        if subscription:
            subscription.viewers.append(viewer)
            try:
                await asyncio.shield(subscription.subscribed)
            except BaseException:  # Also a cancellation: nobody else gives this viewer back.
                await self.leave(viewer)
                raise
            return viewer
        subscription = _Subscription(asyncio.get_running_loop().create_future(), [viewer])
        self._subscriptions[generation_id] = subscription
        try:
            await self._feed.subscribe(generation_id, subscription.deliver)
        except BaseException as error:
            self._subscriptions.pop(generation_id, None)
            subscription.subscribed.set_exception(error if isinstance(error, StoreUnavailable) else StoreUnavailable())
            subscription.subscribed.exception()  # Marks it as seen: there may be no second viewer to see it.
            raise
        subscription.subscribed.set_result(None)
        return viewer

    async def join_existing(self, generation_id: str, owner: str, after: Cursor | None = None) -> tuple[Viewer, State]:
        """Do the same as ``join`` for a generation that may have begun long ago, and return its state too.

        All clients get in, however many come, a few at a time.
        The viewer joins here before it enters the channel: another viewer of this process may leave meanwhile, and the process
        must stay a member.

        Raises:
            GatewayError: NOT_FOUND, EXPIRED.
            StoreUnavailable: the store did not answer.
        """
        async with self._joining:
            viewer, state = await self._enter(generation_id, generation_id, owner, after)
            # It reads another generation's log: listen to that one. Meanwhile it may part from it, and has its own again.
            while (log_id := state.source or generation_id) != viewer.generation_id:
                viewer.has_ended = bool(state.source)  # This process is a member of that log now.
                await self.leave(viewer)
                viewer, state = await self._enter(log_id, generation_id, owner, after)
        viewer.reread()
        return viewer, state

    async def join_shared(self, log_id: str, reader_id: str) -> Viewer:
        """Return a viewer of the log that a new generation shares. Raises as ``join_existing`` does."""
        async with self._joining:
            viewer, _ = await self._enter(log_id, log_id, NOBODY, reader_id=reader_id)
        viewer.reread()
        return viewer

    async def _enter(
        self, log_id: str, generation_id: str, owner: str, after: Cursor | None = None, reader_id: str = ""
    ) -> tuple[Viewer, State]:
        viewer = await self.join(log_id, after, reader_id or generation_id)
        try:
            return viewer, await self._channel.enter(generation_id, self.replica, owner)
        except BaseException as error:
            viewer.has_ended = isinstance(error, GatewayError)  # Refused: this process did not become a member.
            await self.leave(viewer)
            raise

    async def leave(self, viewer: Viewer) -> None:
        """Remove a viewer. If it was the last one here of a running generation, tell the channel: its policy may end it.

        Once called, it is done, also if the caller is cancelled meanwhile: a server that stops cancels its handlers.
        """
        subscription = self._subscriptions.get(viewer.generation_id)
        if subscription is None or viewer not in subscription.viewers:
            return
        subscription.viewers.remove(viewer)
        if subscription.viewers:
            return
        del self._subscriptions[viewer.generation_id]
        await self._feed.unsubscribe(viewer.generation_id)
        if not viewer.has_ended or viewer.has_parted:
            # A task of its own only here: most answers have ended, and then nothing above has waited.
            await asyncio.shield(self._in_background(self._leave_channel(viewer.generation_id, viewer.leave_reason)))

    def abandon(self, viewer: Viewer) -> None:
        """Do the same as ``leave``, without waiting for it: for a request whose store did not answer in time."""
        self._in_background(self.leave(viewer))

    def _in_background(self, leaving: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(leaving, name="leave")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _leave_channel(self, generation_id: str, reason: Stop) -> None:
        try:
            stop = await self._channel.leave(generation_id, self.replica, reason)
            if stop is not Stop.NO:
                await self.end_if_waiting(generation_id, stop_failure(stop))
        except StoreUnavailable:
            log.warning("leave_not_said", generation_id=generation_id)  # The worker will notice that nobody listens.

    async def end_if_waiting(self, generation_id: str, failed: Failed) -> bool:
        """End a generation that no worker has claimed; return whether that was so. A worker that has claimed one sees the stop
        flag.
        """
        (status,) = await self._queue.statuses([generation_id])
        if status not in (JobStatus.WAITING, JobStatus.LATE):
            return False
        await self._end_unowned(generation_id, failed)
        return True

    async def end_if_lost(self, generation_id: str) -> bool:
        """End a generation that nobody else will end, for a client that asks without listening; return whether that was so."""
        (status,) = await self._queue.statuses([generation_id])
        return await self._end_if_orphaned(generation_id, status)

    async def _end_unowned(self, generation_id: str, failed: Failed) -> None:
        # The log first, because it decides: a worker that claims the job in between finds the log ended.
        await self._channel.end_unowned(generation_id, secrets.token_hex(8), failed)
        await self._queue.withdraw(generation_id)

    def _reread_all(self) -> None:
        for subscription in self._subscriptions.values():
            for viewer in subscription.viewers:
                viewer.verify()

    # The watchdog

    async def _watch_for_ever(self) -> None:
        while True:
            await next_turn(WATCHDOG_S)
            silent_ids = self._silent_ids(loop_lag().unblocked_s)
            # After an outage that is every generation at once, and Redis has other clients to serve.
            for batch in (silent_ids[at : at + CHECK_BATCH] for at in range(0, len(silent_ids), CHECK_BATCH)):
                try:
                    await self._check(batch)
                except StoreUnavailable as error:
                    self._give_up(silent_ids, error)
                    break  # The next round asks again.

    def _give_up(self, silent_ids: list[str], error: Exception) -> None:
        """End the viewers that have waited for as long as a job may wait: nothing is known of their answer."""
        heard_before_s = loop_lag().unblocked_s - self._settings.queue_wait_s
        for generation_id in silent_ids:
            subscription = self._subscriptions.get(generation_id)
            if subscription and subscription.last_heard_s < heard_before_s:
                subscription.fail(answer_lost(error))

    def _silent_ids(self, now: float) -> list[str]:
        claimed_s = MISSED_HEARTBEATS * self._settings.heartbeat_s
        silent_ids = []
        for generation_id, subscription in self._subscriptions.items():
            limit_s = claimed_s if subscription.is_claimed else UNCLAIMED_CHECK_S
            if now - subscription.last_heard_s > limit_s and subscription.subscribed.done():
                silent_ids.append(generation_id)
        return silent_ids

    async def _check(self, generation_ids: list[str]) -> None:
        statuses, lasts = await asyncio.gather(self._queue.statuses(generation_ids), self._channel.last_ids(generation_ids))
        now = loop_lag().unblocked_s
        for generation_id, status, last in zip(generation_ids, statuses, lasts, strict=True):
            subscription = self._subscriptions.get(generation_id)
            if subscription is None:
                continue
            subscription.last_heard_s = now  # The next check comes after another silence, not in every round.
            if last is None:
                subscription.fail(LOG_LOST)
                continue
            for viewer in subscription.viewers:
                if last > viewer.tail:
                    subscription.last_progress_s = now
                    viewer.reread()
                elif last < viewer.tail and status is JobStatus.GONE and not viewer.has_ended:
                    viewer.fail(DIVERGED)  # Redis lost frames that the viewer has, and no worker is left to append them again.
            if status is not JobStatus.RUNNING:
                subscription.last_progress_s = now
            elif now - subscription.last_progress_s > self._settings.queue_wait_s:
                # Its worker renews its lease but cannot publish: Redis refuses the commands that publishing needs.
                subscription.fail(answer_lost(StoreRefused()))
            await self._end_in_batch(subscription, generation_id, status)

    async def _end_in_batch(self, subscription: _Subscription, generation_id: str, status: JobStatus) -> None:
        """End one generation of a batch if it is orphaned. A failure here must not affect the others."""
        try:
            await self._end_if_orphaned(generation_id, status)
        except StoreUnavailable as error:
            if not is_refusal(error):
                raise
            subscription.fail(answer_lost(error))  # It must end, but Redis refuses to store the end.
        except Exception:  # Its keys may hold anything, and the other generations of the batch are not to blame.
            log.exception("generation_unreadable", generation_id=generation_id)
            subscription.fail(LOG_LOST)

    async def _end_if_orphaned(self, generation_id: str, status: JobStatus) -> bool:
        failed = await self._orphan_failure(generation_id, status)
        if failed:
            log.warning("generation_ended_unowned", generation_id=generation_id, place=status, kind=failed.kind)
            await self._end_unowned(generation_id, failed)
        return failed is not None

    async def _orphan_failure(self, generation_id: str, status: JobStatus) -> Failed | None:
        """Return why a generation must be ended here; None if a worker has it or will get it, or if it has ended."""
        match status:
            case JobStatus.LATE:
                return _NONE_FREE if self._queue.workers_alive else _NONE_RUNS
            case JobStatus.ABANDONED:
                return _WORKER_LOST
            case JobStatus.GONE:
                return None if await self._has_end(generation_id) else _WORKER_LOST
            case _:
                return None

    async def _has_end(self, generation_id: str) -> bool:
        last = (await self._channel.last_ids([generation_id]))[0]
        if last == START:
            return False
        frames = await self._channel.read(generation_id, last.before(), 1) if last else []
        return not frames or frames[-1].kind is FrameKind.END
