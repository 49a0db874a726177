"""What may be done after a call, whatever happens to its connection: against real sockets that misbehave."""

import asyncio
import gzip
import json
import ssl
import traceback
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from app.toss.errors import BudgetExhausted, NotSent, OutcomeUnknown, TossError, TossRejected, Unintelligible
from app.toss.transport import MAX_ANSWER_BYTES, Absent, Answer, Transport, Wire
from tests.hosts import OK, Connection, Host, answering, silence, tls_of
from tests.servers import free_port

SECRET = "s3cr3t-bearer-and-body"
SHORT = timedelta(milliseconds=80)
LONG = timedelta(seconds=20)


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    authority = trustme.CA()
    authority.file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(authority.file))
    return authority


@asynccontextmanager
async def transport_to(ca, *, pool_size=4, connect=LONG, read=LONG) -> AsyncIterator[Transport]:
    made = Transport(ca_file=ca.file, pool_size=pool_size, connect_timeout=connect, read_timeout=read)
    async with made as transport:
        yield transport


async def call(transport: Transport, url: str) -> Answer:
    return await transport.post_json(url, {"field": SECRET}, bearer=SECRET)


async def fault_of(ca, url: str, kind: type[TossError], **how) -> TossError:
    """The error of one call; it and everything it drags along must be free of what was sent."""
    async with transport_to(ca, **how) as transport:
        with pytest.raises(kind) as caught:
            (await call(transport, url)).success()
        error = caught.value
        assert type(error) is kind
        shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__dict__) + repr(transport)
        assert SECRET not in shown
        return error


# --- Whom we talk to ---------------------------------------------------------------------------------------


async def test_a_server_is_seen_with_its_host_and_the_end_of_its_certificate(ca):
    ends_at = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    seen = []
    made = Transport(
        ca_file=ca.file,
        pool_size=4,
        connect_timeout=LONG,
        read_timeout=LONG,
        saw=lambda host, not_after: seen.append((host, not_after)),
    )
    async with made as transport, Host.running(answering(), tls=tls_of(ca, not_after=ends_at)) as host:
        await call(transport, host.url.replace("https://", "https://user:pa55word@"))
        authority = host.url.removeprefix("https://").removesuffix("/call")
        assert seen == [(authority, ends_at)]


async def test_a_server_without_tls_shows_no_certificate(ca):
    seen = []
    made = Transport(
        ca_file=ca.file, pool_size=4, connect_timeout=LONG, read_timeout=LONG, saw=lambda *one: seen.append(one)
    )
    async with made as transport, Host.running(answering()) as host:
        await call(transport, host.url)
    assert seen == []


# --- Never sent -------------------------------------------------------------------------------------------


async def test_a_refused_connection_was_not_sent(ca):
    error = await fault_of(ca, f"https://127.0.0.1:{free_port()}/call", NotSent)
    assert error.is_tls is False


async def test_a_host_that_never_shakes_hands_was_not_sent_to_and_is_tried_exactly_twice(ca):
    async with Host.running(silence) as host:
        error = await fault_of(ca, host.url.replace("http:", "https:"), NotSent, connect=SHORT)
        assert (error.is_tls, host.connections) == (False, 2)


async def test_the_second_try_of_an_unsent_call_may_succeed(ca):
    tls = tls_of(ca)

    async def script(connection: Connection) -> None:
        if connection.number == 1:
            await silence(connection)
            return
        await connection.writer.start_tls(tls)
        await answering()(connection)

    async with Host.running(script) as host, transport_to(ca, connect=timedelta(seconds=0.5)) as transport:
        answer = await call(transport, host.url.replace("http:", "https:"))
        assert answer.success() == {}
        assert (host.connections, len(host.requests)) == (2, 1)


async def handshakes(ca, context: ssl.SSLContext) -> tuple[TossError, int]:
    """The error of a call to a host of this context, and how many connections it cost."""

    async def script(connection: Connection) -> None:
        with suppress(OSError):
            await connection.writer.start_tls(context)
            await answering()(connection)

    async with Host.running(script) as host:
        error = await fault_of(ca, host.url.replace("http:", "https:"), NotSent)
        assert host.requests == []
        return error, host.connections


async def test_tls_faults_cost_one_connection_because_they_do_not_go_away(ca):
    ended = datetime.now(UTC) - timedelta(days=1)
    contexts = {
        "unknown authority": tls_of(trustme.CA()),
        "another host": tls_of(ca, "cert.toss.im"),
        "expired": tls_of(ca, not_before=ended - timedelta(days=9), not_after=ended),
    }
    for name, context in contexts.items():
        error, connections = await handshakes(ca, context)
        assert (name, error.is_tls, connections) == (name, True, 1)


async def test_a_host_without_tls_is_a_tls_fault(ca):
    async def script(connection: Connection) -> None:
        connection.send(b"<html>")
        await silence(connection)

    async with Host.running(script) as host:
        error = await fault_of(ca, host.url.replace("http:", "https:"), NotSent)
        assert (error.is_tls, host.connections) == (True, 1)


async def test_tls_older_than_1_2_is_refused(ca):
    context = tls_of(ca)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    error, connections = await handshakes(ca, context)
    assert (error.is_tls, connections) == (True, 1)


async def test_a_client_certificate_that_is_asked_for_at_the_first_read_means_not_sent(ca):
    """TLS 1.3 lets the client finish first; the alert comes where the answer was expected (platform table)."""
    context = tls_of(ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED

    async def script(connection: Connection) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        refused = False
        while not refused:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                refused = True
            connection.writer.write(outgoing.read())
            if not refused:
                incoming.write(await connection.reader.read(65536))
        await silence(connection)  # reading on keeps a reset from winning the race against the alert

    async with Host.running(script) as host:
        error = await fault_of(ca, host.url.replace("http:", "https:"), NotSent)
        assert (error.is_tls, host.connections) == (True, 1)
        assert "ALERT" in str(error)


# --- Perhaps processed ------------------------------------------------------------------------------------


async def reset_at_once(connection: Connection) -> None:
    await connection.reader.readuntil(b"\r\n")
    connection.host.requests.append(b"half")
    connection.reset()


async def reset_after_reading(connection: Connection) -> None:
    await connection.request()
    connection.reset()


async def close_after_reading(connection: Connection) -> None:
    await connection.request()


async def half_an_answer(connection: Connection) -> None:
    await connection.request()
    connection.send(OK, length=len(OK) + 10)


async def no_http(connection: Connection) -> None:
    await connection.request()
    connection.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


@pytest.mark.parametrize(
    "script", [reset_at_once, reset_after_reading, close_after_reading, half_an_answer, no_http, silence]
)
async def test_a_connection_that_dies_after_sending_leaves_the_outcome_unknown_and_is_never_repeated(ca, script):
    async with Host.running(script, tls=tls_of(ca)) as host:
        await fault_of(ca, host.url, OutcomeUnknown, read=SHORT if script is silence else LONG)
        assert host.connections == 1
        assert len(host.requests) == (0 if script is silence else 1)


async def test_a_kept_connection_that_dies_with_the_next_call_is_not_repeated_either(ca):
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send()
        await connection.request()
        connection.reset()

    async with Host.running(script, tls=tls_of(ca)) as host, transport_to(ca) as transport:
        await call(transport, host.url)
        with pytest.raises(OutcomeUnknown):
            await call(transport, host.url)
        assert (host.connections, len(host.requests)) == (1, 2)


# --- Answers that are not what was promised ---------------------------------------------------------------


async def test_a_gateways_page_is_no_json_and_keeps_its_status(ca):
    async with Host.running(answering(b"<html>502</html>", status="502 Bad Gateway"), tls=tls_of(ca)) as host:
        error = await fault_of(ca, host.url, Unintelligible)
        assert (error.http_status, error.is_json) == (502, False)
        assert len(host.requests) == 1


async def test_half_of_a_json_text_is_no_json(ca):
    async with Host.running(answering(OK[:20]), tls=tls_of(ca)) as host:
        error = await fault_of(ca, host.url, Unintelligible)
        assert (error.http_status, error.is_json) == (200, False)


async def test_an_answer_is_read_up_to_its_limit_and_no_further(ca):
    fits = OK + b" " * (MAX_ANSWER_BYTES - len(OK))
    async with Host.running(answering(fits), tls=tls_of(ca)) as host, transport_to(ca) as transport:
        assert (await call(transport, host.url)).success() == {}
    sent = 0

    async def endless(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        connection.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
            await connection.writer.drain()
            sent += 65536

    async with Host.running(endless, tls=tls_of(ca)) as host:
        error = await fault_of(ca, host.url, Unintelligible)
        assert (error.http_status, error.is_json) == (200, True)
    assert sent < 64 * MAX_ANSWER_BYTES


async def test_a_packed_answer_is_unpacked_and_counts_unpacked(ca):
    bomb = gzip.compress(b" " * (MAX_ANSWER_BYTES + 1))
    packed = answering(gzip.compress(OK), Content_Encoding="gzip")
    async with Host.running(packed, tls=tls_of(ca)) as host, transport_to(ca) as transport:
        assert (await call(transport, host.url)).success() == {}
    async with Host.running(answering(bomb, Content_Encoding="gzip"), tls=tls_of(ca)) as host:
        await fault_of(ca, host.url, Unintelligible)


async def test_a_broken_content_encoding_is_not_of_the_promised_form(ca):
    async with Host.running(answering(OK, Content_Encoding="gzip"), tls=tls_of(ca)) as host:
        await fault_of(ca, host.url, Unintelligible)
        assert len(host.requests) == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_redirects_are_not_followed(ca, status):
    """Neither the bearer token nor the body may go where somebody else points."""
    async with Host.running(answering(), tls=tls_of(ca)) as elsewhere:
        script = answering(b"{}", status=status, Location=elsewhere.url)
        async with Host.running(script, tls=tls_of(ca)) as host:
            error = await fault_of(ca, host.url, Unintelligible)
            assert error.http_status == int(status[:3])
            assert (len(host.requests), elsewhere.connections) == (1, 0)


async def test_proxies_of_the_environment_are_ignored(ca, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with Host.running(answering(), tls=tls_of(ca)) as host, transport_to(ca) as transport:
        assert (await call(transport, host.url)).http_status == 200


# --- What is sent -----------------------------------------------------------------------------------------


async def test_a_form_and_a_json_body_are_sent_as_such(ca):
    async with Host.running(answering(), tls=tls_of(ca)) as host, transport_to(ca) as transport:
        await transport.post_form(host.url, {"grant_type": "client_credentials", "client_secret": "a&b=ü"})
        await transport.post_json(host.url, {"name": "김토스"}, bearer="t0k3n")
    form, body = (request.partition(b"\r\n\r\n") for request in host.requests)
    assert form[2] == b"grant_type=client_credentials&client_secret=a%26b%3D%C3%BC"
    assert b"content-type: application/x-www-form-urlencoded\r\n" in form[0].lower() + b"\r\n"
    assert b"authorization" not in form[0].lower()
    assert json.loads(body[2]) == {"name": "김토스"}
    assert b"content-type: application/json\r\n" in body[0].lower() + b"\r\n"
    assert b"\r\nauthorization: bearer t0k3n\r\n" in body[0].lower() + b"\r\n"


# --- The pool ---------------------------------------------------------------------------------------------


async def test_calls_one_after_the_other_share_one_connection(ca):
    async with Host.running(answering(), tls=tls_of(ca)) as host, transport_to(ca) as transport:
        for _ in range(30):
            assert (await call(transport, host.url)).http_status == 200
        assert (host.connections, len(host.requests)) == (1, 30)


async def test_connections_survive_every_kind_of_refusal(ca):
    refusal = json.dumps({"resultType": "FAIL", "error": {"errorCode": "CE3102"}}).encode()
    async with Host.running(answering(refusal, status="400 Bad Request"), tls=tls_of(ca)) as host:
        async with transport_to(ca) as transport:
            for _ in range(5):
                with pytest.raises(TossRejected):
                    (await call(transport, host.url)).success()
        assert host.connections == 1


async def test_sixty_four_calls_at_once_all_succeed_over_a_small_pool(ca):
    pool, arrived, all_arrived = 8, 0, asyncio.Event()

    async def script(connection: Connection) -> None:
        nonlocal arrived
        while await connection.request() is not None:
            arrived += 1
            if arrived >= pool:
                all_arrived.set()
            await all_arrived.wait()  # as many as the pool allows are really under way at once
            connection.send()
            await connection.writer.drain()

    async with Host.running(script, tls=tls_of(ca)) as host, transport_to(ca, pool_size=pool) as transport:
        for _ in range(3):
            answers = await asyncio.gather(*(call(transport, host.url) for _ in range(64)))
            assert [answer.http_status for answer in answers] == [200] * 64
        assert host.connections == pool
        assert len(host.requests) == 3 * 64


async def test_calls_that_were_given_up_leave_room_in_the_pool(ca):
    async def script(connection: Connection) -> None:
        if connection.number <= 2:
            await silence(connection)
        else:
            await answering()(connection)

    async with Host.running(script, tls=tls_of(ca)) as host, transport_to(ca, pool_size=2) as transport:
        for _ in range(2):
            given_up = asyncio.create_task(call(transport, host.url))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(given_up, 0.1)
        answers = await asyncio.gather(*(call(transport, host.url) for _ in range(4)))
        assert [answer.http_status for answer in answers] == [200] * 4


# --- The probe --------------------------------------------------------------------------------------------


async def test_a_probe_looks_without_credentials(ca):
    ends = datetime(2040, 5, 6, 7, 8, 9, tzinfo=UTC)
    date = "Tue, 24 Mar 2026 12:00:00 GMT"
    tls = tls_of(ca, not_after=ends)
    async with Host.running(answering(b"", Date=date), tls=tls) as host, transport_to(ca) as transport:
        probe = await transport.probe(host.url)
    assert probe.tls_version == "TLSv1.3"
    assert probe.certificate_expires_at == "May  6 07:08:09 2040 GMT"
    assert probe.clock == datetime(2026, 3, 24, 12, tzinfo=UTC)
    assert host.requests[0].startswith(b"HEAD ")
    assert b"authorization" not in host.requests[0].lower()


@pytest.mark.parametrize("date", ["", "yesterday", "Tue, 99 Foo 2026 12:00:00 GMT"])
async def test_a_server_that_tells_nonsense_about_the_time_tells_no_time(ca, date):
    async with Host.running(answering(b"", Date=date)) as host, transport_to(ca) as transport:
        probe = await transport.probe(host.url)
    assert (probe.clock, probe.tls_version, probe.certificate_expires_at) == (None, None, None)


# --- The envelope (reference 3.2) -------------------------------------------------------------------------


def answer(body: object, status: int = 200) -> Answer:
    return Answer(status, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize("status", [200, 201, 400, 500])
@pytest.mark.parametrize("extra", [{}, {"error": None}, {"unknown": [1]}])
def test_success_is_what_the_body_says_whatever_the_status(status, extra):
    body = {"resultType": "SUCCESS", "success": {"txId": "t"}} | extra
    assert answer(body, status).success() == {"txId": "t"}


@pytest.mark.parametrize("status", [200, 400, 401, 404, 500, 503])
@pytest.mark.parametrize("kind", [{"resultType": "FAIL"}, {}, {"resultType": None}])
def test_a_failure_is_a_refusal_whatever_the_status(status, kind):
    error = {"errorType": 0, "errorCode": "CE3102", "reason": "요청이 아직", "data": {}, "title": None}
    with pytest.raises(TossRejected) as caught:
        answer(kind | {"error": error, "success": None}, status).success()
    assert (caught.value.http_status, caught.value.error_code) == (status, "CE3102")
    assert caught.value.reason == "요청이 아직"
    assert "요청" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_bare_oauth_error_is_a_refusal_of_the_token_endpoint_only(status):
    with pytest.raises(TossRejected) as caught:
        answer({"error": "invalid_client"}, status).plain()
    assert (caught.value.http_status, caught.value.error_code) == (status, "invalid_client")
    with pytest.raises(Unintelligible):
        answer({"error": "invalid_client"}, status).success()


@pytest.mark.parametrize(
    "body",
    [
        {"error": "Gateway Timeout"},
        {"timestamp": "2026-11-23T00:00:00Z", "status": 504, "error": "Gateway Timeout", "path": "/"},
        {"error": {"errorCode": 502}},
        {"error": {"errorCode": "GATEWAY"}},
        {"resultType": "HTTP_TIMEOUT", "error": {"errorCode": "CE3102"}},
    ],
    ids=str,
)
def test_what_a_gateway_says_in_json_is_no_refusal(body):
    with pytest.raises(Unintelligible) as caught:
        answer(body, 504).success()
    assert not caught.value.was_refused


@pytest.mark.parametrize("body", [{}, {"error": None}, {"error": {}}, {"error": 5}], ids=str)
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_failure_without_a_code_is_a_refusal_all_the_same(body, status):
    with pytest.raises(TossRejected) as caught:
        answer({"resultType": "FAIL", **body}, status).success()
    assert caught.value.error_code == "MISSING"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"resultType": "SUCCESS"},
        {"resultType": "SUCCESS", "success": None},
        {"resultType": "SUCCESS", "success": "ok"},
        {"resultType": "SUCCESS", "success": []},
        {"resultType": "success", "success": {}},
        {"resultType": "PENDING", "success": {}},
        {"resultType": True, "success": {}},
        {"success": {}},
        {"resultType": "PENDING", "error": {"errorCode": "CE3102"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [200, 400])
def test_everything_else_is_unintelligible(body, status):
    with pytest.raises(Unintelligible) as caught:
        answer(body, status).success()
    assert (caught.value.http_status, caught.value.is_json) == (status, True)


@pytest.mark.parametrize("result_type", [[], {}, ["FAIL"]])
def test_a_result_type_of_another_json_type_is_unintelligible(result_type):
    with pytest.raises(Unintelligible):
        answer({"resultType": result_type, "error": {"errorCode": "CE3102"}}).success()


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"SUCCESS"', b"1", b"true"],
)
def test_json_that_is_no_object_is_unintelligible(body):
    with pytest.raises(Unintelligible):
        answer(body).success()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"<html>", b"\xff\xfe\xfa", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b'{"a":"\xc3("}'],
    ids=["empty", "open", "html", "not utf-8", "deep", "huge number", "bad utf-8"],
)
def test_what_does_not_parse_is_no_json(body):
    with pytest.raises(Unintelligible) as caught:
        answer(body, 502).json_object()
    assert (caught.value.http_status, caught.value.is_json) == (502, False)


@pytest.mark.parametrize("code", [None, 3102, "x" * 65, "CE 3102", "CE3102\n", "코드", "", {}, ["CE3102"], "<b>"])
def test_an_error_code_is_a_plain_word_or_unreadable(code):
    with pytest.raises(TossRejected) as caught:
        answer({"resultType": "FAIL", "error": {"errorCode": code}}).success()
    assert caught.value.error_code in {"UNREADABLE", "None", "3102"}
    assert caught.value.error_code.isalnum()


def test_a_plain_answer_is_one_outside_the_envelope():
    assert answer({"access_token": "t", "error": None}).plain() == {"access_token": "t", "error": None}
    with pytest.raises(Unintelligible):
        answer({"access_token": "t"}, 400).plain()
    with pytest.raises(Unintelligible):
        answer({"error": 7}).plain()


def test_null_and_the_text_null_both_mean_absent():
    class Links(Wire):
        link: Absent = None

    absent = [Links.model_validate(content) for content in ({}, {"link": None}, {"link": "null"})]
    assert [links.link for links in absent] == [None] * 3
    assert Links.model_validate({"link": "nullable"}).link == "nullable"
    assert Links.model_validate({"link": "", "unknown": 1}).link == ""


def test_bad_fields_are_named_but_never_shown():
    class Model(Wire):
        code: int
        nested: dict[str, int]

    with pytest.raises(Unintelligible) as caught:
        answer(b"").parse(Model, {"code": SECRET, "nested": {"inner": SECRET}})
    assert "code, nested.inner" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_answer_does_not_show_its_body():
    assert SECRET not in repr(answer({"body": SECRET}))


async def test_an_alert_after_the_answer_has_begun_leaves_the_outcome_unknown(ca):
    """Whatever it says about certificates: there is an answer, so the request was processed."""
    alert = bytes((21, 3, 3, 0, 2, 2, 42))  # fatal, bad_certificate; in clear, where TLS expects a sealed record

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b'{"resultType":', length=1000)
        await connection.writer.drain()
        connection.writer.transport._ssl_protocol._transport.write(alert)
        await silence(connection)

    async with Host.running(script, tls=tls_of(ca)) as host:
        error = await fault_of(ca, host.url, OutcomeUnknown)
    assert "SSL" in str(error)


# --- Admission, headers, cookies --------------------------------------------------------------------------


async def test_every_sending_is_admitted_anew(ca):
    asked = 0

    async def admit() -> None:
        nonlocal asked
        asked += 1

    async with Host.running(answering(), tls=tls_of(ca)) as host, transport_to(ca) as transport:
        await transport.post_json(host.url, {}, admit=admit)
        await transport.get_json(host.url, admit=admit)
        assert (asked, len(host.requests)) == (2, 2)
        with pytest.raises(NotSent):
            await transport.get_json(f"https://127.0.0.1:{free_port()}/call", admit=admit)
        assert asked == 4


async def test_a_refused_admission_is_final_and_nothing_is_sent(ca):
    asked = 0

    async def refuse() -> None:
        nonlocal asked
        asked += 1
        raise BudgetExhausted(timedelta(seconds=9), limit="all")

    async with Host.running(answering(), tls=tls_of(ca)) as host, transport_to(ca) as transport:
        for number, call in enumerate(
            (transport.post_json, lambda *how, **more: transport.get_json(how[0], **more))
        ):
            with pytest.raises(BudgetExhausted):
                await call(host.url, {}, admit=refuse)
            assert asked == number + 1
        assert (host.connections, host.requests) == (0, [])


async def test_a_bearer_is_never_replaced_by_another_header(ca):
    async with Host.running(answering(), tls=tls_of(ca)) as host, transport_to(ca) as transport:
        await transport.get_json(host.url, bearer="t0k3n", headers={"Authorization": "other", "x-anon-key": "k"})
        await transport.get_json(host.url)
    first, second = (request.lower() for request in host.requests)
    assert b"\r\nauthorization: bearer t0k3n\r\n" in first
    assert b"other" not in first
    assert b"\r\nx-anon-key: k\r\n" in first
    assert b"authorization" not in second
    assert b"x-anon-key" not in second


async def test_no_cookie_is_kept(ca):
    script = answering(Set_Cookie="session=of-somebody; Path=/")
    async with Host.running(script, tls=tls_of(ca)) as host, transport_to(ca) as transport:
        for _ in range(2):
            await call(transport, host.url)
            await transport.get_json(host.url)
            await transport.probe(host.url)
    assert len(host.requests) == 6
    assert not [request for request in host.requests if b"cookie" in request.lower()]


@pytest.mark.parametrize("body", [b'{"a":"s3cr3t-bearer-and-body"', b'"s3cr3t-bearer-and-body\xff"'])
def test_what_does_not_parse_is_not_dragged_along(body):
    """A JSONDecodeError carries the whole text, and a UnicodeDecodeError the bytes."""
    with pytest.raises(Unintelligible) as caught:
        answer(body).json_object()
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
