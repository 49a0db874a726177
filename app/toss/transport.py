"""The only importer of the HTTP client: pools, timeouts, errors by what may be done next, envelope -> model."""

import asyncio
import json
import random
import re
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

import httpx2
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from typing_extensions import override

from app.toss.certificate_keeper import CertificateKeeper
from app.toss.certificates import CertificateSources, ClientCertificate, ssl_context
from app.toss.errors import (
    BudgetExhausted,
    CertificateRefused,
    NotSent,
    OutcomeUnknown,
    TossRejected,
    Unintelligible,
)

MAX_ANSWER_BYTES = 1024 * 1024
"""No documented answer comes near; more is not read."""
KEEPALIVE = timedelta(seconds=15)
"""Shorter than common load balancers' idle time, so that a reused connection is rarely a dead one."""
MAX_CODE_LENGTH = 64
HTTP_ERROR = 400
OF_TOSS_CERT = re.compile(r"CE\d{4}")
GATEWAY_REFUSALS = frozenset({400, 401, 403, 495, 496})
"""What gateways answer to a client certificate they do not take; 495 and 496 are nginx's own."""
REFUSING_ALERTS = frozenset(
    {
        "ACCESS_DENIED",
        "BAD_CERTIFICATE",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_REQUIRED",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_UNKNOWN",
        "DECRYPT_ERROR",
        "HANDSHAKE_FAILURE",
        "UNKNOWN_CA",
        "UNSUPPORTED_CERTIFICATE",
    }
)
"""As OpenSSL names them after `_ALERT_` (RFC 8446, 6.2)."""


def _null_text_is_absent(value: object) -> object:
    return None if value == "null" else value


Absent = Annotated[str | None, BeforeValidator(_null_text_is_absent)]
"""A text that Toss may leave out, send as JSON null, or send as the text "null" (toss-cert reference 3.3)."""


class Wire(BaseModel):
    """A wire model: unknown fields are ignored, and no error text shows the input."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


W = TypeVar("W", bound=Wire)


@dataclass(frozen=True)
class Answer:
    http_status: int
    body: bytes

    @override
    def __repr__(self) -> str:
        return f"Answer({self.http_status})"

    def json_object(self) -> dict[str, Any]:
        """Raises: Unintelligible for anything but a JSON object."""
        parsed, is_json = None, False
        with suppress(ValueError, RecursionError):
            parsed, is_json = json.loads(self.body), True
        if not is_json:  # raised out here because a JSONDecodeError carries the body
            raise Unintelligible("not JSON", http_status=self.http_status, is_json=False)
        if not isinstance(parsed, dict):
            raise Unintelligible("not a JSON object", http_status=self.http_status)
        return parsed

    def success(self) -> dict[str, Any]:
        """The `success` object of Toss's envelope (toss-cert reference 3.2).

        The body decides whatever the HTTP status: a FAIL may come with 200.

        Raises: TossRejected, Unintelligible.
        """
        body = self.json_object()
        result_type, success = body.get("resultType"), body.get("success")
        if result_type == "SUCCESS":
            if not isinstance(success, dict):
                raise Unintelligible("SUCCESS without a success object", http_status=self.http_status)
            return success
        error = body.get("error")
        error = error if isinstance(error, dict) else {}
        code = plain_code(error.get("errorCode", "MISSING"))
        if result_type == "FAIL" or (result_type is None and OF_TOSS_CERT.fullmatch(code)):
            raise TossRejected(http_status=self.http_status, error_code=code, reason=str(error.get("reason", "")))
        # Whatever else has an "error" was said by somebody between Toss and us, who cannot know what Toss did.
        raise Unintelligible("neither SUCCESS nor FAIL", http_status=self.http_status)

    def plain(self) -> dict[str, Any]:
        """The JSON object of an answer outside the envelope (the token endpoint), or its error in OAuth's form.

        Raises: TossRejected, Unintelligible.
        """
        body = self.json_object()
        error = body.get("error")
        if isinstance(error, str):  # RFC 6749 5.2
            raise TossRejected(http_status=self.http_status, error_code=plain_code(error))
        return self.success() if self.http_status >= HTTP_ERROR or error else body

    def parse(self, model: type[W], content: dict[str, Any]) -> W:
        """Raises: Unintelligible when the content is not of the documented form."""
        try:
            return model.model_validate(content)
        except ValidationError as error:
            fields = sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)})
            raise Unintelligible(f"bad fields: {', '.join(fields)}", http_status=self.http_status) from None


def plain_code(value: object) -> str:
    """Toss's word for an error, fit for a log: codes are names or digits, and numbers come as text too."""
    text = str(value)
    is_plain = text.isascii() and text.replace("_", "").replace("-", "").isalnum()
    return text if is_plain and len(text) <= MAX_CODE_LENGTH else "UNREADABLE"


@dataclass(frozen=True)
class Probe:
    """What a server shows to somebody who merely connects."""

    tls_version: str | None
    certificate_expires_at: str | None
    clock: datetime | None
    """The server's own time, from its Date header; whole seconds."""


Admission = Callable[[], Awaitable[None]]
"""Asked right before each sending. Raises what keeps the request from being sent."""


async def _admitted() -> None:
    return


Saw = Callable[[str, datetime], None]
"""Gets the host of a server (with its port, unless that is the usual one) and when the certificate that it showed
ends."""


def _overlooked(_host: str, _not_after: datetime) -> None:
    return


Traced = Callable[[str, str], AbstractContextManager[Mapping[str, str]]]
"""Entered by method and URL around each call. Yields the headers that name its trace to the other side."""


@contextmanager
def untraced(_method: str, _url: str) -> Iterator[Mapping[str, str]]:
    yield {}


class _Calls(ABC):
    """The calls, however they reach the other side."""

    _traced: Traced

    async def post_form(self, url: str, form: Mapping[str, str]) -> Answer:
        return await self._send("POST", url, data=dict(form))

    async def post_json(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
        admit: Admission = _admitted,
    ) -> Answer:
        return await self._send("POST", url, admit, json=dict(body), headers=_headers(bearer, headers))

    async def post_bytes(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> Answer:
        """A body that goes out as it is, because it was signed."""
        return await self._send("POST", url, content=body, headers=dict(headers))

    async def get_json(
        self,
        url: str,
        *,
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
        admit: Admission = _admitted,
    ) -> Answer:
        return await self._send("GET", url, admit, headers=_headers(bearer, headers))

    async def _send(self, method: str, url: str, admit: Admission = _admitted, **content: Any) -> Answer:  # noqa: ANN401 - passed on to the client
        """Send, and once more if nothing was sent the first time. Nothing else is ever repeated here.

        Raises: NotSent, OutcomeUnknown, Unintelligible.
        """
        with self._traced(method, url) as headers:
            content["headers"] = {**content.get("headers", {}), **headers}
            try:
                return await self._send_once(method, url, admit, **content)
            except BudgetExhausted:
                raise
            except NotSent as error:
                if error.is_tls:
                    raise
            await asyncio.sleep(random.uniform(0.02, 0.1))  # noqa: S311 - jitter, not a secret
            return await self._send_once(method, url, admit, **content)

    @abstractmethod
    async def _send_once(self, method: str, url: str, admit: Admission, **content: Any) -> Answer: ...  # noqa: ANN401

    @abstractmethod
    async def probe(self, url: str) -> Probe:
        """Connect and look, without a user's or the token endpoint's credentials.

        Raises: NotSent, OutcomeUnknown.
        """

    @abstractmethod
    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _headers(bearer: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    authorization = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    return {**(headers or {}), **authorization}


@dataclass(frozen=True)
class _Limits:
    pool_size: int
    connect_timeout: timedelta
    read_timeout: timedelta

    def client(self, context: ssl.SSLContext) -> httpx2.AsyncClient:
        nobody = DefaultCookiePolicy(allowed_domains=[])  # what one user's answer sets must not go out for another
        return httpx2.AsyncClient(
            cookies=CookieJar(nobody),
            verify=context,
            trust_env=False,  # no proxies from the environment
            follow_redirects=False,
            limits=httpx2.Limits(
                max_connections=self.pool_size,
                max_keepalive_connections=self.pool_size,
                keepalive_expiry=KEEPALIVE.total_seconds(),
            ),
            timeout=httpx2.Timeout(
                self.read_timeout.total_seconds(),
                connect=self.connect_timeout.total_seconds(),
                pool=self.read_timeout.total_seconds(),
            ),
            headers={"Accept": "application/json", "User-Agent": "apps-in-toss-bff"},
        )


class Transport(_Calls):
    """One pooled client for one trust domain, for the life of the process.

    A TLS context costs tens of milliseconds and a connection a round trip or three: neither is made per call.
    The pool is kept small: a waiting call costs less than a pool that is searched over a hundred connections.
    """

    def __init__(
        self,
        *,
        ca_file: Path | None,
        pool_size: int,
        connect_timeout: timedelta,
        read_timeout: timedelta,
        saw: Saw = _overlooked,
        traced: Traced = untraced,
    ) -> None:
        self._saw = saw
        self._traced = traced
        self._client = _Limits(pool_size, connect_timeout, read_timeout).client(ssl_context(None, ca_file))

    @override
    async def aclose(self) -> None:
        await self._client.aclose()

    @override
    async def _send_once(self, method: str, url: str, admit: Admission, **content: Any) -> Answer:
        await admit()
        with _faults_by_what_may_follow():
            async with self._client.stream(method, url, **content) as response:
                _look_at_server(response, self._saw)
                return await _answer(response)

    @override
    async def probe(self, url: str) -> Probe:
        with _faults_by_what_may_follow():
            async with self._client.stream("HEAD", url) as response:
                return _probe(response)


class MutualTransport(_Calls):
    """A transport that shows a client certificate, and changes it without losing a call (decision 0011).

    A call is told which certificate to use when its turn has come. So none waits with an old one while a new one
    takes over, to open its connection when the old one has been revoked.
    """

    def __init__(
        self,
        *,
        sources: CertificateSources,
        probe_urls: Sequence[str],
        ca_file: Path | None,
        pool_size: int,
        connect_timeout: timedelta,
        read_timeout: timedelta,
        longest_call: timedelta,
        clock: Callable[[], datetime],
        look_every: timedelta = timedelta(seconds=10),
        retry_every: timedelta = timedelta(seconds=60),
        monotonic: Callable[[], float] = time.monotonic,
        saw: Saw = _overlooked,
        traced: Traced = untraced,
    ) -> None:
        """`probe_urls`: one at every host, where GET is answered with anything at all behind the calls' listener.

        Reads nothing but the CA file yet. Raises: OSError (ssl.SSLError included) for that.
        """
        ssl_context(None, ca_file)
        self._traced = traced
        limits = _Limits(pool_size, connect_timeout, read_timeout)

        async def open_pool(certificate: ClientCertificate) -> _MutualPool:
            context = await asyncio.to_thread(ssl_context, certificate, ca_file)
            return _MutualPool(limits.client(context), probe_urls=probe_urls, saw=saw)

        self.probe_urls: Final = tuple(probe_urls)
        self._turns = asyncio.Semaphore(pool_size)
        self._patience = read_timeout.total_seconds()
        self.keeper: Final = CertificateKeeper(
            sources=sources,
            open_pool=open_pool,
            clock=clock,
            look_every=look_every,
            retry_every=retry_every,
            longest_call=longest_call,
            monotonic=monotonic,
        )

    @override
    async def aclose(self) -> None:
        await self.keeper.aclose()

    @override
    async def _send_once(self, method: str, url: str, admit: Admission, **content: Any) -> Answer:
        """With another pair once if the one in use is refused: whoever refuses has looked at nothing else."""
        async with self._turn():
            # Not before: a call that waits for its turn would be counted long before Toss counts it.
            await admit()
            async with self.keeper.lease() as lease:
                try:
                    return await lease.pool.send(method, url, **content)
                except CertificateRefused:
                    if not await self.keeper.replace(lease.certificate):
                        raise
                except (NotSent, ConnectionLost):
                    self.keeper.doubt()
                    raise
            async with self.keeper.lease() as lease:
                return await lease.pool.send(method, url, **content)

    @override
    async def probe(self, url: str) -> Probe:
        async with self._turn(), self.keeper.lease() as lease:
            return await lease.pool.probe(url)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience):
                await self._turns.acquire()
        except TimeoutError:
            raise NotSent("PoolTimeout") from None
        try:
            yield
        finally:
            self._turns.release()


class _MutualPool:
    """Connections that show one client certificate."""

    def __init__(self, client: httpx2.AsyncClient, *, probe_urls: Sequence[str], saw: Saw) -> None:
        self._saw = saw
        self._client = client
        self._probe_urls = probe_urls

    async def send(self, method: str, url: str, **content: Any) -> Answer:  # noqa: ANN401 - passed on to the client
        """Raises: CertificateRefused, ConnectionLost, and what Transport raises."""
        with _faults_by_what_may_follow(is_mutual=True):
            async with self._client.stream(method, url, **content) as response:
                _look_at_server(response, self._saw)
                return _unless_refused(await _answer(response))

    async def probe(self, url: str) -> Probe:
        """With GET, because a gateway says why it refuses in a body only. Raises: as `send`."""
        with _faults_by_what_may_follow(is_mutual=True):
            async with self._client.stream("GET", url) as response:
                _look_at_server(response, self._saw)
                with suppress(Unintelligible):  # whatever it says, it says it to this certificate
                    _unless_refused(await _answer(response))
                return _probe(response)

    async def prove(self) -> None:
        """At every host: that one takes a certificate says nothing of the others. Raises: as `send`."""
        for url in self._probe_urls:
            await self.probe(url)

    async def aclose(self) -> None:
        await self._client.aclose()


class ConnectionLost(OutcomeUnknown):
    """The connection ended where an answer was expected. A server that refuses a certificate may do just that."""


async def _answer(response: httpx2.Response) -> Answer:
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise Unintelligible("too large", http_status=response.status_code)
    except (ssl.SSLError, httpx2.ReadError, httpx2.RemoteProtocolError) as error:
        # An answer had begun, so the request was processed, whatever an alert now says about certificates.
        raise OutcomeUnknown(type(error).__name__) from None
    return Answer(response.status_code, bytes(body))


def _tls_of(response: httpx2.Response) -> ssl.SSLObject | None:
    stream = response.extensions.get("network_stream")
    return stream.get_extra_info("ssl_object") if stream else None


def _look_at_server(response: httpx2.Response, saw: Saw) -> None:
    tls = _tls_of(response)
    certificate = tls.getpeercert() if tls else None
    if certificate:
        not_after = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        saw(response.url.netloc.decode("ascii"), datetime.fromtimestamp(not_after, UTC))


def _probe(response: httpx2.Response) -> Probe:
    tls = _tls_of(response)
    certificate = tls.getpeercert() if tls else None
    return Probe(
        tls_version=tls.version() if tls else None,
        certificate_expires_at=str(certificate["notAfter"]) if certificate else None,
        clock=_http_date(response.headers.get("date")),
    )


def _unless_refused(answer: Answer) -> Answer:
    """As nginx does: it completes the handshake, then answers every request with a page about the certificate."""
    if answer.http_status in GATEWAY_REFUSALS:
        page = answer.body.lstrip().lower()
        if page.startswith(b"<") and b"certificate" in page:
            raise CertificateRefused(f"refused by a gateway (HTTP {answer.http_status})")
    return answer


@contextmanager
def _faults_by_what_may_follow(*, is_mutual: bool = False) -> Iterator[None]:
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        fault = _tls_fault(error)
        if is_mutual and fault is not None and _is_refusal(fault):
            raise CertificateRefused(fault.reason) from None
        raise NotSent(str(error) or type(error).__name__, is_tls=fault is not None) from None
    except httpx2.DecodingError:
        raise Unintelligible("bad content encoding", http_status=0) from None
    except ssl.SSLError as error:
        # TLS 1.3 reports a refused client certificate only at the first read, past the client's own errors.
        if not _is_refusal(error):
            raise OutcomeUnknown(error.reason or "SSLError") from None
        if is_mutual:
            raise CertificateRefused(error.reason) from None
        raise NotSent(error.reason, is_tls=True) from None
    except (httpx2.ReadError, httpx2.RemoteProtocolError) as error:
        lost = ConnectionLost if is_mutual else OutcomeUnknown
        raise lost(type(error).__name__) from None
    except (httpx2.HTTPError, OSError) as error:
        raise OutcomeUnknown(type(error).__name__) from None


def _is_refusal(error: ssl.SSLError) -> bool:
    """Alerts that end a handshake over a certificate. Others may also come after the request was processed."""
    _, is_alert, about = (error.reason or "").partition("_ALERT_")
    return bool(is_alert) and about in REFUSING_ALERTS


def _http_date(text: str | None) -> datetime | None:
    try:
        instant = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return instant if instant.tzinfo is not None else None


def _tls_fault(error: BaseException) -> ssl.SSLError | None:
    """What makes trying again of no use. A handshake that merely takes too long is no fault of TLS."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            is_waiting = isinstance(cause, ssl.SSLWantReadError | ssl.SSLWantWriteError)
            return None if is_waiting else cause
        cause = cause.__cause__ or cause.__context__
    return None
