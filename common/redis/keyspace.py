"""Which keys does Sluice have in Redis?

Every key is named here, with its type, its lifetime and who writes it. ``{…}`` around a generation's id is its hash tag:
all keys of one generation are in one slot of a cluster. The queue's keys are few and never in a cluster.

| key | type | lifetime | written by |
| --- | --- | --- | --- |
| ``{gen_…}:state`` | hash | safety expiry from ``open``, retention from ``end`` | API (open, stop), worker (fence, append) |
| ``{gen_…}:log`` | stream | the same, from its first frame on | worker; any API where nobody owns it |
| ``{gen_…}:viewers`` | set of API replicas | the same | API |
| ``{gen_…}:request`` | string | until the end | API |
| ``{gen_…}:asked`` | hash, the request of a stored response and its owner | ``responses_ttl_s`` after the answer | API |
| ``{gen_…}:response`` | string, the stored response or its failure; empty while it runs | the same | API (empty), worker |
| ``{gen_…}:tombstone`` | string, the owner | ``tombstone_s`` after the log is gone | whoever appends ``end`` |
| ``{gen_…}:record`` | hash, see ``common/records/request_summary.py`` | until the ledger has it | whoever appends ``end`` |
| ``{gen_…}:followers`` | hash, who shares this log, see ``ledger/rows.py`` | until the ledger has it; safety expiry | API |
| ``{gen_…}:live`` | pub/sub channel | none | whoever appends |
| ``sluice:q:waiting:CLASS:TENANT`` | sorted set, id by turn | until claimed | API (enqueue), worker (release) |
| ``sluice:q:rotation:CLASS`` | list of tenants with waiting jobs | until claimed | the same |
| ``sluice:q:enqueued`` | sorted set, waiting id by enqueue time in ms | until claimed | the same |
| ``sluice:q:delayed`` | sorted set, id by the time in ms when it may run | until due | worker |
| ``sluice:q:running`` | sorted set, id by lease deadline in ms | while leased | worker |
| ``sluice:q:job:gen_…`` | hash | until finished; safety expiry | API, worker |
| ``sluice:q:recent:OWNER`` | sorted set, newest ids by enqueue time in ms | ``RECENT_S`` after the last | API (enqueue) |
| ``sluice:q:once:OWNER:DIGEST`` | string, id and the request's digest | ``idempotency_s`` | API (enqueue) |
| ``sluice:q:flight:KEY:POLICY`` | string, the job to join; or ``cached`` | until it is removed; safety expiry | API |
| ``sluice:q:ended`` | list of ids whose records wait for the ledger | until it has them | worker (finish), API (withdraw) |
| ``sluice:q:limit:SCOPE:NAME:KIND`` | hash, bucket number to amount | two windows | API (enqueue), worker |
| ``sluice:q:sharers:ID`` | list, the slots of those that share a job: key, who holds it | with the job; safety expiry | API |
| ``sluice:q:slots:SCOPE:NAME`` | sorted set, id by the time in ms until which it counts | safety expiry | API, worker |
| ``sluice:q:spent:SCOPE:NAME:PERIOD`` | counter of nano-dollars in a day or a month of UTC | 3 or 40 days | worker (finish) |
| ``sluice:unwell`` | hash, a vendor's key and model to its rest's end in ms, and more | ``KEPT_S`` after that | worker |
| ``sluice:paused`` | hash, a vendor's key and model to the ms until which they are paused | until the last of these | worker |
| ``sluice:key:ID`` | string, a managed key, see ``common/access/key_records`` | until the key is deleted | whoever changes it |
| ``sluice:keys:version`` | string, changes with each change of a record | permanent | the same |
| ``sluice:keys:origins`` | hash, key's id to its browser origins | until the keys are deleted | the same |
| ``sluice:config:reload`` | string, the last request to reload, see ``common/live/reports.py`` | a minute | ``sluice config`` |
| ``sluice:config:process:NAME`` | string, what a process reports about its settings | ``REPORT_S``, renewed | API, worker |
| ``sluice:config:stored`` | string, see ``common/live/stored_copy.py`` | permanent | whoever changes it, worker |
| ``sluice:config:stored:revision`` | string, the revision of that | permanent | the same |
| ``sluice:q:spent:loaded`` | string, whether the counters hold what the database knows | permanent | worker |
| ``sluice:q:bookkeeper`` | string, the token of the worker that writes the ledger | ``LEASE_S``, renewed | worker |
| ``sluice:ledger:unreadable`` | list of what was set aside, see ``common/ledger/set_aside.py`` | a month | API, worker |
| ``sluice:q:turn``, ``…:withdrawn`` | counters of jobs: put in line, withdrawn from it | permanent | API, worker |
| ``sluice:q:handed`` | counter, claims while both classes wait | permanent | worker |
| ``sluice:q:workers`` | sorted set, workers that take jobs, by the ms of their last report | ``ALIVE_S`` after that | worker |
| ``sluice:q:probe:…`` | what a probe of Redis writes, see ``common/redis/probe`` | 10 s at most | API, worker |
| ``sluice:q:health:WORKER`` | string, arq's health record | half a minute | worker |
| ``sluice:cache:entry:KEY`` | string, a cached answer, see ``common/cache/entry.py`` | its time to live | worker |
| ``sluice:cache:by_age``, ``…:by_expiry`` | sorted sets, an entry's key by its ms | until the last entry expires | worker |
| ``sluice:cache:about`` | hash, an entry's key to its bytes, tenant, model and target | the same | worker |
| ``sluice:cache:bytes`` | counter of the entries' bytes | the same | worker |
| ``sluice:q:bell`` | list, at most one item | until a worker takes it | whoever leaves interactive jobs in waiting |
| ``sluice:q:bell:background`` | the same | the same | whoever leaves background jobs in waiting |
"""

QUEUE_PREFIX = "sluice:q:"  # The queue's scripts build their other keys from the same prefix.
ENQUEUED = QUEUE_PREFIX + "enqueued"
DELAYED = QUEUE_PREFIX + "delayed"
RUNNING = QUEUE_PREFIX + "running"
WORKERS = QUEUE_PREFIX + "workers"
JOB = QUEUE_PREFIX + "job:"
BELL = QUEUE_PREFIX + "bell"
BELL_BACKGROUND = BELL + ":background"
RECENT = QUEUE_PREFIX + "recent:"
ONCE = QUEUE_PREFIX + "once:"
ENDED = QUEUE_PREFIX + "ended"
SPENT = QUEUE_PREFIX + "spent:"
SPENT_LOADED = SPENT + "loaded"
BOOKKEEPER = QUEUE_PREFIX + "bookkeeper"
UNREADABLE = "sluice:ledger:unreadable"
KEYS_VERSION = "sluice:keys:version"
KEY_ORIGINS = "sluice:keys:origins"
CONFIG_RELOAD = "sluice:config:reload"
STORED_CONFIG = "sluice:config:stored"
STORED_REVISION = "sluice:config:stored:revision"
PAUSED = "sluice:paused"
UNWELL = "sluice:unwell"

# The keys that an idle Sluice has in Redis without an expiry. Any other key without an expiry is a leak.
PERMANENT = frozenset(
    {
        KEYS_VERSION,
        KEY_ORIGINS,
        STORED_CONFIG,
        STORED_REVISION,
        SPENT_LOADED,
        BELL,
        BELL_BACKGROUND,
        QUEUE_PREFIX + "turn",
        QUEUE_PREFIX + "handed",
        QUEUE_PREFIX + "withdrawn",
    }
)


def state(generation_id: str) -> str:
    return f"{{{generation_id}}}:state"


def log(generation_id: str) -> str:
    return f"{{{generation_id}}}:log"


def viewers(generation_id: str) -> str:
    return f"{{{generation_id}}}:viewers"


def request(generation_id: str) -> str:
    return f"{{{generation_id}}}:request"


def response_request(generation_id: str) -> str:
    return f"{{{generation_id}}}:asked"


def response(generation_id: str) -> str:
    return f"{{{generation_id}}}:response"


def tombstone(generation_id: str) -> str:
    return f"{{{generation_id}}}:tombstone"


def record(generation_id: str) -> str:
    return f"{{{generation_id}}}:record"


def limit(scope: str, name: str, kind: str) -> str:
    return f"{QUEUE_PREFIX}limit:{scope}:{name}:{kind}"


def slots(scope: str, name: str) -> str:
    return f"{QUEUE_PREFIX}slots:{scope}:{name}"


def spent(scope: str, name: str, period: str) -> str:
    return f"{SPENT}{scope}:{name}:{period}"


def managed_key(id_: str) -> str:
    return f"sluice:key:{id_}"


def config_process(name: str) -> str:
    return f"sluice:config:process:{name}"


def cache_entry(key: str) -> str:
    return f"sluice:cache:entry:{key}"


def followers(generation_id: str) -> str:
    return f"{{{generation_id}}}:followers"


def flight(key: str, policy: str) -> str:
    return f"{QUEUE_PREFIX}flight:{key}:{policy}"


def live(generation_id: str) -> str:
    return f"{{{generation_id}}}:live"
