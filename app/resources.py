"""What lives as long as the process: opened together, closed in reverse, handed to requests and to commands."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import structlog

from app.callbacks.inbox import Inbox, unlinking
from app.callbacks.tables import CallbackName
from app.cert.service import CertService, Checkpoint, Counts, Rules
from app.database import Database, LateWrites
from app.departure import Departure
from app.errors import SessionRequired, UserNotFound
from app.events.delivery import AT_ONCE, Delivery, Receiver
from app.events.outbox import Outbox
from app.events.tables import EventType
from app.gauges import Gauges
from app.login.service import LoginService
from app.login.service import Rules as LoginRules
from app.login.sessions import Sessions
from app.login.tokens import UserTokens
from app.metrics import ClientCertificateReading, Metrics
from app.payments.billing import BillingService
from app.payments.catalogue import Catalogue, CatalogueFault
from app.payments.ledger import Ledger
from app.payments.orders import Orders
from app.payments.service import PaymentService
from app.payments.service import Rules as PaymentRules
from app.purchases.service import PurchaseService
from app.purchases.service import Rules as PurchaseRules
from app.server_keys import ServerKeys
from app.settings import (
    MAX_REQUEST_LIFE,
    RESULT_WINDOW,
    CertSettings,
    Settings,
    SettingsError,
    TossSettings,
    VaultSettings,
)
from app.shared_state import (
    CallerRates,
    InProcessState,
    RedisState,
    SharedBudget,
    SharedState,
    SharedTokenStore,
)
from app.toss.cert import CertApi, CertEndpoints
from app.toss.certificates import CertificateSources
from app.toss.crypto import TOSS_PUBLIC_KEY, LoginFieldCipher, PublicKey
from app.toss.governor import BudgetRules, Governor
from app.toss.iap import IapApi
from app.toss.login import LoginApi
from app.toss.partner import PartnerApi, TossUser
from app.toss.pay import BillingApi, PayApi
from app.toss.signature import SignatureChecker
from app.toss.tokens import TokenEndpoint, TokenKeeper
from app.toss.transport import MutualTransport, Traced, Transport
from app.tracing import Tracing
from app.vault import Vault

Clock = Callable[[], datetime]

ZONES = {"Asia/Seoul": timezone(timedelta(hours=9)), "UTC": UTC}
"""Korea has had no summer time since 1988; images without a time zone database know it all the same."""

MIN_QUIET = timedelta(seconds=60)
"""For so long a call that moves money may be under way at Toss; a bank takes up to 10 s (reference 2.4)."""


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Resources:
    settings: Settings
    clock: Clock
    metrics: Metrics
    gauges: Gauges
    vault: Vault
    database: Database
    shared_state: SharedState
    caller_rates: CallerRates
    cert_transport: Transport
    cert_tokens: TokenEndpoint
    partner_transport: MutualTransport | None
    """To the Apps-in-Toss partner API; None without a client certificate."""
    writes: LateWrites
    cert: CertService
    login: LoginService
    catalogue: Catalogue
    payments: PaymentService
    orders: Orders
    billing: BillingService
    purchases: PurchaseService
    departure: Departure
    inbox: Inbox
    outbox: Outbox
    delivery: Delivery
    server_keys: ServerKeys


@asynccontextmanager
async def open_resources(
    settings: Settings, *, clock: Clock = utc_now, metrics: Metrics | None = None, tracing: Tracing | None = None
) -> AsyncIterator[Resources]:
    """Nothing here connects yet: a database or Redis that is away is a matter for /readyz, not for the start.

    Raises: SettingsError for files and keys that cannot be used.
    """
    cert = settings.cert
    metrics, tracing = metrics or Metrics(), tracing or Tracing(settings)
    faults: list[str] = []
    with _noting("BFF_CERT__PUBLIC_KEY", faults):
        public_key = PublicKey.parse(cert.public_key or TOSS_PUBLIC_KEY)
    with _noting("BFF_CERT__SIGNATURE_CA_FILES", faults):
        signatures = _signature_checker(cert)
    async with AsyncExitStack() as stack:
        with _noting("BFF_CERT__CA_FILE", faults):
            transport = Transport(
                ca_file=cert.ca_file,
                pool_size=cert.pool_size,
                connect_timeout=cert.connect_timeout,
                read_timeout=cert.read_timeout,
                saw=_server_seen(metrics),
                traced=tracing.to_toss,
            )
            stack.push_async_callback(transport.aclose)
        with _noting("BFF_TOSS__CA_FILE", faults):
            partner_transport = _partner_transport(settings, metrics=metrics, clock=clock, traced=tracing.to_toss)
            if partner_transport is not None:
                stack.push_async_callback(partner_transport.aclose)
                metrics.watch_client_certificate(_certificate_reader(partner_transport, clock))
        with _noting("BFF_EVENTS__CA_FILE", faults):
            receiver = _event_receiver(settings, traced=tracing.to_partner)
            if receiver is not None:
                stack.push_async_callback(receiver.transport.aclose)
        faults += _certificate_faults(settings, clock())
        with _noting("BFF_DATABASE__URL", faults):
            database = Database(
                settings.database.url.get_secret_value(),
                pool_size=settings.database.pool_size,
                timeout=settings.database.timeout,
            )
            stack.push_async_callback(database.aclose)
        with _noting("BFF_REDIS__URL", faults):
            shared_state = _shared_state(settings)
            stack.push_async_callback(shared_state.aclose)
        with _noting("BFF_PAY__CATALOGUE_FILE", faults):
            catalogue = Catalogue(settings.pay.catalogue_file)
        if faults:
            raise SettingsError(faults)
        vault = open_vault(settings.vault)
        endpoint = TokenEndpoint(
            transport=transport,
            url=cert.token_url,
            client_id=cert.client_id,
            client_secret=cert.client_secret.get_secret_value(),
            scope=cert.scope,
            max_ttl=cert.token_max_ttl,
            clock=clock,
            observe=_toss_called(metrics),
        )
        store = SharedTokenStore(
            state=shared_state,
            vault=vault,
            name=_token_name(settings),
            # Longer than a fetch can take, so that no second one starts while the first is still under way.
            lock_ttl=cert.call_deadline + timedelta(seconds=5),
            failure_ttl=cert.token_failure_ttl,
            clock=clock,
        )
        keeper = TokenKeeper(fetch=endpoint.fetch, store=store, clock=clock, failure_ttl=cert.token_failure_ttl)
        writes = await stack.enter_async_context(aclosing(LateWrites(database=database)))
        checkpoint = pause_at(settings.fault.pause_at)
        outbox = Outbox(
            clock=clock,
            is_delivering=receiver is not None,
            give_up_after=settings.events.give_up_after,
            count=_event_count(metrics),
        )
        service = CertService(
            database=database,
            writes=writes,
            api=_cert_api(cert, transport=transport, tokens=keeper, public_key=public_key, metrics=metrics),
            vault=vault,
            signatures=signatures,
            outbox=outbox,
            rules=_cert_rules(cert),
            clock=clock,
            checkpoint=checkpoint,
            counts=Counts(
                moved=lambda state: metrics.verification_moved(state=state),
                handed_out=lambda source: metrics.result_handed_out(source=source),
                lost=metrics.result_answer_lost,
            ),
        )
        partner = partner_apis(settings, transport=partner_transport, shared_state=shared_state, metrics=metrics)
        login = LoginService(
            database=database,
            writes=writes,
            api=partner.login,
            tokens=UserTokens(
                database=database,
                writes=writes,
                api=partner.login,
                vault=vault,
                clock=clock,
                lease=settings.toss.call_deadline + timedelta(seconds=5),
            )
            if partner.login is not None
            else None,
            sessions=Sessions(
                database=database,
                vault=vault,
                clock=clock,
                sliding=settings.login.session_sliding,
                absolute=settings.login.session_absolute,
            ),
            cipher=LoginFieldCipher(
                keys=[settings.vault.key_bytes(key) for key in settings.login.decryption_keys],
                aads=settings.login.aads,
            ),
            vault=vault,
            outbox=outbox,
            rules=_login_rules(settings),
            clock=clock,
            checkpoint=checkpoint,
        )
        payments, orders, billing = _payments(
            settings,
            partner=partner,
            catalogue=catalogue,
            database=database,
            writes=writes,
            vault=vault,
            outbox=outbox,
            metrics=metrics,
            clock=clock,
            checkpoint=checkpoint,
        )
        purchases = PurchaseService(
            database=database,
            api=partner.iap,
            outbox=outbox,
            user_of=_user_at_toss(login),
            rules=_purchase_rules(settings),
            clock=clock,
            checkpoint=checkpoint,
        )
        stack.push_async_callback(purchases.aclose)
        departure = Departure(login=login, cert=service, billing=billing, clock=clock)
        inbox = Inbox(
            database=database,
            vault=vault,
            clock=clock,
            handlers={
                CallbackName.LOGIN_UNLINK: unlinking(departure.by_notice),
                CallbackName.IAP_SUBSCRIPTION: purchases.follow,
                CallbackName.PAYMENT: payments.by_callback,
            },
            retention=timedelta(days=settings.callbacks.retention_days),
            checkpoint=checkpoint,
            count=lambda what, callback: metrics.callback_received(callback=callback, outcome=what),
        )
        stack.push_async_callback(inbox.aclose)
        gauges = await stack.enter_async_context(
            aclosing(
                Gauges(
                    database=database,
                    shared_state=shared_state,
                    governor=partner.governor,
                    tokens=keeper,
                    give_up_after=settings.events.give_up_after,
                    clock=clock,
                )
            )
        )
        yield Resources(
            settings=settings,
            clock=clock,
            metrics=metrics,
            gauges=gauges,
            vault=vault,
            database=database,
            shared_state=shared_state,
            caller_rates=CallerRates(state=shared_state, vault=vault),
            cert_transport=transport,
            cert_tokens=endpoint,
            partner_transport=partner_transport,
            writes=writes,
            cert=service,
            login=login,
            catalogue=catalogue,
            payments=payments,
            orders=orders,
            billing=billing,
            purchases=purchases,
            departure=departure,
            inbox=inbox,
            outbox=outbox,
            delivery=Delivery(
                database=database,
                receiver=receiver,
                clock=clock,
                retention=timedelta(days=settings.events.retention_days),
                checkpoint=checkpoint,
                count=_event_count(metrics),
            ),
            server_keys=ServerKeys(database=database, vault=vault, clock=clock),
        )


def open_vault(settings: VaultSettings) -> Vault:
    return Vault(
        {key_id: settings.key_bytes(key) for key_id, key in settings.keys.items()},
        active_key=settings.active_key,
        hash_key=settings.key_bytes(settings.hash_key),
    )


def pause_at(step: str | None) -> Checkpoint:
    """Stop for good at one step of the result flow, so that a test can kill the process there."""
    log = structlog.stdlib.get_logger("app.fault")

    async def checkpoint(reached: str) -> None:
        if reached == step:
            log.warning("paused", step=step)
            await asyncio.Event().wait()

    return checkpoint


@contextmanager
def _noting(variable: str, faults: list[str]) -> Iterator[None]:
    """Turn what cannot be used into a fault that names the variable and shows no value."""
    try:
        yield
    except CatalogueFault as fault:
        faults.append(f"{variable}: {fault}")
    except ssl.SSLError:
        faults.append(f"{variable}: holds no usable certificate")
    except OSError as error:
        faults.append(f"{variable}: cannot be read ({error.strerror or type(error).__name__})")
    except Exception as error:  # noqa: BLE001 - SQLAlchemy, redis and our own parsers each have their own
        faults.append(f"{variable}: cannot be used ({type(error).__name__})")


def _certificate_sources(toss: TossSettings) -> CertificateSources:
    return CertificateSources(
        folder=toss.certificate_folder,
        files=[(toss.certificate_file, toss.key_file)] if toss.certificate_file else (),
        texts=[
            (
                toss.certificate_pem.get_secret_value(),
                toss.key_pem.get_secret_value() if toss.key_pem else None,
            )
        ]
        if toss.certificate_pem
        else (),
    )


def _certificate_faults(settings: Settings, now: datetime) -> list[str]:
    """Production does not start with a client certificate that cannot be used (G14)."""
    sources = _certificate_sources(settings.toss)
    if settings.environment != "production" or not sources.is_configured:
        return []
    found = sources.read()
    return (
        [] if found.usable(now) else [f"BFF_TOSS (client certificate): {fault}" for fault in found.faults_at(now)]
    )


def _partner_transport(
    settings: Settings, *, metrics: Metrics, clock: Clock, traced: Traced
) -> MutualTransport | None:
    toss = settings.toss
    sources = _certificate_sources(toss)
    if not sources.is_configured:
        return None
    return MutualTransport(
        sources=sources,
        probe_urls=_partner_hosts(settings),
        ca_file=toss.ca_file,
        pool_size=toss.pool_size,
        connect_timeout=toss.connect_timeout,
        read_timeout=toss.read_timeout,
        longest_call=toss.call_deadline,
        clock=clock,
        look_every=toss.certificate_look_every,
        retry_every=toss.certificate_retry_every,
        saw=_server_seen(metrics),
        traced=traced,
    )


def _event_count(metrics: Metrics) -> Callable[[str, str], None]:
    for type_ in EventType:
        metrics.event_expected(type_=type_, outcome="given_up")
    return lambda what, type_: metrics.event_moved(type_=type_, outcome=what)


def _server_seen(metrics: Metrics) -> Callable[[str, datetime], None]:
    return lambda host, not_after: metrics.server_certificate_seen(host=host, not_after=not_after)


def _toss_called(metrics: Metrics) -> Callable[[str, str, float], None]:
    return lambda call, outcome, seconds: metrics.toss_called(call=call, outcome=outcome, seconds=seconds)


def _event_receiver(settings: Settings, *, traced: Traced) -> Receiver | None:
    events = settings.events
    if events.url is None:
        return None
    return Receiver(
        transport=Transport(
            ca_file=events.ca_file,
            pool_size=AT_ONCE,
            connect_timeout=events.timeout,
            read_timeout=events.timeout,
            traced=traced,
        ),
        url=events.url,
        secrets=[secret.get_secret_value() for secret in events.secrets],
        timeout=events.timeout,
        give_up_after=events.give_up_after,
    )


def _partner_hosts(settings: Settings) -> tuple[str, ...]:
    """All that are to take one and the same client certificate, each once."""
    hosts = [settings.toss.api_url]
    hosts += [settings.toss.pay_url] if settings.pay.mode is not None else []
    hosts += [settings.billing.api_url] if settings.billing.enabled else []
    return tuple(dict.fromkeys(hosts))


@dataclass(frozen=True)
class PartnerApis:
    """What this mini-app asks of Toss with its client certificate. None: not configured."""

    login: LoginApi | None = None
    iap: IapApi | None = None
    pay: PayApi | None = None
    billing: BillingApi | None = None
    governor: Governor | None = None
    """Of their budget."""


def partner_apis(
    settings: Settings, *, transport: MutualTransport | None, shared_state: SharedState, metrics: Metrics
) -> PartnerApis:
    """Whether Toss Pay's host has a budget of its own is open (reference 19.12): all spend the same one here."""
    if transport is None:
        return PartnerApis()
    toss, pay, billing, budget = settings.toss, settings.pay, settings.billing, settings.budget
    governor = Governor(
        store=SharedBudget(state=shared_state, name=budget_name(settings)),
        rules=BudgetRules(
            processes=budget.replicas * settings.server.workers,
            per_minute=budget.per_minute,
            head_room=budget.head_room,
            own_share=budget.own_share,
            background_share=budget.background_share,
            interactive_reserve=budget.interactive_reserve,
        ),
    )

    def partner_at(base_url: str) -> PartnerApi:
        return PartnerApi(
            transport=transport,
            governor=governor,
            base_url=base_url,
            deadline=toss.call_deadline,
            refused=lambda lane, limit: metrics.budget_refused(lane=lane, limit=limit),
            observe=_toss_called(metrics),
        )

    is_test = pay.mode != "live"
    partner = partner_at(toss.api_url)
    return PartnerApis(
        login=LoginApi(partner=partner),
        iap=IapApi(partner=partner),
        pay=PayApi(partner=partner_at(toss.pay_url), is_test=is_test) if pay.mode is not None else None,
        billing=BillingApi(
            partner=partner_at(billing.api_url),
            is_test=is_test,
            path_prefix=billing.path_prefix,
            refund_path=billing.refund_path,
            status_field=billing.status_field,
        )
        if billing.enabled
        else None,
        governor=governor,
    )


def _payments(
    settings: Settings,
    *,
    partner: PartnerApis,
    catalogue: Catalogue,
    database: Database,
    writes: LateWrites,
    vault: Vault,
    outbox: Outbox,
    metrics: Metrics,
    clock: Clock,
    checkpoint: Checkpoint,
) -> tuple[PaymentService, Orders, BillingService]:
    is_test = settings.pay.mode != "live"
    ledger = Ledger(
        database=database,
        writes=writes,
        vault=vault,
        outbox=outbox,
        clock=clock,
        is_test=is_test,
        order_prefix=settings.pay.order_prefix,
        # The call itself, and as much again for what Toss still has in hand when we have stopped waiting.
        quiet=max(settings.toss.call_deadline * 2, MIN_QUIET),
        count=lambda state: metrics.payment_moved(state=state),
    )
    payments = PaymentService(
        ledger=ledger,
        catalogue=catalogue,
        pay=partner.pay,
        charge_refunds=partner.billing,
        rules=PaymentRules(
            status_by_order_no=settings.pay.status_by_order_no,
            abandon_after=settings.pay.abandon_after,
            retention=timedelta(days=settings.pay.retention_days),
        ),
        clock=clock,
        checkpoint=checkpoint,
    )
    orders = Orders(
        database=database, vault=vault, clock=clock, is_test=is_test, is_open=settings.pay.mode is not None
    )
    billing = BillingService(
        database=database,
        vault=vault,
        billing=partner.billing,
        ledger=ledger,
        orders=orders,
        payments=payments,
        catalogue=catalogue,
        is_test=is_test,
        retention=timedelta(days=settings.pay.retention_days),
        clock=clock,
        checkpoint=checkpoint,
    )
    return payments, orders, billing


def budget_name(settings: Settings) -> str:
    """Toss counts for each mini-app, over all that speak for it."""
    owner = f"{settings.toss.api_url}\x1f{settings.network.app_name}"
    return "budget:" + hashlib.sha256(owner.encode()).hexdigest()[:32]


def _login_rules(settings: Settings) -> LoginRules:
    deadline, login = settings.toss.call_deadline, settings.login
    return LoginRules(
        exchange_lease=deadline * 3 + timedelta(seconds=5),  # the exchange, and the question who it is, asked twice
        patience=deadline,
        retention=timedelta(days=login.retention_days),
        unlinked_retention=timedelta(days=login.unlinked_retention_days),
    )


def _user_at_toss(login: LoginService) -> Callable[[str], Awaitable[TossUser | None]]:
    async def user_of(user_id: str) -> TossUser | None:
        with suppress(UserNotFound, SessionRequired):
            return login.toss_user_of(await login.user(user_id))
        return None

    return user_of


def _purchase_rules(settings: Settings) -> PurchaseRules:
    purchases = settings.purchases
    return PurchaseRules(
        sends_user_key=purchases.sends_user_key,
        visibility_wait=purchases.visibility_wait,
        zone=ZONES[purchases.notice_zone],
        renewal_cycles=purchases.renewal_cycles,
        expiry_grace=purchases.expiry_grace,
        refund_check_every=purchases.refund_check_every,
        refund_watch=timedelta(days=purchases.refund_watch_days),
        retention=timedelta(days=purchases.retention_days),
    )


def _certificate_reader(transport: MutualTransport, clock: Clock) -> Callable[[], ClientCertificateReading]:
    def read() -> ClientCertificateReading:
        keeper = transport.keeper
        keeper.look_if_due()  # without traffic nobody else does
        left = keeper.certificate.not_after - clock() if keeper.certificate else None
        days = left / timedelta(days=1) if left is not None else None
        return ClientCertificateReading(days_left=days, has_alarm=keeper.alarm is not None)

    return read


def _shared_state(settings: Settings) -> SharedState:
    if settings.redis.url is None:
        return InProcessState()
    return RedisState(settings.redis.url.get_secret_value(), timeout=settings.redis.timeout)


def _token_name(settings: Settings) -> str:
    """Environments, clients and scopes that share a Redis do not share a token."""
    cert = settings.cert
    owner = f"{settings.environment}\x1f{cert.token_url}\x1f{cert.client_id}\x1f{cert.scope}"
    return "token:" + hashlib.sha256(owner.encode()).hexdigest()[:32]


def _signature_checker(cert: CertSettings) -> SignatureChecker:
    return SignatureChecker(
        ca_certificates=[Path(file).read_bytes() for file in cert.signature_ca_files],
        policy_oid=cert.signature_policy_oid,
        time_tolerance=cert.signature_time_tolerance,
    )


def _cert_api(
    cert: CertSettings, *, transport: Transport, tokens: TokenKeeper, public_key: PublicKey, metrics: Metrics
) -> CertApi:
    return CertApi(
        transport=transport,
        tokens=tokens,
        endpoints=CertEndpoints(
            request=cert.api_url + cert.request_path,
            status=cert.api_url + cert.status_path,
            result=cert.api_url + cert.result_path,
        ),
        public_key=public_key,
        version=cert.version,
        request_url=cert.request_url,
        trigger_type=cert.trigger_type,
        expire_seconds=cert.expire_seconds,
        deadline=cert.call_deadline,
        observe=_toss_called(metrics),
    )


def _cert_rules(cert: CertSettings) -> Rules:
    life = timedelta(seconds=cert.expire_seconds) if cert.expire_seconds else MAX_REQUEST_LIFE
    return Rules(
        result_window=RESULT_WINDOW - cert.result_window_margin,
        request_life=life,
        lease=cert.result_lease,
        start_within=cert.result_lease - cert.call_deadline,
        adult_rule=cert.adult_rule,
        retention=timedelta(days=cert.retention_days),
        signature_retention=timedelta(days=cert.signature_retention_days),
    )
