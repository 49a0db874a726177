"""The only reader of the environment: frozen, nested, validated once, passed on by value.

Variables are named `BFF_<GROUP>__<FIELD>`; each may also be given as a file (`<VARIABLE>_FILE`). `environment`
selects checks, never behaviour.
"""

import base64
import binascii
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

PREFIX = "BFF_"
FILE_SUFFIX = "_FILE"
LONGEST_FILE = 1_000_000
"""Characters; no setting is longer, and a device may have no end."""
JSON_TYPES = (dict, tuple, frozenset)
TOSS_PUBLIC_KEY_SHA256 = "3c9b95d619baa27623d5509d68e2c48df2330abac55e69de5a0a5b9c555ff9e3"
"""Of the DER of the published key (toss-cert reference 4.5)."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
TOSS_CALLBACK_NETWORKS = tuple(
    IPv4Network(network)
    for place in ("117.52.3", "211.115.96", "106.249.5")
    for network in (f"{place}.11/32", f"{place}.80/29")
)
"""From where Toss calls (apps-in-toss reference 2.3): .11 and .80 to .87 of each place."""
LOCAL_NETWORKS: tuple[IPv4Network | IPv6Network, ...] = (
    *map(IPv4Network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
    *map(IPv6Network, ("::1/128", "fc00::/7")),
)
"""This machine, and what is never routed on the internet."""
MAX_CALLBACK_EXCEPTION = timedelta(hours=24)
"""How far ahead production lets an exception for a callback end."""
WIDEST_PROXY_NETWORK = {4: 8, 6: 16}
"""Shortest prefix by IP version that production takes for trusted proxies: 10.0.0.0/8, but not 0.0.0.0/0."""
SHORTEST_AUTH = 16
"""Characters of a callback's Authorization value that production takes; the console lets one choose it freely."""
REPORTED_WORD = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$"
"""Form of a release or an environment in an error report."""
RESULT_WINDOW = timedelta(minutes=60)
"""Time for result calls after the user has finished (toss-cert reference 8)."""
MAX_REQUEST_LIFE = timedelta(seconds=1800)
"""Longest life of a request at Toss (toss-cert reference 3.3, 8)."""


class SettingsError(Exception):
    """Everything that is wrong with the settings, at once and without a single value."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))


def _https_or_loopback(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.port is None or parts.port > 0
    except ValueError:
        is_usable = False
    if not is_usable or not url.isascii() or any(mark.isspace() for mark in url):
        raise ValueError("is not an address")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must not carry credentials, a query or a fragment")
    if not parts.hostname or (
        parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS)
    ):
        raise ValueError("must be https (http only for loopback)")
    return url.rstrip("/")


def _absolute_path(path: str) -> str:
    if not path.startswith("/") or any(mark in path for mark in "?# "):
        raise ValueError("must begin with / and carry no query")
    return path


def _aes_key(text: SecretStr) -> SecretStr:
    try:
        key = base64.b64decode(text.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be Base64") from None
    if len(key) != 32 or base64.b64encode(key).decode() != text.get_secret_value():  # noqa: PLR2004 - AES-256
        raise ValueError("must be 32 bytes in Base64")
    return text


def _with_driver(url: SecretStr) -> SecretStr:
    """Accept the usual spellings of hosting providers: the driver is our affair."""
    scheme, separator, rest = url.get_secret_value().partition("://")
    drivers = {"postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
    driver = drivers.get(scheme, scheme)
    if driver == "postgresql+asyncpg":
        rest = rest.replace("sslmode=", "ssl=")  # libpq's spelling; asyncpg takes the same words
    if driver not in drivers.values():
        raise ValueError("must begin with postgresql:// or sqlite://")
    return SecretStr(driver + separator + rest)


def _console_value(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if text != text.strip() or not text.isprintable():
        raise ValueError("must be printable, without blanks around it")
    return value


def _webhook_secret(value: SecretStr) -> SecretStr:
    prefix, _, text = value.get_secret_value().partition("_")
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if prefix != "whsec" or not 24 <= len(key) <= 64:  # noqa: PLR2004 - as Standard Webhooks has it
        raise ValueError("must be whsec_ and 24 to 64 bytes in Base64")
    return value


def _sentry_dsn(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        is_usable = parts.port is None or parts.port > 0
    except ValueError:
        is_usable = False
    project = parts.path.rpartition("/")[2] if is_usable else ""
    if parts.scheme not in {"http", "https"} or not (parts.hostname and parts.username and project.isdecimal()):
        raise ValueError("must be a DSN: https://KEY@HOST/PROJECT")
    return value


def _word_for_nothing(value: object) -> object:
    return None if value == "none" else value


def _aware_instant(value: object) -> object:
    # pydantic would also take a bare number, and a naive instant would mean another time on every machine.
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        instant = None
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise ValueError("must be an ISO 8601 instant with its offset, such as 2026-01-31T12:00:00Z")
    return instant


def _number_is_seconds(value: object) -> object:
    # An environment has only text, in which pydantic would look for ISO 8601 alone.
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Url = Annotated[str, AfterValidator(_https_or_loopback)]
UrlPath = Annotated[str, AfterValidator(_absolute_path)]
Key = Annotated[SecretStr, AfterValidator(_aes_key)]
Seconds = Annotated[timedelta, BeforeValidator(_number_is_seconds)]
"""A number of seconds (`10`, `0.5`) or ISO 8601 (`PT10S`)."""
Duration = Annotated[Seconds, Field(gt=timedelta(0))]
Instant = Annotated[datetime, BeforeValidator(_aware_instant)]
CallbackName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
ConsoleValue = Annotated[SecretStr, AfterValidator(_console_value)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(Group):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    workers: int = Field(1, ge=1, le=64)
    body_limit_bytes: int = Field(16 * 1024, ge=1024)
    body_timeout: Duration = timedelta(seconds=10)
    """By when the whole body of a request has to be here."""
    docs_enabled: bool | None = None
    """None: `/docs` and `/openapi.json` are served except in production."""
    shutdown_grace: Duration = timedelta(seconds=25)
    reconcile_every: Annotated[Seconds, Field(ge=timedelta(0))] = timedelta(seconds=30)
    """How often each process settles what is open, delivers events and looks for refunds; 0: never by itself."""


class LoggingSettings(Group):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "console"] = "json"


class NetworkSettings(Group):
    app_name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The mini-app's name in the console: its four origins may call (CORS). No cookies are used anywhere."""
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Only what these say in X-Forwarded-For is believed."""
    callback_allowlist: tuple[IPvAnyNetwork, ...] = TOSS_CALLBACK_NETWORKS
    """Who may call below `/callbacks/toss`. Empty: nobody."""
    callback_exceptions: dict[CallbackName, Instant] = {}
    """Until when any address may call one callback, by the part of its path below `/callbacks/toss`: the console's
    test button calls from the operator's own browser (apps-in-toss reference 14.1). Its secret is wanted all the
    same."""
    metrics_allowlist: tuple[IPvAnyNetwork, ...] = LOCAL_NETWORKS
    """Who may read `/metrics`. Empty: nobody."""
    allowed_origins: tuple[str, ...] = ()
    """Further browser origins, such as a developer's own."""
    accept_hosts: tuple[str, ...] = ()
    """Production talks to other hosts than those of toss.im only if they are confirmed here."""


class CallbackSettings(Group):
    """The Authorization values that are set in the console. A callback without one does not exist (404)."""

    login_unlink_auth: ConsoleValue | None = None
    """As it was typed into the console."""
    consent_withdrawal_auth: ConsoleValue | None = None
    payment_auth: ConsoleValue | None = None
    """Apps in Toss documents no payment callback; plain Toss Pay has one (apps-in-toss reference 14.4)."""
    iap_subscription_auth: ConsoleValue | None = None
    retention_days: int = Field(90, ge=1)
    """How long a notice is kept after it was handled; open ones stay."""


class LimitSettings(Group):
    """What one address (IPv4, or a /64 of IPv6) may ask of the mini-app door in a minute.

    Wide, as a carrier's NAT puts many users behind one address: they stop a machine, not a crowd. There is no value
    for "no limit".
    """

    per_minute: int = Field(600, ge=1, le=1_000_000)
    """Requests below `/api/v1`."""
    starts_per_minute: int = Field(60, ge=1, le=1_000_000)
    """Of these, the ones that cost a call to Toss or a push: starting a verification, logging in."""


class DatabaseSettings(Group):
    url: Annotated[SecretStr, AfterValidator(_with_driver)] = SecretStr("sqlite+aiosqlite:///var/bff.db")
    pool_size: int = Field(10, ge=1)
    timeout: Duration = timedelta(seconds=5)


class RedisSettings(Group):
    url: SecretStr | None = None
    timeout: Duration = timedelta(seconds=1)


class VaultSettings(Group):
    keys: dict[KeyId, Key]
    active_key: KeyId
    hash_key: Key

    @staticmethod
    def key_bytes(key: SecretStr) -> bytes:
        return base64.b64decode(key.get_secret_value())


class DisclosedField(StrEnum):
    """What the mini-app door may hand out. CI and DI are not among them: they are for servers only."""

    MASKED_NAME = "maskedName"
    NAME = "name"
    BIRTHDAY = "birthday"
    GENDER = "gender"
    NATIONALITY = "nationality"
    AGE_GROUP = "ageGroup"
    COMPLETED_AT = "completedAt"


class ProfileField(StrEnum):
    """What the mini-app door may say of a user who is logged in. CI is not among them: it is for servers only."""

    USER_KEY = "userKey"
    MASKED_NAME = "maskedName"
    NAME = "name"
    PHONE = "phone"
    CALLING_CODE = "callingCode"
    BIRTHDAY = "birthday"
    GENDER = "gender"
    NATIONALITY = "nationality"
    EMAIL = "email"


class CertSettings(Group):
    client_id: str = Field(min_length=1)
    client_secret: SecretStr = Field(min_length=1)
    scope: str = "ca"
    token_url: Url = "https://oauth2.cert.toss.im/token"  # noqa: S105 - an address, not a token
    api_url: Url = "https://cert.toss.im"
    request_path: UrlPath = "/api/v2/sign/user/auth/id/request"
    status_path: UrlPath = "/api/v2/sign/user/auth/id/status"
    result_path: UrlPath = "/api/v2/sign/user/auth/id/result"
    ca_file: Path | None = None
    """CA file for Toss's servers; None means the operating system's store."""
    public_key: str | None = None
    """Toss's RSA key (Base64 of DER, or PEM); None means the published one (reference 4.5, Q15)."""
    accept_public_key_sha256: str | None = None
    """Production takes a key other than the published one only if its fingerprint is confirmed here."""
    version: str = Field("v1", pattern=r"^[A-Za-z0-9._-]{1,32}$")
    request_url: str = Field("intoss://my-granite-app", min_length=1, max_length=1000)
    trigger_type: Literal["APP_SCHEME", "PUSH"] = "APP_SCHEME"
    expire_seconds: int | None = Field(None, ge=1, le=1800)
    """Sent only when set; the life that Toss gives a request by itself is not published (Q3)."""
    connect_timeout: Duration = timedelta(seconds=3)
    read_timeout: Duration = timedelta(seconds=10)
    call_deadline: Duration = timedelta(seconds=15)
    """A call in all: waiting for a connection, fetching a token, one repetition with a new token."""
    result_lease: Duration = timedelta(seconds=30)
    """How long a result call keeps others out; after a crash the next one waits this long at most."""
    pool_size: int = Field(20, ge=1, le=100)
    token_max_ttl: Duration = timedelta(hours=24)
    token_failure_ttl: Duration = timedelta(seconds=3)
    result_window_margin: Annotated[Seconds, Field(ge=timedelta(0), lt=RESULT_WINDOW)] = timedelta(minutes=1)
    disclosed_fields: frozenset[DisclosedField] = frozenset(
        {DisclosedField.MASKED_NAME, DisclosedField.AGE_GROUP, DisclosedField.COMPLETED_AT}
    )
    adult_rule: Literal["by_date", "by_year"] = "by_date"
    """From 19: on the 19th birthday, or from 1 January of that year. Which one Toss uses is open (Q8)."""
    retention_days: int = Field(365, ge=1)
    signature_retention_days: int = Field(1825, ge=1)
    signature_ca_files: tuple[Path, ...] = ()
    signature_policy_oid: Annotated[str | None, BeforeValidator(_word_for_nothing)] = "1.2.410.200098.5.1.1.1.3"
    """Certificate policy that a signer's certificate must carry (reference 6); `none`: not checked."""
    signature_time_tolerance: Duration = timedelta(minutes=5)


class TossSettings(Group):
    """The Apps-in-Toss partner API, which wants a client certificate. Unused until one is given."""

    api_url: Url = "https://apps-in-toss-api.toss.im"
    pay_url: Url = "https://pay-apps-in-toss-api.toss.im"
    """Toss Pay has a host of its own (apps-in-toss reference 2.1)."""
    ca_file: Path | None = None
    certificate_folder: Path | None = None
    """A folder of pairs (`<name>_public.crt`, `<name>_private.key`); changes are noticed without a restart."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    certificate_pem: SecretStr | None = None
    key_pem: SecretStr | None = None
    certificate_look_every: Duration = timedelta(seconds=10)
    certificate_retry_every: Duration = timedelta(seconds=60)
    connect_timeout: Duration = timedelta(seconds=3)
    read_timeout: Duration = timedelta(seconds=15)
    """Toss Pay asks for 13 to 15 seconds on an execution (apps-in-toss reference 2.4)."""
    call_deadline: Duration = timedelta(seconds=20)
    """A call in all, waiting for a connection included."""
    pool_size: int = Field(20, ge=1, le=100)

    @property
    def has_certificate(self) -> bool:
        return any((self.certificate_folder, self.certificate_file, self.certificate_pem))


class BudgetSettings(Group):
    """What Toss grants this mini-app in a minute, and how it is cut (decision 0012)."""

    per_minute: int = Field(3000, ge=1)
    head_room: float = Field(0.1, ge=0, lt=1)
    """Left to whoever calls Toss past this service, and to faults beyond those that the decision covers."""
    replicas: int = Field(1, ge=1)
    """The most that may run at once, with those that a roll-out adds; each has `BFF_SERVER__WORKERS` processes."""
    own_share: float = Field(0.3, ge=0, lt=1)
    """Divided among the processes for when Redis is away."""
    background_share: float = Field(0.5, ge=0, lt=1)
    interactive_reserve: float = Field(0.2, ge=0, lt=1)


class LoginSettings(Group):
    """Toss login. Needs a client certificate (`BFF_TOSS__...`)."""

    decryption_keys: tuple[Key, ...] = ()
    """From Toss's mail, the newest first; during a change both. Without one a user is known by userKey alone."""
    aads: tuple[str, ...] = ("TOSS",)
    """Additional data of the encryption, from the same mail (apps-in-toss reference 6.5)."""
    session_sliding: Duration = timedelta(days=7)
    """A session that is not used for so long is over."""
    session_absolute: Duration = timedelta(days=30)
    """A session is over after so long in any case."""
    disclosed_fields: frozenset[ProfileField] = frozenset({ProfileField.MASKED_NAME})
    retention_days: int = Field(365, ge=1)
    """After the last login everything about a user is erased."""
    unlinked_retention_days: int = Field(30, ge=1)
    """For so long a user who has unlinked is recognised on return; their personal data goes at once."""


class PaySettings(Group):
    """Toss Pay. Needs a client certificate (`BFF_TOSS__...`) and a contract."""

    mode: Literal["test", "live"] | None = None
    """None: there are no payments here. `test` sends `isTestPayment: true`, which moves no money."""
    order_prefix: str = Field("", pattern=r"^[A-Za-z0-9]{0,8}$")
    """Put into every orderNo, to tell apart several services of one merchant."""
    catalogue_file: Path | None = None
    """What a mini-app may buy by name; JSON, read again when it changes."""
    status_by_order_no: bool = True
    """Whether Toss answers get-payment-status without a payToken: guide and OpenAPI differ (reference 8.5, 18)."""
    abandon_after: Duration = timedelta(hours=24)
    """A payment that nobody has executed by then is over here, whatever Toss still says of it."""
    retention_days: int = Field(1825, ge=1)
    """After its last change a payment is erased."""


class BillingSettings(Group):
    """Toss Pay's recurring payment. Known from a digest only (apps-in-toss reference 9), so off unless enabled."""

    enabled: bool = False
    api_url: Url = "https://pay-apps-in-toss-api.toss.im"
    """The digest prints the other host; open (reference 9, 18)."""
    path_prefix: UrlPath = "/api-partner/v1/apps-in-toss/pay"
    refund_path: Literal["refund-payment", "refund-billing"] = "refund-payment"
    """Plain Toss Pay refunds charges like payments; the other name was mentioned once."""
    status_field: str = Field("status", pattern=r"^[A-Za-z]{1,40}$")
    """Where get-billing-key-status answers the status: not documented."""


class PurchaseSettings(Group):
    """In-app purchase. Needs a client certificate (`BFF_TOSS__...`)."""

    sends_user_key: bool = True
    """Name the user who is logged in to get-order-status, so that Toss checks whose order it is."""
    visibility_wait: Annotated[Seconds, Field(ge=timedelta(0), le=timedelta(seconds=25))] = timedelta(seconds=15)
    """How long a grant waits until Toss shows a new order; the SDK gives up after 30 seconds (reference 10.2)."""
    notice_zone: Literal["Asia/Seoul", "UTC"] = "Asia/Seoul"
    """Of the times in subscription callbacks and order status, which name none (reference 14.2, open)."""
    renewal_cycles: dict[str, Literal["WEEKLY", "MONTHLY", "YEARLY"]] = {}
    """By sku; for the end of a subscription whose callback names none."""
    expiry_grace: Annotated[Seconds, Field(ge=timedelta(0))] = timedelta(days=1)
    """A subscription lives on for so long after its end, as a notice of renewal may be late."""
    refund_check_every: Duration = timedelta(days=1)
    refund_watch_days: int = Field(60, ge=0)
    """For so long after the grant it is checked whether the order was refunded; nobody tells."""
    retention_days: int = Field(1825, ge=1)


class EventSettings(Group):
    """What the partner's server is told, signed as Standard Webhooks."""

    url: Url | None = None
    """None: events are kept for `GET /server/v1/events` only."""
    secrets: tuple[WebhookSecret, ...] = ()
    """`whsec_...`; each signs, so that a secret can be changed without a gap."""
    ca_file: Path | None = None
    timeout: Duration = timedelta(seconds=15)
    give_up_after: Duration = timedelta(days=3)
    retention_days: int = Field(90, ge=1)


class SentrySettings(Group):
    """Error reports. Without a DSN there are none; the variables of Sentry's own SDK have no say."""

    dsn: Annotated[SecretStr, AfterValidator(_sentry_dsn)] | None = None
    environment: str | None = Field(None, pattern=REPORTED_WORD)
    """None: the service's own `environment`."""
    release: str | None = Field(None, pattern=REPORTED_WORD)
    """None: this version."""
    sample_rate: float = Field(1.0, ge=0, le=1)
    """Share of the errors that is reported."""


class TracingSettings(Group):
    """Spans, by OTLP over HTTP. Without an address there are none, and trace ids are in the log all the same."""

    endpoint: Url | None = None
    """Of the collector, with its path (`/v1/traces`). Needs the extra `tracing`."""
    sample_ratio: float = Field(1.0, ge=0, le=1)
    """Share of the traces that begin here; in others the caller's mark decides."""
    sends_to_toss: bool = False
    """Pass `traceparent` on to Toss, which documents no such header."""


class FaultSettings(Group):
    """For tests of crashes only; production refuses every value."""

    pause_at: str | None = None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    environment: Literal["development", "production"] = "development"
    server: ServerSettings = ServerSettings()
    logging: LoggingSettings = LoggingSettings()
    network: NetworkSettings = NetworkSettings()
    callbacks: CallbackSettings = CallbackSettings()
    limits: LimitSettings = LimitSettings()
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    vault: VaultSettings
    cert: CertSettings
    toss: TossSettings = TossSettings()
    budget: BudgetSettings = BudgetSettings()
    login: LoginSettings = LoginSettings()
    pay: PaySettings = PaySettings()
    billing: BillingSettings = BillingSettings()
    purchases: PurchaseSettings = PurchaseSettings()
    events: EventSettings = EventSettings()
    sentry: SentrySettings = SentrySettings()
    tracing: TracingSettings = TracingSettings()
    fault: FaultSettings = FaultSettings()

    @property
    def serves_docs(self) -> bool:
        if self.server.docs_enabled is None:
            return self.environment != "production"
        return self.server.docs_enabled

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """None reads by itself: `from_environment` does, and says what is wrong."""
        return (init_settings,)

    @classmethod
    def from_environment(cls) -> Self:
        """Settings of this process.

        Raises: SettingsError with every fault, named by variable, never by value.
        """
        given, faults = _with_files(os.environ)
        # pydantic-settings forbids unknown keys inside a group but lets a misspelt group pass.
        known = {f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        faults += [
            f"{name}: unknown variable"
            for name in sorted(given)
            if name.upper().startswith(PREFIX) and name.upper().split("__")[0] not in known
        ]
        # pydantic-settings ignores case, and of two spellings takes whichever comes last.
        spellings = Counter(name.upper() for name in os.environ if name.upper().startswith(PREFIX))
        faults += [f"{name}: given in two spellings" for name, count in spellings.items() if count > 1]
        source = EnvSettingsSource(cls)
        source.env_vars = {name.lower(): value for name, value in given.items() if value}
        try:
            settings = cls.model_validate(source())
        except ValidationError as error:
            faults += _faults_of(error)
        except ValueError:
            # Raised by pydantic-settings for JSON that does not parse; its text may show the value.
            faults += _json_faults(given) or ["a variable that should be JSON does not parse"]
        else:
            faults += settings.faults()
            if not faults:
                return settings
        raise SettingsError(faults)

    def faults(self, *, now: datetime | None = None) -> list[str]:
        """What is wrong across fields, and (in production) unfit for production. Empty if all is well.

        `now`: by the clock of whoever builds the application; else by this machine's.
        """
        checks = self._consistency_checks()
        if self.environment == "production":
            checks += self._production_checks(now or datetime.now(UTC))
        return [fault for fault, is_wrong in checks if is_wrong]

    def _consistency_checks(self) -> list[tuple[str, bool]]:
        cert, vault = self.cert, self.vault
        return [
            ("BFF_VAULT__ACTIVE_KEY: names no key of BFF_VAULT__KEYS", vault.active_key not in vault.keys),
            (
                "BFF_CERT__RESULT_LEASE: must be at least 1.5 times BFF_CERT__CALL_DEADLINE",
                cert.result_lease < cert.call_deadline * 1.5,
            ),
            (
                "BFF_LOGIN__SESSION_SLIDING: must not be longer than BFF_LOGIN__SESSION_ABSOLUTE",
                self.login.session_sliding > self.login.session_absolute,
            ),
            (
                "BFF_LOGIN__RETENTION_DAYS: must not end before BFF_LOGIN__SESSION_ABSOLUTE",
                timedelta(days=self.login.retention_days) < self.login.session_absolute,
            ),
            (
                "BFF_EVENTS__SECRETS: an events address needs one",
                self.events.url is not None and not self.events.secrets,
            ),
            (
                "BFF_TRACING__ENDPOINT: needs the extra `tracing` to be installed",
                self.tracing.endpoint is not None and find_spec("opentelemetry.sdk") is None,
            ),
            ("BFF_BILLING__ENABLED: needs BFF_PAY__MODE", self.billing.enabled and self.pay.mode is None),
            (
                "BFF_PAY__MODE: live payments are for production only",
                self.pay.mode == "live" and self.environment != "production",
            ),
        ]

    def _production_checks(self, now: datetime) -> list[tuple[str, bool]]:
        cert, vault = self.cert, self.vault
        sqlite = self.database.url.get_secret_value().startswith("sqlite")
        hosts = {
            "BFF_CERT__TOKEN_URL": cert.token_url,
            "BFF_CERT__API_URL": cert.api_url,
            "BFF_TOSS__API_URL": self.toss.api_url,
            "BFF_TOSS__PAY_URL": self.toss.pay_url,
            "BFF_BILLING__API_URL": self.billing.api_url,
        }
        keys = {f"BFF_VAULT__KEYS[{key_id}]": vault.key_bytes(key) for key_id, key in vault.keys.items()}
        keys["BFF_VAULT__HASH_KEY"] = vault.key_bytes(vault.hash_key)
        return [
            ("BFF_CERT__CLIENT_ID: test credentials", _is_for_tests(cert.client_id)),
            (
                "BFF_CERT__CLIENT_SECRET: test credentials",
                _is_for_tests(cert.client_secret.get_secret_value()),
            ),
            *(
                (
                    f"{name}: not a host of toss.im, and BFF_NETWORK__ACCEPT_HOSTS does not confirm it",
                    not _is_trusted_host(urlsplit(url).hostname or "", self.network.accept_hosts),
                )
                for name, url in hosts.items()
            ),
            *((f"{name}: a placeholder, not a random key", _is_placeholder(key)) for name, key in keys.items()),
            *(
                ("BFF_LOGIN__DECRYPTION_KEYS: a placeholder, not Toss's key", _is_placeholder(vault.key_bytes(key)))
                for key in self.login.decryption_keys
            ),
            ("BFF_VAULT: the same key under two names", len(set(keys.values())) < len(keys)),
            (
                "BFF_CERT__PUBLIC_KEY: not Toss's, and BFF_CERT__ACCEPT_PUBLIC_KEY_SHA256 does not confirm it",
                cert.public_key is not None and not _key_is_confirmed(cert),
            ),
            ("BFF_DATABASE__URL: SQLite cannot serve several workers", sqlite and self.server.workers > 1),
            (
                "BFF_REDIS__URL: several workers need Redis",
                self.redis.url is None and self.server.workers > 1,
            ),
            (
                "BFF_REDIS__URL: several replicas need Redis (BFF_BUDGET__REPLICAS)",
                self.redis.url is None and self.budget.replicas > 1,
            ),
            (
                "BFF_DATABASE__URL: SQLite cannot serve several replicas (BFF_BUDGET__REPLICAS)",
                sqlite and self.budget.replicas > 1,
            ),
            (
                "BFF_NETWORK__ALLOWED_ORIGINS: holds more than https origins",
                not all(origin.startswith("https://") for origin in self.network.allowed_origins),
            ),
            ("BFF_NETWORK__CALLBACK_ALLOWLIST: empty, so Toss cannot call", not self.network.callback_allowlist),
            (
                "BFF_NETWORK__CALLBACK_ALLOWLIST: admits everybody",
                _admits_everybody(self.network.callback_allowlist),
            ),
            (
                "BFF_NETWORK__CALLBACK_EXCEPTIONS: lasts longer than 24 hours from now",
                any(until - now > MAX_CALLBACK_EXCEPTION for until in self.network.callback_exceptions.values()),
            ),
            (
                "BFF_NETWORK__METRICS_ALLOWLIST: admits everybody",
                _admits_everybody(self.network.metrics_allowlist),
            ),
            (
                "BFF_NETWORK__TRUSTED_PROXIES: trusts far more than proxies",
                any(
                    network.prefixlen < WIDEST_PROXY_NETWORK[network.version]
                    for network in self.network.trusted_proxies
                ),
            ),
            *(
                (f"{name}: shorter than {SHORTEST_AUTH} characters", is_short)
                for name, is_short in (
                    ("BFF_CALLBACKS__LOGIN_UNLINK_AUTH", _is_short(self.callbacks.login_unlink_auth)),
                    ("BFF_CALLBACKS__CONSENT_WITHDRAWAL_AUTH", _is_short(self.callbacks.consent_withdrawal_auth)),
                    ("BFF_CALLBACKS__PAYMENT_AUTH", _is_short(self.callbacks.payment_auth)),
                    ("BFF_CALLBACKS__IAP_SUBSCRIPTION_AUTH", _is_short(self.callbacks.iap_subscription_auth)),
                )
            ),
            ("BFF_PAY__MODE: test payments are not for production", self.pay.mode == "test"),
            (
                "BFF_PAY__MODE: needs a client certificate (BFF_TOSS__CERTIFICATE_FOLDER, _FILE or _PEM)",
                self.pay.mode is not None and not self.toss.has_certificate,
            ),
            *(
                (
                    "BFF_EVENTS__SECRETS: a placeholder, not a random secret",
                    _is_placeholder(base64.b64decode(secret.get_secret_value().partition("_")[2])),
                )
                for secret in self.events.secrets
            ),
            (
                "BFF_EVENTS__URL: must be https",
                self.events.url is not None and not self.events.url.startswith("https://"),
            ),
            (
                "BFF_SENTRY__DSN: must be https",
                self.sentry.dsn is not None and not self.sentry.dsn.get_secret_value().startswith("https://"),
            ),
            ("BFF_FAULT__PAUSE_AT: for tests of crashes only", self.fault.pause_at is not None),
        ]


def _is_for_tests(credential: str) -> bool:
    return credential.strip().casefold().startswith("test_")


def _is_trusted_host(host: str, accepted: Iterable[str]) -> bool:
    return host not in LOOPBACK_HOSTS and (host.endswith(".toss.im") or host in accepted)


def _is_short(auth: SecretStr | None) -> bool:
    return auth is not None and len(auth.get_secret_value().strip()) < SHORTEST_AUTH


def _admits_everybody(networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """However it is written: two halves are the whole."""
    four = collapse_addresses([network for network in networks if isinstance(network, IPv4Network)])
    six = collapse_addresses([network for network in networks if isinstance(network, IPv6Network)])
    return any(whole.prefixlen == 0 for whole in four) or any(whole.prefixlen == 0 for whole in six)


def _is_placeholder(key: bytes) -> bool:
    """Zeros, repeated words, sequences and typed text; none of 32 random bytes is any of them."""
    steps = {(after - before) % 256 for before, after in pairwise(key)}
    return len(set(key)) <= 8 or len(steps) == 1 or all(32 <= byte < 127 for byte in key)  # noqa: PLR2004


def _key_is_confirmed(cert: CertSettings) -> bool:
    armour = re.compile(r"-----[A-Z ]+-----|\s")
    try:
        der = base64.b64decode(armour.sub("", cert.public_key or ""), validate=True)
    except (binascii.Error, ValueError):
        return False
    fingerprint = hashlib.sha256(der).hexdigest()
    return fingerprint in {TOSS_PUBLIC_KEY_SHA256, (cert.accept_public_key_sha256 or "").lower()}


def _variables() -> Iterator[tuple[str, FieldInfo]]:
    """Every variable by its name."""
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type(Group)):
            for field, inner in info.annotation.model_fields.items():
                yield f"{PREFIX}{name}__{field}".upper(), inner
        else:
            yield f"{PREFIX}{name}".upper(), info


def _with_files(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment with the contents of files in place of `<VARIABLE>_FILE`, as containers are given secrets;
    and what is wrong.

    A name that is a variable itself, such as BFF_TOSS__CERTIFICATE_FILE, keeps its meaning.
    """
    variables = dict(_variables())
    given, faults = dict(environment), []
    directly = {name.upper() for name, value in environment.items() if value}
    for name, path in environment.items():
        variable = name.upper().removesuffix(FILE_SUFFIX)
        if name.upper() in variables or variable not in variables:
            continue
        del given[name]
        if not path:
            continue
        if variable in directly:
            faults.append(f"{variable}{FILE_SUFFIX}: {variable} is given as well")
            continue
        try:
            with Path(path).open(
                encoding="utf-8-sig"
            ) as file:  # an editor's mark at the start is no part of a secret
                content = file.read(LONGEST_FILE + 1).rstrip("\r\n")
        except (OSError, ValueError) as error:
            faults.append(f"{variable}{FILE_SUFFIX}: cannot be read ({type(error).__name__})")
            continue
        if len(content) > LONGEST_FILE or "\0" in content:
            faults.append(f"{variable}{FILE_SUFFIX}: the file holds no text of a setting")
            continue
        if not content:
            faults.append(f"{variable}{FILE_SUFFIX}: the file is empty")
        given[variable] = content
    return given, faults


def _json_faults(given: Mapping[str, str]) -> list[str]:
    """Variables that pydantic-settings reads as JSON and that do not parse."""
    names = [name.partition("__")[0] for name, _ in _variables() if "__" in name]
    names += [name for name, field in _variables() if get_origin(field.annotation) in JSON_TYPES]
    texts = {name.upper(): value for name, value in given.items()}
    faults = []
    for variable in dict.fromkeys(names):
        try:
            json.loads(texts.get(variable) or "null")
        except ValueError:
            faults.append(f"{variable}: must be JSON (a list or an object)")
    return faults


def _faults_of(error: ValidationError) -> list[str]:
    faults = []
    for problem in error.errors(include_input=False, include_url=False):
        # Not deeper: what follows may be the caller's own text, such as a key that stands in the place of its id.
        name = PREFIX + "__".join(str(part).upper() for part in problem["loc"][:2])
        group = Settings.model_fields[str(problem["loc"][0])].annotation
        if problem["type"] == "missing" and len(problem["loc"]) == 1 and isinstance(group, type(Group)):
            names = [f"{name}__{field.upper()}" for field, info in group.model_fields.items() if info.is_required()]
        else:
            names = [name]
        told = {"missing": "is required", "extra_forbidden": "unknown variable"}
        message = told.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        faults += [f"{name}: {message}" for name in names]
    return faults
