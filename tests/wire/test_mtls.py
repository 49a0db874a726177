"""Client certificates against real TLS servers that demand one: rotation, refusal and repair under load (G8)."""

import asyncio
import ssl
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from app.toss.certificates import CertificateSources, FaultKind
from app.toss.errors import CertificateRefused, NotSent, OutcomeUnknown
from app.toss.transport import ConnectionLost, MutualTransport, Transport
from app.toss.transport import _faults_by_what_may_follow as faults

OK = b'{"resultType":"SUCCESS","success":{}}'
DAY = timedelta(days=1)
LOOK, RETRY = timedelta(seconds=10), timedelta(seconds=60)
PAGE = b"<html>\r\n<head><title>400 The SSL certificate error</title></head>\r\n<center>nginx</center>\r\n</html>"
TLS_VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@dataclass(frozen=True)
class Pair:
    serial: int
    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> "Pair":
        (folder / f"{name}_private.key").write_bytes(self.key)
        (folder / f"{name}_public.crt").write_bytes(self.certificate)
        return self


@dataclass
class Authority:
    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)
    revoked: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.file = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))
        self.server = self.ca.issue_cert("127.0.0.1")

    def issue(self, start=-10, end=380, *, by: trustme.CA | None = None) -> Pair:
        now = datetime.now(UTC)
        leaf = (by or self.ca).issue_cert(
            "client@mini.app", common_name="mini-app", not_before=now + start * DAY, not_after=now + end * DAY
        )
        pem = leaf.cert_chain_pems[0].bytes()
        return Pair(x509.load_pem_x509_certificate(pem).serial_number, pem, leaf.private_key_pem.bytes())

    def context(self, version: ssl.TLSVersion, demand: ssl.VerifyMode) -> ssl.SSLContext:
        """A server's, with a revocation list as it stands now."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = version
        self.server.configure_cert(context)
        context.load_verify_locations(str(self.file))
        (self.folder / "crl.pem").write_bytes(self._revocations())
        context.load_verify_locations(str(self.folder / "crl.pem"))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        context.verify_mode = demand
        return context

    def _revocations(self) -> bytes:
        now = datetime.now(UTC)
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        revocations = x509.CertificateRevocationListBuilder(issuer.subject, now - DAY, now + DAY)
        for serial in self.revoked:
            one = x509.RevokedCertificateBuilder(serial, now - DAY).build()
            revocations = revocations.add_revoked_certificate(one)
        key = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        return revocations.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


class TlsStream:
    """A server's end of TLS, driven by hand: asyncio's own ends a refused handshake without sending the alert."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._reader, self._writer = reader, writer

    async def until_done(self, step):
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self.flush()
                received = await self._reader.read(65536)
                if not received:
                    raise ConnectionResetError from None
                self._incoming.write(received)

    async def flush(self) -> None:
        self._writer.write(self._outgoing.read())
        await self._writer.drain()

    async def request(self) -> tuple[bytes, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await self.until_done(lambda: self.tls.read(65536))
        head, _, body = received.partition(b"\r\n\r\n")
        length = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        while len(body) < (int(length[0]) if length else 0):
            body += await self.until_done(lambda: self.tls.read(65536))
        return head, body


@dataclass
class Toss:
    """A server that demands a client certificate, refuses with an alert as OpenSSL servers do, and keeps count."""

    authority: Authority
    version: ssl.TLSVersion
    demand: ssl.VerifyMode = ssl.CERT_REQUIRED
    url: str = ""
    is_silent: bool = False
    """End a refused handshake without a word."""
    is_closing: bool = False
    """Answer one request per connection."""
    requests: Counter[int | None] = field(default_factory=Counter)
    """By serial number of the client's certificate."""
    bodies: list[bytes] = field(default_factory=list)
    refusals: int = 0
    before_answer: Callable[[], None] | None = None
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    def revoke(self, pair: Pair) -> None:
        self.authority.revoked.add(pair.serial)
        self.context = self.authority.context(self.version, self.demand)

    def reinstate(self, pair: Pair) -> None:
        self.authority.revoked.discard(pair.serial)
        self.context = self.authority.context(self.version, self.demand)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._open.add(task)
        with suppress(OSError, ssl.SSLError, asyncio.CancelledError):
            await self._converse(reader, writer)
        writer.close()
        self._open.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = TlsStream(self.context, reader, writer)
        try:
            await stream.until_done(stream.tls.do_handshake)
        except ssl.SSLError:
            self.refusals += 1
            if not self.is_silent:
                await stream.flush()
                while await reader.read(65536):  # an end with unread data would be a reset
                    pass
            return
        is_going_on = True
        while is_going_on:
            head, body = await stream.request()
            stream.tls.write(self._answer(head, body, stream.tls.getpeercert()))
            await stream.flush()
            is_going_on = not self.is_closing

    def _answer(self, head: bytes, body: bytes, certificate: dict[str, object] | None) -> bytes:
        serial = int(str(certificate["serialNumber"]), 16) if certificate else None
        more = b"Connection: close\r\n" if self.is_closing else b""
        if self.demand is ssl.CERT_OPTIONAL and (serial is None or serial in self.authority.revoked):
            self.refusals += 1
            return b"HTTP/1.1 400 Bad Request\r\n%sContent-Length: %d\r\n\r\n%s" % (more, len(PAGE), PAGE)
        if not head.startswith(b"GET /probe "):
            self.requests[serial] += 1
            self.bodies.append(head + body)
        if self.before_answer is not None:
            self.before_answer()
        return b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (more, len(OK), OK)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Toss"]:
        self.context = self.authority.context(self.version, self.demand)
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/call"
        try:
            yield self
        finally:
            server.close()
            for task in list(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)


@dataclass
class Time:
    """Monotonic seconds that pass when the test says so."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, duration: timedelta) -> None:
        self.seconds += duration.total_seconds()


@pytest.fixture
def authority(tmp_path):
    folder = tmp_path / "authority"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    return folder


@pytest.fixture
def time():
    return Time()


@pytest.fixture(params=TLS_VERSIONS, ids=lambda version: version.name)
async def toss(request, authority):
    async with Toss(authority, request.param).running() as toss:
        yield toss


@pytest.fixture
async def transport(toss, folder, time, authority):
    async with mutual(toss, folder, time, authority) as transport:
        yield transport


def mutual(toss: Toss, folder: Path, time: Time, authority: Authority, *more: Toss, pool_size=8) -> MutualTransport:
    return MutualTransport(
        sources=CertificateSources(folder=folder),
        probe_urls=[host.url.replace("/call", "/probe") for host in (toss, *more)],
        ca_file=authority.file,
        pool_size=pool_size,
        connect_timeout=timedelta(seconds=20),
        read_timeout=timedelta(seconds=20),
        longest_call=timedelta(seconds=60),
        clock=lambda: datetime.now(UTC),
        look_every=LOOK,
        retry_every=RETRY,
        monotonic=time,
    )


async def call(transport: MutualTransport, toss: Toss) -> None:
    answer = await transport.post_json(toss.url, {"orderNo": "1"}, headers={"X-Toss-User-Key": "77"})
    assert answer.success() == {}


async def test_calls_show_the_certificate_and_carry_what_they_are_given(toss, transport, folder, authority):
    pair = authority.issue().write(folder, "app")
    await call(transport, toss)
    await transport.post_form(toss.url, {"a": "b"})
    answer = await transport.get_json(toss.url, headers={"Authorization": "Bearer t0k3n"})
    assert answer.success() == {}
    assert toss.requests == {pair.serial: 3}
    posted, form, got = (body.lower() for body in toss.bodies)
    assert posted.startswith(b"post /call ")
    assert b"\r\nx-toss-user-key: 77\r\n" in posted
    assert b"authorization" not in posted
    assert form.endswith(b"a=b")
    assert got.startswith(b"get /call ")
    assert b"\r\nauthorization: bearer t0k3n" in got
    probe = await transport.probe(toss.url)
    assert probe.tls_version == toss.version.name.replace("_", ".")
    assert probe.certificate_expires_at is not None


async def test_a_plain_transport_gets_json_too_and_is_refused_for_want_of_a_certificate(toss, authority):
    second = timedelta(seconds=20)
    async with Transport(
        ca_file=authority.file, pool_size=1, connect_timeout=second, read_timeout=second
    ) as transport:
        with pytest.raises(NotSent) as caught:
            await transport.get_json(toss.url)
    assert caught.value.is_tls
    assert type(caught.value) is NotSent
    assert toss.requests == {}


async def test_a_new_pair_takes_over_under_load_and_the_old_one_is_revoked_at_once(
    toss, transport, folder, authority, time
):
    old, new = authority.issue(-10).write(folder, "old"), authority.issue(-5)
    done = 0

    async def caller() -> None:
        nonlocal done
        for _ in range(40):
            await call(transport, toss)
            done += 1
            if done == 120:
                new.write(folder, "new")
                time.passes(LOOK)
            current = transport.keeper.certificate
            if old.serial not in authority.revoked and int(current.serial, 16) == new.serial:
                toss.revoke(old)

    await asyncio.gather(*(caller() for _ in range(16)))
    assert old.serial in authority.revoked
    assert sum(toss.requests.values()) == done == 640
    assert min(toss.requests[old.serial], toss.requests[new.serial]) >= 100
    assert toss.requests.keys() == {old.serial, new.serial}
    assert transport.keeper.alarm is None


async def test_five_rotations_with_a_connection_for_every_call_lose_nothing(
    toss, transport, folder, authority, time
):
    """The hardest weather: every call shakes hands, and the old pair is revoked the moment another is in use."""
    toss.is_closing = True
    pairs = [authority.issue(-10 + number) for number in range(6)]
    pairs[0].write(folder, "pair0")
    done = 0

    async def caller() -> None:
        nonlocal done
        for _ in range(20):
            await call(transport, toss)
            done += 1
            if done % 50 == 0 and done // 50 < len(pairs):
                pairs[done // 50].write(folder, f"pair{done // 50}")
                time.passes(LOOK)
            in_use = next(pair for pair in pairs if pair.serial == int(transport.keeper.certificate.serial, 16))
            for older in pairs[: pairs.index(in_use)]:
                if older.serial not in authority.revoked:
                    toss.revoke(older)

    await asyncio.gather(*(caller() for _ in range(16)))
    await transport.keeper.look()
    assert sum(toss.requests.values()) == done == 320
    assert int(transport.keeper.certificate.serial, 16) == pairs[-1].serial
    assert transport.keeper.alarm is None


async def test_calls_under_way_on_the_old_pair_finish(toss, transport, folder, authority, time):
    old, new = authority.issue(-10).write(folder, "old"), authority.issue(-5)
    await call(transport, toss)
    swapped = asyncio.Event()

    def swap() -> None:
        toss.before_answer = None
        new.write(folder, "new")
        time.passes(LOOK)
        swapped.set()

    toss.before_answer = swap
    await asyncio.gather(call(transport, toss), swapped.wait())
    await transport.keeper.look()
    await call(transport, toss)
    assert toss.requests == {old.serial: 2, new.serial: 1}


async def test_bad_pairs_in_the_folder_do_not_touch_the_traffic(toss, transport, folder, authority, time):
    good = authority.issue(-10).write(folder, "good")
    expired, mixed = authority.issue(-9, -1), authority.issue(-1)
    root = Pair(0, authority.ca.cert_pem.bytes(), authority.ca.private_key_pem.bytes())
    cases = {
        FaultKind.MISMATCH: Pair(0, mixed.certificate, expired.key),
        FaultKind.EXPIRED: expired,
        FaultKind.IS_CA: root,
        FaultKind.UNREADABLE: Pair(0, b"garbage", b"\x00\xff"),
        FaultKind.REFUSED: authority.issue(-1, by=trustme.CA()),
    }
    calls = 0
    for kind, bad in cases.items():
        bad.write(folder, "bad")
        time.passes(LOOK)
        await asyncio.gather(*(call(transport, toss) for _ in range(40)))
        await transport.keeper.look()
        await call(transport, toss)
        assert transport.keeper.alarm.kind is kind
        for file in folder.glob("bad*"):
            file.unlink()
        time.passes(LOOK)
        await call(transport, toss)
        await transport.keeper.look()
        assert transport.keeper.alarm is None
        calls += 42
    assert toss.requests == {good.serial: calls}


async def test_a_kubernetes_volume_is_swapped(toss, transport, folder, authority, time):
    def publish(pair: Pair, version: str) -> None:
        (folder / version).mkdir()
        pair.write(folder / version, "app")
        (folder / "..data_tmp").symlink_to(version)
        (folder / "..data_tmp").rename(folder / "..data")

    old, new = authority.issue(-10), authority.issue(-5)
    publish(old, "..1")
    for name in ("app_public.crt", "app_private.key"):
        (folder / name).symlink_to(f"..data/{name}")
    await call(transport, toss)
    publish(new, "..2")
    time.passes(LOOK)
    await call(transport, toss)
    await transport.keeper.look()
    await call(transport, toss)
    assert toss.requests[new.serial] >= 1
    assert sum(toss.requests.values()) == 3
    assert old.serial in toss.requests


async def test_a_pair_refused_in_the_middle_of_traffic_gives_way_to_the_other(
    toss, transport, folder, authority, time
):
    toss.is_closing = True  # so that every call shakes hands again
    old, new = authority.issue(-10).write(folder, "old"), authority.issue(-5).write(folder, "new")
    await asyncio.gather(*(call(transport, toss) for _ in range(20)))
    assert toss.requests == {new.serial: 20}
    toss.revoke(new)
    await asyncio.gather(*(call(transport, toss) for _ in range(200)))
    assert toss.requests == {new.serial: 20, old.serial: 200}
    assert 1 <= toss.refusals <= 8  # as many as were under way, each once
    assert transport.keeper.alarm.kind is FaultKind.REFUSED
    refusals = toss.refusals
    await asyncio.gather(*(call(transport, toss) for _ in range(20)))
    assert toss.refusals == refusals
    toss.reinstate(new)
    time.passes(RETRY)
    await call(transport, toss)
    await transport.keeper.look()
    assert transport.keeper.alarm is None
    await call(transport, toss)
    assert toss.requests[new.serial] == 21


async def test_a_call_tries_two_pairs_and_no_more(toss, transport, folder, authority):
    toss.is_closing = True
    pairs = [authority.issue(-day).write(folder, f"pair{day}") for day in (5, 10, 20)]
    await call(transport, toss)
    for pair in pairs:
        toss.revoke(pair)
    with pytest.raises(CertificateRefused) as caught:
        await call(transport, toss)
    assert isinstance(caught.value, NotSent)
    assert caught.value.is_tls
    assert "REVOKED" in str(caught.value)
    # The call itself, and one proof of each of the others, of which none was used.
    assert toss.refusals == 3
    assert sum(toss.requests.values()) == 1
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(transport.keeper))
    assert "PRIVATE" not in shown
    assert all(line not in shown for pair in pairs for line in pair.key.decode().splitlines()[1:-1])


async def test_a_lone_refused_pair_is_an_error_at_once(toss, transport, folder, authority):
    pair = authority.issue().write(folder, "app")
    toss.revoke(pair)
    results = await asyncio.gather(*(call(transport, toss) for _ in range(30)), return_exceptions=True)
    assert {type(result) for result in results} == {CertificateRefused}
    assert toss.refusals == 30
    await transport.keeper.look()
    assert transport.keeper.alarm.kind is FaultKind.REFUSED


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_a_gateways_page_about_the_certificate_is_a_refusal(folder, authority, time, version):
    """As nginx does it: the handshake passes, and kept connections are refused from one request to the next."""
    async with (
        Toss(authority, version, demand=ssl.CERT_OPTIONAL).running() as toss,
        mutual(toss, folder, time, authority) as transport,
    ):
        # With an optional certificate the list would end the handshake, so this server looks at it later.
        toss.context.verify_flags &= ~ssl.VERIFY_CRL_CHECK_LEAF
        old, new = authority.issue(-10).write(folder, "old"), authority.issue(-5).write(folder, "new")
        await asyncio.gather(*(call(transport, toss) for _ in range(20)))
        authority.revoked.add(new.serial)
        await asyncio.gather(*(call(transport, toss) for _ in range(100)))
        assert toss.requests == {new.serial: 20, old.serial: 100}
        assert transport.keeper.alarm.kind is FaultKind.REFUSED
        authority.revoked.add(old.serial)
        with pytest.raises(CertificateRefused, match="HTTP 400"):
            await call(transport, toss)
        with pytest.raises(CertificateRefused):
            await transport.probe(toss.url)
        assert sum(toss.requests.values()) == 120


@pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("refusing", ["login", "pay"])
async def test_a_pair_takes_over_only_when_every_host_takes_it(folder, authority, time, version, refusing):
    async with (
        Toss(authority, version).running() as login,
        Toss(authority, version).running() as pay,
        mutual(login, folder, time, authority, pay) as transport,
    ):
        old, new = authority.issue(-10).write(folder, "old"), authority.issue(-5)
        await call(transport, login)
        host = {"login": login, "pay": pay}[refusing]
        host.revoke(new)
        new.write(folder, "new")
        await transport.keeper.look()
        for each in (login, pay):
            await call(transport, each)
        assert (login.requests, pay.requests) == ({old.serial: 2}, {old.serial: 1})
        assert transport.keeper.alarm.kind is FaultKind.REFUSED
        host.reinstate(new)
        time.passes(RETRY)
        await transport.keeper.look()
        for each in (login, pay):
            await call(transport, each)
        assert (login.requests, pay.requests) == ({old.serial: 2, new.serial: 1}, {old.serial: 1, new.serial: 1})
        assert transport.keeper.alarm is None


async def test_a_server_that_ends_handshakes_without_a_word_costs_calls_that_were_not_sent(folder, authority, time):
    """TLS 1.2: this may be the network as well, so the call does not wait until the other pair is proved."""
    async with (
        Toss(authority, ssl.TLSVersion.TLSv1_2, is_silent=True, is_closing=True).running() as toss,
        mutual(toss, folder, time, authority) as transport,
    ):
        old, new = authority.issue(-10).write(folder, "old"), authority.issue(-5).write(folder, "new")
        await call(transport, toss)
        toss.revoke(new)
        time.passes(RETRY)
        with pytest.raises(NotSent):
            await call(transport, toss)
        await transport.keeper.look()
        await asyncio.gather(*(call(transport, toss) for _ in range(50)))
        assert toss.requests == {new.serial: 1, old.serial: 50}


async def test_kept_connections_prove_nothing(toss, transport, folder, authority, time):
    pair = authority.issue().write(folder, "app")
    await call(transport, toss)
    toss.revoke(pair)
    assert not await transport.keeper.replace(transport.keeper.certificate)
    time.passes(RETRY)
    await call(transport, toss)  # on the connection made before
    await transport.keeper.look()
    assert transport.keeper.alarm.kind is FaultKind.REFUSED
    toss.reinstate(pair)
    time.passes(RETRY)
    await transport.keeper.look()
    assert transport.keeper.alarm is None


async def test_a_server_that_refuses_without_a_word_costs_calls_of_unknown_outcome_but_not_for_long(
    folder, authority, time
):
    """TLS 1.3: nothing tells this end from a crash after the work was done, so the call itself is not repeated."""
    async with (
        Toss(authority, ssl.TLSVersion.TLSv1_3, is_silent=True, is_closing=True).running() as toss,
        mutual(toss, folder, time, authority) as transport,
    ):
        old, new = authority.issue(-10).write(folder, "old"), authority.issue(-5).write(folder, "new")
        await call(transport, toss)
        toss.revoke(new)
        time.passes(RETRY)
        with pytest.raises(ConnectionLost) as caught:
            await call(transport, toss)
        assert isinstance(caught.value, OutcomeUnknown)
        await transport.keeper.look()
        await asyncio.gather(*(call(transport, toss) for _ in range(50)))
        assert toss.requests == {new.serial: 1, old.serial: 50}


async def test_a_server_of_an_unknown_authority_is_no_refusal_and_changes_no_pair(toss, folder, authority, time):
    pairs = [authority.issue(-day).write(folder, f"pair{day}") for day in (5, 10)]
    wrong = folder.parent / "wrong.pem"
    trustme.CA().cert_pem.write_to_path(str(wrong))
    sources = CertificateSources(folder=folder)
    second = timedelta(seconds=20)
    async with MutualTransport(
        sources=sources,
        probe_urls=[toss.url],
        ca_file=wrong,
        pool_size=2,
        connect_timeout=second,
        read_timeout=second,
        longest_call=second,
        clock=lambda: datetime.now(UTC),
        monotonic=time,
    ) as transport:
        with pytest.raises(NotSent) as caught:
            await call(transport, toss)
        assert type(caught.value) is NotSent
        assert caught.value.is_tls
        assert int(transport.keeper.certificate.serial, 16) == pairs[0].serial
        assert transport.keeper.alarm.kind is FaultKind.UNPROVED


async def test_a_call_that_gets_no_turn_was_not_sent(folder, authority, time):
    async with Toss(authority, ssl.TLSVersion.TLSv1_3).running() as toss:
        authority.issue().write(folder, "app")
        async with mutual(toss, folder, time, authority, pool_size=1) as transport:
            transport._patience = 0.01
            async with transport._turn():
                with pytest.raises(NotSent) as caught:
                    await transport.get_json(toss.url)
            assert not caught.value.is_tls
            await call(transport, toss)


@pytest.mark.parametrize(
    ("reason", "is_refusal"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", True),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
        ("TLSV1_ALERT_USER_CANCELLED", False),
        ("SSLV3_ALERT_BAD_RECORD_MAC", False),
        ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", False),
        (None, False),
    ],
)
def test_only_alerts_about_certificates_prove_that_nothing_was_processed(reason, is_refusal):
    """A server that breaks down while it answers sends an alert too, and may have moved the money before."""
    error = ssl.SSLError(1, "tls")
    error.reason = reason
    for is_mutual, refusal in ((True, CertificateRefused), (False, NotSent)):
        with pytest.raises(refusal if is_refusal else OutcomeUnknown) as caught, faults(is_mutual=is_mutual):
            raise error
        assert type(caught.value) is (refusal if is_refusal else OutcomeUnknown)
