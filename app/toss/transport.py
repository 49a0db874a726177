"""The only importer of the HTTP client: pools, timeouts, errors by what may be done next, envelope -> model."""

import asyncio
import json
import random
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import httpx2
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from typing_extensions import override

from app.toss.errors import NotSent, OutcomeUnknown, TossRejected, Unintelligible

MAX_ANSWER_BYTES = 1024 * 1024
"""No documented answer comes near; more is not read."""
KEEPALIVE = timedelta(seconds=15)
"""Shorter than common load balancers' idle time, so that a reused connection is rarely a dead one."""
MAX_CODE_LENGTH = 64
HTTP_ERROR = 400
OF_TOSS_CERT = re.compile(r"CE\d{4}")


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
        try:
            parsed = json.loads(self.body)
        except (ValueError, RecursionError):
            raise Unintelligible("not JSON", http_status=self.http_status, is_json=False) from None
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
        code = _code(error.get("errorCode", "MISSING"))
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
            raise TossRejected(http_status=self.http_status, error_code=_code(error))
        return self.success() if self.http_status >= HTTP_ERROR or error else body

    def parse(self, model: type[W], content: dict[str, Any]) -> W:
        """Raises: Unintelligible when the content is not of the documented form."""
        try:
            return model.model_validate(content)
        except ValidationError as error:
            fields = sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)})
            raise Unintelligible(f"bad fields: {', '.join(fields)}", http_status=self.http_status) from None


def _code(value: object) -> str:
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


class Transport:
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
    ) -> None:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._client = httpx2.AsyncClient(
            verify=context,
            trust_env=False,  # no proxies from the environment
            follow_redirects=False,
            limits=httpx2.Limits(
                max_connections=pool_size,
                max_keepalive_connections=pool_size,
                keepalive_expiry=KEEPALIVE.total_seconds(),
            ),
            timeout=httpx2.Timeout(
                read_timeout.total_seconds(),
                connect=connect_timeout.total_seconds(),
                pool=read_timeout.total_seconds(),
            ),
            headers={"Accept": "application/json", "User-Agent": "apps-in-toss-bff"},
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def post_form(self, url: str, form: Mapping[str, str]) -> Answer:
        return await self._send(url, data=dict(form))

    async def post_json(self, url: str, body: Mapping[str, Any], *, bearer: str) -> Answer:
        return await self._send(url, json=dict(body), headers={"Authorization": f"Bearer {bearer}"})

    async def _send(self, url: str, **content: Any) -> Answer:  # noqa: ANN401 - passed on to the client
        """Send, and once more if nothing was sent the first time. Nothing else is ever repeated here.

        Raises: NotSent, OutcomeUnknown, Unintelligible.
        """
        try:
            return await self._send_once(url, **content)
        except NotSent as error:
            if error.is_tls:
                raise
        await asyncio.sleep(random.uniform(0.02, 0.1))  # noqa: S311 - jitter, not a secret
        return await self._send_once(url, **content)

    async def _send_once(self, url: str, **content: Any) -> Answer:  # noqa: ANN401
        with _faults_by_what_may_follow():
            async with self._client.stream("POST", url, **content) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise Unintelligible("too large", http_status=response.status_code)
                return Answer(response.status_code, bytes(body))

    async def probe(self, url: str) -> Probe:
        """Connect and look, without any credentials.

        Raises: NotSent, OutcomeUnknown.
        """
        with _faults_by_what_may_follow():
            async with self._client.stream("HEAD", url) as response:
                stream = response.extensions.get("network_stream")
                tls = stream.get_extra_info("ssl_object") if stream else None
                certificate = tls.getpeercert() if tls else None
                return Probe(
                    tls_version=tls.version() if tls else None,
                    certificate_expires_at=certificate["notAfter"] if certificate else None,
                    clock=_http_date(response.headers.get("date")),
                )


@contextmanager
def _faults_by_what_may_follow() -> Iterator[None]:
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise NotSent(str(error) or type(error).__name__, is_tls=_is_tls_fault(error)) from None
    except httpx2.DecodingError:
        raise Unintelligible("bad content encoding", http_status=0) from None
    except ssl.SSLError as error:
        # Past the handshake, so the request may be with Toss already.
        raise OutcomeUnknown(error.reason or "SSLError") from None
    except (httpx2.HTTPError, OSError) as error:
        raise OutcomeUnknown(type(error).__name__) from None


def _http_date(text: str | None) -> datetime | None:
    try:
        instant = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return instant if instant.tzinfo is not None else None


def _is_tls_fault(error: BaseException) -> bool:
    """Whether trying again is of no use. A handshake that merely takes too long is no fault of TLS."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return not isinstance(cause, ssl.SSLWantReadError | ssl.SSLWantWriteError)
        cause = cause.__cause__ or cause.__context__
    return False
