"""Which generations does this process listen to, and for which viewers?

One subscription per generation, however many viewers. The patrol is the net under lost messages and lost workers: a
generation that has been silent for too long is looked at, and one that nobody will end is ended here.
"""

import asyncio
import secrets
from dataclasses import dataclass, field

import structlog

from api.relay.viewer import DIVERGED, LOG_LOST, Viewer
from api.server.store_errors import answer_lost
from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreRefuses, StoreUnavailable
from common.channel.base import START, Channel, Cursor, Feed, FrameKind, Message, State, Stop
from common.config.settings import Settings
from common.process.loop_lag import LoopLag, loop_lag
from common.process.process import supervised
from common.queue.jobs import JobQueue, JobStatus
from common.redis.errors import is_refusal

log = structlog.get_logger()

PATROL_S = 1.0
UNCLAIMED_LOOK_S = 5.0
MISSED_HEARTBEATS = 2
LOOK_BATCH = 200  # Generations per look.
# Who comes to read is never refused for load, only waits its turn. All at once, as after a restart of another replica, they
# would hold up the loop, and with it every stream that goes on.
ENTERING_MAX = 64

_NONE_FREE = Failed(ErrorKind.DEADLINE_EXCEEDED, "No worker was free in time. Try again later.", code="deadline_exceeded")
_NONE_RUNS = Failed(
    ErrorKind.DEADLINE_EXCEEDED, "No worker of the gateway is running. Try again later.", code="deadline_exceeded"
)
_WORKER_LOST = Failed(ErrorKind.WORKER_LOST, "The answer's worker was lost. Send the request again.", code="worker_lost")


@dataclass(slots=True)
class _Listening:
    """One generation that this process listens to."""

    is_subscribed: "asyncio.Future[None]"
    viewers: list[Viewer] = field(default_factory=list)
    is_claimed: bool = False
    lag: LoopLag = field(default_factory=loop_lag)
    # By the clock of the time in which we could have heard: what a busy process has not read yet is no silence.
    heard_s: float = field(init=False)  # Of it, from its worker or by a look.
    told_s: float = field(init=False)  # By its worker, or by the queue that none has it yet.

    def __post_init__(self) -> None:
        self.heard_s = self.told_s = self.lag.unblocked_s

    def take(self, message: Message) -> None:
        # Hot path: once per message.
        self.heard_s = self.told_s = self.lag.ticked_s
        self.is_claimed = True
        for viewer in self.viewers:
            viewer.offer(message)

    def fail(self, failed: Failed) -> None:
        for viewer in self.viewers:
            viewer.fail(failed)


class Hub:
    """All listening of one API process. ``replica`` names it among the viewers of a channel."""

    def __init__(self, channel: Channel, feed: Feed, queue: JobQueue, settings: Settings) -> None:
        self.replica = secrets.token_hex(6)
        self._channel = channel
        self._feed = feed
        self._queue = queue
        self._settings = settings
        self._listening: dict[str, _Listening] = {}
        self._patrol: asyncio.Task[None] | None = None
        self._turn = asyncio.Semaphore(ENTERING_MAX)
        feed.on_resubscribed(self._reread_all)

    def start(self) -> None:
        self._patrol = supervised(self._patrol_for_ever, "patrol")

    async def stop(self) -> None:
        if self._patrol:
            self._patrol.cancel()
            await asyncio.gather(self._patrol, return_exceptions=True)

    @property
    def open_viewers(self) -> int:
        return sum(len(listening.viewers) for listening in self._listening.values())

    async def join(self, generation_id: str, after: Cursor | None = None) -> Viewer:
        """Return a viewer that misses nothing from now on. Each must be given back with ``leave``.

        Raises:
            StoreUnavailable: the subscription could not be made.
        """
        viewer = Viewer(generation_id, self._channel, self._settings.viewer_buffer_bytes_max, after)
        listening = self._listening.get(generation_id)
        if listening:
            listening.viewers.append(viewer)
            try:
                await asyncio.shield(listening.is_subscribed)
            except BaseException:
                await self.leave(viewer)
                raise
            return viewer
        listening = _Listening(asyncio.get_running_loop().create_future(), [viewer])
        self._listening[generation_id] = listening
        try:
            await self._feed.subscribe(generation_id, listening.take)
        except BaseException as error:
            self._listening.pop(generation_id, None)
            listening.is_subscribed.set_exception(error if isinstance(error, StoreUnavailable) else StoreUnavailable())
            listening.is_subscribed.exception()  # Marked as seen: there may be no second viewer to see it.
            raise
        listening.is_subscribed.set_result(None)
        return viewer

    async def join_existing(self, generation_id: str, owner: str, after: Cursor | None = None) -> tuple[Viewer, State]:
        """As ``join``, for a generation that may have begun long ago; also returns how it stands.

        However many come, all get in, a few at a time.
        Joined before entered: while a viewer of this process leaves, another may come, and the process must stay a member.

        Raises:
            GatewayError: NOT_FOUND, EXPIRED.
            StoreUnavailable: the store did not answer.
        """
        async with self._turn:
            viewer = await self.join(generation_id, after)
            try:
                state = await self._channel.enter(generation_id, self.replica, owner)
            except BaseException as error:
                viewer.has_ended = isinstance(error, GatewayError)  # Refused: there is nothing to leave.
                await self.leave(viewer)
                raise
        viewer.reread()
        return viewer, state

    async def leave(self, viewer: Viewer) -> None:
        """Take a viewer out. If it was this process's last of a running generation, say so: its policy may end it."""
        listening = self._listening.get(viewer.generation_id)
        if listening is None or viewer not in listening.viewers:
            return
        listening.viewers.remove(viewer)
        if listening.viewers:
            return
        del self._listening[viewer.generation_id]
        await self._feed.unsubscribe(viewer.generation_id)
        if not viewer.has_ended:
            try:
                await self._leave_channel(viewer.generation_id)
            except StoreUnavailable:
                log.warning("leave_not_said", generation_id=viewer.generation_id)  # The worker's backstop sees nobody listen.

    async def _leave_channel(self, generation_id: str) -> None:
        stop = await self._channel.leave(generation_id, self.replica)
        if stop is not Stop.NO:
            await self.end_if_waiting(generation_id, Failed(ErrorKind.CANCELLED, "The client left.", code="cancelled"))

    async def end_if_waiting(self, generation_id: str, failed: Failed) -> bool:
        """End a generation that no worker has claimed; returns whether it was so. A claimed one hears of the stop flag."""
        (place,) = await self._queue.statuses([generation_id])
        if place not in (JobStatus.WAITING, JobStatus.LATE):
            return False
        await self._end_unowned(generation_id, failed)
        return True

    async def end_if_lost(self, generation_id: str) -> bool:
        """End a generation that nobody will end, for one who asks about it without listening; returns whether it was so."""
        (place,) = await self._queue.statuses([generation_id])
        return await self._judge(generation_id, place)

    async def _end_unowned(self, generation_id: str, failed: Failed) -> None:
        # The log first, for it is the judge: a claim that comes in between finds it ended.
        await self._channel.end_unowned(generation_id, secrets.token_hex(8), failed)
        await self._queue.withdraw(generation_id)

    def _reread_all(self) -> None:
        for listening in self._listening.values():
            for viewer in listening.viewers:
                viewer.doubt()

    # The patrol

    async def _patrol_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PATROL_S)
            silent = self._silent(loop_lag().unblocked_s)
            # After an outage that is everything at once, and Redis has others to serve.
            for batch in (silent[at : at + LOOK_BATCH] for at in range(0, len(silent), LOOK_BATCH)):
                try:
                    await self._look_at(batch)
                except StoreUnavailable as error:
                    self._give_up(silent, error)
                    break  # The next round asks again.

    def _give_up(self, silent: list[str], error: Exception) -> None:
        """No viewer waits for ever: after the time for which a job may wait it is told that nothing is known of its answer."""
        known_since = loop_lag().unblocked_s - self._settings.queue_wait_s
        for generation_id in silent:
            listening = self._listening.get(generation_id)
            if listening and listening.heard_s < known_since:
                listening.fail(answer_lost(error))

    def _silent(self, now: float) -> list[str]:
        claimed_s = MISSED_HEARTBEATS * self._settings.heartbeat_s
        silent = []
        for generation_id, listening in self._listening.items():
            limit_s = claimed_s if listening.is_claimed else UNCLAIMED_LOOK_S
            if now - listening.heard_s > limit_s and listening.is_subscribed.done():
                silent.append(generation_id)
        return silent

    async def _look_at(self, silent: list[str]) -> None:
        places, lasts = await asyncio.gather(self._queue.statuses(silent), self._channel.last_ids(silent))
        now = loop_lag().unblocked_s
        for generation_id, place, last in zip(silent, places, lasts, strict=True):
            listening = self._listening.get(generation_id)
            if listening is None:
                continue
            listening.heard_s = now  # Look again after another silence, not every second.
            if last is None:
                listening.fail(LOG_LOST)
                continue
            for viewer in listening.viewers:
                if last > viewer.tail:
                    listening.told_s = now
                    viewer.reread()
                elif last < viewer.tail and place is JobStatus.GONE and not viewer.has_ended:
                    viewer.fail(DIVERGED)  # Redis lost what it has seen, and nobody is left who would append it again.
            if place is not JobStatus.RUNNING:
                listening.told_s = now
            elif now - listening.told_s > self._settings.queue_wait_s:
                # Its worker renews its lease, and cannot say a word: Redis refuses it what it takes to publish.
                listening.fail(answer_lost(StoreRefuses()))
            await self._judge_for(listening, generation_id, place)

    async def _judge_for(self, listening: _Listening, generation_id: str, place: JobStatus) -> None:
        """Judge one of a batch, whatever is wrong with it."""
        try:
            await self._judge(generation_id, place)
        except StoreUnavailable as error:
            if not is_refusal(error):
                raise
            listening.fail(answer_lost(error))  # It has come to its end, which Redis refuses to write down.
        except Exception:
            log.exception("generation_unreadable", generation_id=generation_id)
            listening.fail(LOG_LOST)

    async def _judge(self, generation_id: str, place: JobStatus) -> bool:
        failed = await self._verdict(generation_id, place)
        if failed:
            log.warning("generation_ended_unowned", generation_id=generation_id, place=place, kind=failed.kind)
            await self._end_unowned(generation_id, failed)
        return failed is not None

    async def _verdict(self, generation_id: str, place: JobStatus) -> Failed | None:
        match place:
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
