"""`python -m app doctor`: looks at everything the service depends on and explains each fault with a fix."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from ssl import cert_time_to_seconds
from urllib.parse import urlsplit

from app.errors import StorageUnavailable
from app.reseal import keys_in_use
from app.resources import Resources
from app.shared_state import SharedStateUnavailable
from app.toss.certificates import expiry_mark
from app.toss.errors import CertificateRefused, NotSent, OutcomeUnknown, TossError, TossRejected, Unintelligible
from app.toss.transport import MutualTransport, Probe

CLOCK_TOLERANCE = timedelta(seconds=5)
"""Leases are counted on each replica's own clock: the difference must stay well below lease minus deadline."""
CERTIFICATE_WARNING = timedelta(days=30)
PATIENCE = 15.0
"""Seconds for one check."""
TOSS_ADDRESSES = {
    "BFF_CERT": "117.52.3.222, 117.52.3.235, 211.115.96.222 and 211.115.96.235",
    "BFF_TOSS": "117.52.3.192, 211.115.96.192 and 106.249.5.192 (Toss Pay: .195 of each)",
}
"""Behind the hosts of a group of settings (toss-cert and apps-in-toss references, on firewalls)."""


@dataclass(frozen=True)
class Finding:
    check: str
    is_fault: bool
    what: str
    fix: str = ""


def _ok(check: str, what: str) -> Finding:
    return Finding(check, is_fault=False, what=what)


def _fault(check: str, what: str, fix: str) -> Finding:
    return Finding(check, is_fault=True, what=what, fix=fix)


async def examine(resources: Resources) -> AsyncIterator[Finding]:
    """Every check, one after the other; none of them changes anything."""
    yield _ok("settings", f"valid for {resources.settings.environment}")
    checks = {"database": _database, "redis": _redis, "token endpoint": _token}
    for url in (resources.cert_tokens.url, resources.settings.cert.api_url):
        origin = _origin(url)
        checks[_name(origin)] = partial(_host, origin=origin)
    checks["client certificate"] = _client_certificate
    checks["toss login"] = _login
    checks["toss pay"] = _pay
    checks["in-app purchase"] = _purchases
    checks["events"] = _events
    for name, check in checks.items():
        try:
            async with asyncio.timeout(PATIENCE):
                found = await check(resources)
        except TimeoutError:
            found = [_fault(name, "no answer in time", "Look at firewalls that swallow packets silently.")]
        for finding in found:
            yield finding


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _name(origin: str) -> str:
    parts = urlsplit(origin)
    return f"TLS to {parts.hostname}:{parts.port or 443}"


async def _database(resources: Resources) -> list[Finding]:
    try:
        if not await resources.database.is_current():
            return [_fault("database", "tables are missing or old", "Run: python -m app migrate")]
        missing = await keys_in_use(resources.database) - set(resources.settings.vault.keys)
    except StorageUnavailable as error:
        return [
            _fault(
                "database",
                f"cannot be reached ({type(error.__cause__).__name__})",
                "Check BFF_DATABASE__URL, that the server runs, and that this machine may connect to it.",
            )
        ]
    if missing:
        return [
            _fault(
                "vault",
                f"stored values need keys that are not configured: {', '.join(sorted(missing))}",
                "Put the old keys back into BFF_VAULT__KEYS; run python -m app keys reseal before removing one.",
            )
        ]
    return [_ok("database", "reachable, tables are current, every key in use is configured")]


async def _redis(resources: Resources) -> list[Finding]:
    if resources.settings.redis.url is None:
        return [_ok("redis", "not configured: state is kept in this one process")]
    try:
        await resources.shared_state.ping()
    except SharedStateUnavailable as error:
        return [
            _fault(
                "redis",
                f"cannot be reached ({error})",
                "Check BFF_REDIS__URL and that the server runs. Until then each process fetches its own token.",
            )
        ]
    return [_ok("redis", "reachable")]


async def _login(resources: Resources) -> list[Finding]:
    """What is set. Whether the keys are Toss's shows at the first login only (`login_fields_unreadable`)."""
    settings = resources.settings
    if resources.partner_transport is None:
        return [_ok("toss login", "not possible: no client certificate is configured")]
    keys = len(settings.login.decryption_keys)
    personal = f"decryption keys: {keys}" if keys else "no decryption key, so users are known by userKey alone"
    has_callback = settings.callbacks.login_unlink_auth is not None
    callback = "is served" if has_callback else "does not exist (BFF_CALLBACKS__LOGIN_UNLINK_AUTH is not set)"
    return [_ok("toss login", f"{personal}; the unlink callback {callback}")]


async def _pay(resources: Resources) -> list[Finding]:
    """What is set. Whether the merchant's contract allows it shows at the first payment only."""
    check, pay = "toss pay", resources.settings.pay
    if pay.mode is None:
        return [_ok(check, "off (BFF_PAY__MODE is not set)")]
    if resources.partner_transport is None:
        fix = "Give the pair from the console (BFF_TOSS__CERTIFICATE_FOLDER)."
        return [_fault(check, "not possible: no client certificate is configured", fix)]
    mode = "live: money moves" if pay.mode == "live" else "test: no money moves"
    recurring = "on" if resources.settings.billing.enabled else "off (BFF_BILLING__ENABLED)"
    findings = [_ok(check, f"{mode}; recurring payment is {recurring}")]
    if pay.catalogue_file is None:
        lacks = "no catalogue (BFF_PAY__CATALOGUE_FILE): only orders of the partner's server can be paid"
        return [*findings, _ok(check, lacks)]
    return [*findings, _ok(check, f"the catalogue has {len(resources.catalogue)} products")]


async def _purchases(resources: Resources) -> list[Finding]:
    """What is set. Whether the console calls the same address shows at the first subscription only."""
    check, settings = "in-app purchase", resources.settings
    if resources.partner_transport is None:
        return [_ok(check, "not possible: no client certificate is configured")]
    has_callback = settings.callbacks.iap_subscription_auth is not None
    callback = "is served" if has_callback else "does not exist (BFF_CALLBACKS__IAP_SUBSCRIPTION_AUTH is not set)"
    cycles = len(settings.purchases.renewal_cycles)
    return [_ok(check, f"subscriptions with a cycle: {cycles}; the subscription callback {callback}")]


async def _events(resources: Resources) -> list[Finding]:
    """What is set. Whether the partner's server takes them shows at the first event only (`event_failed`)."""
    events = resources.settings.events
    if events.url is None:
        return [_ok("events", "kept only (BFF_EVENTS__URL is not set)")]
    return [_ok("events", f"delivered to {_origin(events.url)}; secrets that sign: {len(events.secrets)}")]


async def _token(resources: Resources) -> list[Finding]:
    try:
        token = await resources.cert_tokens.fetch()
    except TossError as error:
        return [_fault("token endpoint", *_explain(error))]
    minutes = int((token.expires_at - token.fetched_at).total_seconds() // 60)
    return [_ok("token endpoint", f"gave a token (kept for {minutes} minutes at most)")]


async def _host(resources: Resources, *, origin: str) -> list[Finding]:
    name = _name(origin)
    try:
        probe = await resources.cert_transport.probe(origin)
    except TossError as error:
        return [_fault(name, *_explain(error))]
    return [
        _certificate(name, probe, resources.clock()),
        _clock(urlsplit(origin).hostname or "", probe, resources.clock()),
    ]


async def _client_certificate(resources: Resources) -> list[Finding]:
    """Every pair that lies there, and whether each host of the partner API takes the one in use."""
    check, transport = "client certificate", resources.partner_transport
    if transport is None:
        return [_ok(check, "none given; Toss Cert needs none")]
    keeper = transport.keeper
    await keeper.look()
    findings = [_ok(check, f"repaired while reading: {note}") for note in keeper.repairs]
    findings += [
        _fault(check, str(fault), "Put a pair from the console (both files, as downloaded) in its place.")
        for fault in keeper.faults
    ]
    if keeper.certificate is None:
        return findings
    used = keeper.certificate
    what = f"{used.subject} (serial {used.serial}, hexadecimal), ends in {used.days_left(resources.clock())} days"
    if expiry_mark(used, resources.clock()) is not None:
        findings.append(_fault(check, what, "Issue a new pair in the console and add it; both may be valid."))
    else:
        findings.append(_ok(check, what))
    return [*findings, *[await _partner_host(resources, transport, url) for url in transport.probe_urls]]


async def _partner_host(resources: Resources, transport: MutualTransport, url: str) -> Finding:
    name = _name(_origin(url))
    try:
        probe = await transport.probe(url)
    except CertificateRefused as error:
        fix = "It was revoked, belongs to another mini-app, or was never issued by Toss: issue a new one."
        return _fault("client certificate", f"{urlsplit(url).hostname} refuses it ({error})", fix)
    except TossError as error:
        return _fault(name, *_explain(error, "BFF_TOSS"))
    return _certificate(name, probe, resources.clock())


def _certificate(name: str, probe: Probe, now: datetime) -> Finding:
    if probe.certificate_expires_at is None:
        return _ok(name, "reachable without TLS (loopback)")
    ends_at = datetime.fromtimestamp(cert_time_to_seconds(probe.certificate_expires_at), UTC)
    what = f"{probe.tls_version}, the server's certificate ends on {ends_at.date()}"
    if ends_at - now < CERTIFICATE_WARNING:
        return _fault(name, what, "The other side has to renew its certificate soon; tell cert.support@toss.im.")
    return _ok(name, what)


def _clock(host: str, probe: Probe, now: datetime) -> Finding:
    if probe.clock is None:
        return _ok("clock", f"{host} does not tell its time")
    skew = abs(now - probe.clock)
    what = f"differs from {host} by {int(skew.total_seconds())} s"
    if skew > CLOCK_TOLERANCE:
        return _fault("clock", what, "Turn on time synchronisation (NTP) on this machine.")
    return _ok("clock", what)


def _explain(error: TossError, group: str = "BFF_CERT") -> tuple[str, str]:
    match error:
        case NotSent(is_tls=True):
            return (
                f"TLS failed ({error})",
                f"Check {group}__CA_FILE (empty: the system's store; slim images need ca-certificates), "
                "the host name, and whether a proxy in between replaces certificates.",
            )
        case NotSent():
            return (
                f"no connection ({error})",
                "Check the host in the settings, DNS, and that outbound TCP 443 to "
                f"{TOSS_ADDRESSES[group]} is open.",
            )
        case TossRejected(error_code="invalid_client"):
            return ("Toss refused the credentials (invalid_client)", "Check BFF_CERT__CLIENT_ID and _SECRET.")
        case TossRejected():
            return (f"Toss {error}", "Check BFF_CERT__SCOPE and the credentials.")
        case Unintelligible():
            return (f"the answer is not Toss's: {error}", "Check BFF_CERT__TOKEN_URL and BFF_CERT__API_URL.")
        case OutcomeUnknown():
            return (
                f"no answer ({error})",
                "Try again; if it stays, look at firewalls and proxies in between.",
            )
        case _:
            return (str(error), "")
