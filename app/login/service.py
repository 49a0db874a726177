"""Toss login, the use cases: log in once per code, know who is calling, end a link, forget."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import override

from app.database import Database, LateWrites
from app.errors import (
    AppError,
    LoginInProgress,
    LoginRejected,
    SealedDataUnreadable,
    SessionNotFound,
    SessionRequired,
    StorageUnavailable,
    TossNotConfigured,
    UnlinkNeedsLogin,
    UserNotFound,
)
from app.events.outbox import Outbox
from app.events.tables import EventType
from app.login.refusals import (
    NO_LONGER_LINKED,
    REPEATABLE,
    anon_error,
    is_dead_token,
    is_fault,
    login_error,
    other_error,
)
from app.login.sessions import IssuedSession, Sessions
from app.login.tables import (
    NO_TOKENS,
    ExchangeState,
    LoginExchange,
    LoginSession,
    User,
    UserKind,
    take_exchange,
)
from app.login.tokens import DatedGrant, UserTokens
from app.toss.crypto import LoginFieldCipher
from app.toss.errors import NotSent, TossError, TossRejected
from app.toss.governor import Lane
from app.toss.login import LoginApi, Profile
from app.toss.partner import TossUser
from app.upstream import ASK_AGAIN
from app.vault import Sealed, UnsealError, Vault

FIRST_LOOK, LONGEST_WAIT = 0.05, 0.5
"""Seconds between looks while another call exchanges the same code; each wait is half as long again."""
CODE_LIFE = timedelta(minutes=10)
"""Of an authorization code (apps-in-toss reference 6.1). What is known of it is kept somewhat longer."""
UNLINK_REST = timedelta(minutes=1)
"""Before an unlink that got stuck is taken up again: an immediate repetition is discouraged (reference 2.4)."""
BATCH = 200

Clock = Callable[[], datetime]
Checkpoint = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    """The operator's choices."""

    exchange_lease: timedelta
    """Longer than an exchange and the question who it was can take."""
    patience: timedelta
    """Of a caller who waits for another's exchange of the same code."""
    retention: timedelta
    """After the last login."""
    unlinked_retention: timedelta
    """Of the row by which a returning user is recognised."""


@dataclass(frozen=True)
class LoggedIn:
    issued: IssuedSession
    user: User
    profile: Profile

    @override
    def __repr__(self) -> str:
        return "LoggedIn(...)"


@dataclass(frozen=True)
class Purged:
    sessions_ended: int
    codes_forgotten: int


class LoginService:
    """Without `api` and `tokens` (no client certificate is configured) nobody can log in."""

    def __init__(
        self,
        *,
        database: Database,
        writes: LateWrites,
        api: LoginApi | None,
        tokens: UserTokens | None,
        sessions: Sessions,
        cipher: LoginFieldCipher,
        vault: Vault,
        outbox: Outbox,
        rules: Rules,
        clock: Clock,
        checkpoint: Checkpoint,
    ) -> None:
        self._database = database
        self._writes = writes
        self._api = api
        self._tokens = tokens
        self.sessions = sessions
        self._cipher = cipher
        self._vault = vault
        self._outbox = outbox
        self._rules = rules
        self._clock = clock
        self._checkpoint = checkpoint
        self._log = structlog.stdlib.get_logger("app.login")

    # --- Logging in ---------------------------------------------------------------------------------------

    async def log_in(self, code: str, referrer: str) -> LoggedIn:
        """Exchange an authorization code. Toss takes each once; who comes with it meanwhile gets the same answer.

        Raises: LoginRejected, LoginInProgress, TossNotConfigured, UpstreamUnavailable, UpstreamTimeout,
        UpstreamInvalid, UpstreamRefused, UpstreamBudgetExhausted. None of them leaves a new user behind.
        """
        api, _ = self._toss()
        code_hash = self._vault.hash("authorization_code", f"{referrer}\x1f{code}")
        exchange, lease_id = await self._turn(code_hash)
        if lease_id is None:
            return await self._answered_from(exchange)
        try:
            return await self._attempt(api, exchange, code, referrer)
        except TossError as error:
            ours = login_error(error)
            await self._settle(exchange, ours)
            raise ours from error

    async def _turn(self, code_hash: str) -> tuple[LoginExchange, str | None]:
        """The exchange with a lease, if it is ours to carry out; without, once another call has settled it.

        Raises: LoginRejected for a code that was settled before this call came; LoginInProgress.
        """
        arrived_at, has_waited, pause = self._clock(), False, FIRST_LOOK
        # Between the looks, not around them: a claim that is cut off may have taken the lease with it.
        until = asyncio.get_running_loop().time() + self._rules.patience.total_seconds()
        while True:
            exchange, lease_id = await self._claim(code_hash, since=arrived_at)
            if lease_id is not None:
                return exchange, lease_id
            if not has_waited and _was_spent(exchange, before=arrived_at):
                raise LoginRejected
            if _is_settled(exchange, since=arrived_at):
                return exchange, None
            if asyncio.get_running_loop().time() >= until:
                raise LoginInProgress(retry_after=ASK_AGAIN)
            has_waited = True
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_WAIT)

    async def log_in_anonymously(self, anon_key: str) -> LoggedIn:
        """That Toss issued the key does not prove whose it is: it serves as the bearer's secret, no more.

        Raises: AnonKeyRejected, and as `log_in`.
        """
        api, _ = self._toss()
        try:
            await api.verify_anon_key(anon_key)
        except TossError as error:
            raise anon_error(error) from error

        def fill(user: User) -> None:
            user.anon_key = self._vault.seal(anon_key, user.place_of("anon_key"))

        return await self._link(UserKind.ANONYMOUS, self._vault.hash("anon_key", anon_key), fill, Profile({}, ()))

    async def _claim(self, code_hash: str, *, since: datetime) -> tuple[LoginExchange, str | None]:
        """The exchange as it is, and a lease if nobody else has one and there is something left to do."""
        now, lease_id = self._clock(), str(uuid.uuid4())
        until = now + self._rules.exchange_lease
        fresh = LoginExchange(
            code_hash=code_hash, state=ExchangeState.OPEN, created_at=now, lease_id=lease_id, lease_until=until
        )
        with suppress(IntegrityError):  # another call was first
            async with self._database.transaction() as session:
                if await session.get(LoginExchange, code_hash) is None:
                    session.add(fresh)
                    await session.flush()
                    return fresh, lease_id
        async with self._database.transaction() as session:
            known = await session.get_one(LoginExchange, code_hash)
            if not _is_settled(known, since=since):
                leased = await take_exchange(
                    session, code_hash, since=since, lease_id=lease_id, now=now, until=until
                )
                if leased is not None:
                    return leased, lease_id
        return known, None

    async def _answered_from(self, exchange: LoginExchange) -> LoggedIn:
        """What another call has made of this code. Its tokens are not handed out twice: this is a new session."""
        if exchange.state == ExchangeState.DONE and exchange.user_id is not None:
            async with self._database.transaction() as session:
                # Locked, lest the end of this link miss a session that begins at the same moment.
                user = await session.get(User, exchange.user_id, with_for_update=True)
                if user is not None and user.unlinked_at is None:
                    return LoggedIn(self.sessions.issue(session, user.user_id), user, self.profile_of(user))
        problem = REPEATABLE.get(exchange.problem or "", LoginRejected)
        raise problem(toss_code=exchange.toss_code, retry_after=ASK_AGAIN if problem.retryable else None)

    async def _attempt(self, api: LoginApi, exchange: LoginExchange, code: str, referrer: str) -> LoggedIn:
        _, tokens = self._toss()
        if exchange.grant is None:
            asked_at = self._clock()
            dated = DatedGrant(await api.exchange(code, referrer), asked_at)
            sealed = self._vault.seal(dated.dump(), exchange.place_of("grant"))
            await self._writes.commit(partial(_keep_grant, code_hash=exchange.code_hash, grant=sealed))
            await self._checkpoint("login_exchanged")
        else:
            dated = DatedGrant.load(self._unseal(exchange, "grant"))
        member = await api.me(dated.grant.access_token)
        profile = member.open(self._cipher)
        if profile.unreadable:
            self._log.warning("login_fields_unreadable", fields=profile.unreadable)
        ci = profile.personal.get("ci")

        def fill(user: User) -> None:
            user.user_key = self._vault.seal(str(member.user_key), user.place_of("user_key"))
            user.profile = self._vault.seal(_dump(profile), user.place_of("profile"))
            user.ci_hash = self._vault.hash("ci", ci) if ci is not None else None
            user.scopes, user.agreed_terms = list(member.scopes), list(member.agreed_terms)
            for column, value in {**NO_TOKENS, **tokens.columns(user, dated)}.items():
                setattr(user, column, value)

        key_hash = self._vault.hash("user_key", str(member.user_key))
        try:
            return await self._link(UserKind.MEMBER, key_hash, fill, profile, done=exchange)
        except StorageUnavailable as error:
            # The tokens are kept: who comes next goes on from there, and need not wait for the lease to end.
            await self._settle(exchange, error)
            raise

    async def _settle(self, exchange: LoginExchange, error: AppError) -> None:
        """End an attempt that has failed; those who wait for it are told the same."""
        code_hash, lease_id, now = exchange.code_hash, exchange.lease_id, self._clock()
        await self._writes.commit(
            partial(_settle_exchange, code_hash=code_hash, lease_id=lease_id, error=error, now=now)
        )

    async def _link(
        self,
        kind: UserKind,
        key_hash: str,
        fill: Callable[[User], None],
        profile: Profile,
        *,
        done: LoginExchange | None = None,
    ) -> LoggedIn:
        """Store who it is, and begin a session: all in one transaction."""
        try:
            return await self._linked(kind, key_hash, fill, profile, done=done)
        except IntegrityError:
            # The same user, for the first time, from two devices at once; now the row is there.
            return await self._linked(kind, key_hash, fill, profile, done=done)

    async def _linked(
        self,
        kind: UserKind,
        key_hash: str,
        fill: Callable[[User], None],
        profile: Profile,
        *,
        done: LoginExchange | None,
    ) -> LoggedIn:
        now = self._clock()
        async with self._database.transaction() as session:
            user = await session.scalar(select(User).where(User.key_hash == key_hash).with_for_update())
            if user is None:
                user = User(user_id=str(uuid.uuid4()), kind=kind, key_hash=key_hash, created_at=now, link_version=0)
                session.add(user)
            user.link_version += 1
            user.linked_at, user.unlinked_at = now, None
            user.unlink_wanted_at = user.unlink_sent_at = None
            fill(user)
            await session.flush()
            issued = self.sessions.issue(session, user.user_id)
            if done is not None:
                await session.execute(
                    update(LoginExchange)
                    .where(LoginExchange.code_hash == done.code_hash)
                    .values(
                        state=ExchangeState.DONE,
                        grant=None,
                        settled_at=self._clock(),
                        lease_id=None,
                        lease_until=None,
                        user_id=user.user_id,
                    )
                )
        self._log.info("logged_in", user_id=user.user_id, kind=kind.value, session_id=issued.session.session_id)
        return LoggedIn(issued, user, profile)

    # --- Who is calling -----------------------------------------------------------------------------------

    async def end_session(self, session_id: str, *, of: str) -> None:
        """Raises: SessionNotFound, also for somebody else's."""
        if not await self.sessions.end(session_id, user_id=of):
            raise SessionNotFound
        self._log.info("session_ended", user_id=of, session_id=session_id)

    async def end_sessions(self, user_id: str) -> int:
        """Raises: UserNotFound."""
        await self.user(user_id)
        return await self.sessions.end_all(user_id)

    async def user(self, user_id: str) -> User:
        """Raises: UserNotFound."""
        async with self._database.transaction() as session:
            user = await session.get(User, user_id)
        if user is None:
            raise UserNotFound
        return user

    async def known(self, user_ids: Iterable[str]) -> set[str]:
        """Those of them that are still users."""
        async with self._database.transaction() as session:
            found = await session.scalars(select(User.user_id).where(User.user_id.in_(list(user_ids))))
            return set(found.all())

    async def find(self, user_key: int) -> User | None:
        key_hash = self._vault.hash("user_key", str(user_key))
        async with self._database.transaction() as session:
            found: User | None = await session.scalar(select(User).where(User.key_hash == key_hash))
        return found

    def profile_of(self, user: User) -> Profile:
        """Raises: SealedDataUnreadable."""
        if user.profile is None:
            return Profile({}, ())
        stored = json.loads(self._unseal(user, "profile"))
        return Profile(stored["personal"], tuple(stored["unreadable"]))

    def user_key_of(self, user: User) -> int | None:
        """Raises: SealedDataUnreadable."""
        return None if user.user_key is None else int(self._unseal(user, "user_key"))

    def toss_user_of(self, user: User) -> TossUser:
        """By what Toss knows them. Raises: SessionRequired when their link is over, SealedDataUnreadable."""
        user_key = self.user_key_of(user)
        if user_key is not None:
            return TossUser(user_key=user_key)
        if user.anon_key is not None:
            return TossUser(anon_key=self._unseal(user, "anon_key"))
        raise SessionRequired

    # --- The end of a link --------------------------------------------------------------------------------

    async def unlink_at_toss(self, user: User, *, lane: Lane = Lane.INTERACTIVE) -> None:
        """End the link that Toss has with this user for us (reference 6.6). Toss does not call back for it.

        That it is wanted is stated before the call, so that `reconcile` finishes what a crash or a lost answer
        leaves open.

        Raises: UnlinkNeedsLogin, and as `log_in`.
        """
        if user.kind != UserKind.MEMBER or user.unlinked_at is not None:
            return
        # Of the last attempt: each is followed by a rest.
        await self._note_unlink(user, unlink_wanted_at=self._clock())
        try:
            await self._unlink(user, lane=lane)
        except TossError as error:
            raise other_error(error) from error

    async def _unlink(self, user: User, *, lane: Lane) -> None:
        api, tokens = self._toss()
        token = await tokens.access_token(user, lane=lane)
        sent_at = self._clock()
        await self._note_unlink(user, unlink_sent_at=sent_at)
        try:
            await self._ask_to_unlink(api, user, token, lane=lane)
        except (NotSent, TossRejected) as error:
            is_dead = isinstance(error, TossRejected) and is_dead_token(error)
            # An earlier call's answer was lost, and the token has died since: that call has come through.
            was_sent = user.unlink_sent_at is not None
            if isinstance(error, TossRejected) and (error.error_code in NO_LONGER_LINKED or (is_dead and was_sent)):
                return
            if not is_fault(error):
                # This call has ended nothing. What another one has sent meanwhile stays noted.
                await self._note_unlink(user, User.unlink_sent_at == sent_at, unlink_sent_at=user.unlink_sent_at)
            if is_dead:
                raise UnlinkNeedsLogin from error
            raise

    async def _ask_to_unlink(self, api: LoginApi, user: User, token: str | None, *, lane: Lane) -> None:
        """By token while one lives, else by user key; whether that wants the token along is disputed."""
        if token is not None:
            try:
                return await api.unlink_by_token(token, lane=lane)
            except TossRejected as error:
                if not is_dead_token(error) or error.error_code in NO_LONGER_LINKED:
                    raise
        user_key = self.user_key_of(user)
        if user_key is None:
            return None
        if token is not None:
            try:
                return await api.unlink_by_user_key(user_key, access_token=token, lane=lane)
            except TossRejected as error:
                if not is_dead_token(error) or error.error_code in NO_LONGER_LINKED:
                    raise
        return await api.unlink_by_user_key(user_key, access_token=None, lane=lane)

    async def _note_unlink(self, user: User, *conditions: ColumnElement[bool], **values: datetime | None) -> None:
        async with self._database.transaction() as session:
            await session.execute(
                update(User)
                .where(User.user_id == user.user_id, User.link_version == user.link_version, *conditions)
                .values(**values)
            )

    async def is_link_alive(self, user: User) -> bool:
        """Ask Toss: a notice of an unlink may come after the user has linked again, and carries no time.

        Raises: AppError when Toss cannot be asked now.
        """
        api, tokens = self._toss()
        current: User | None = user
        try:
            for _ in range(2):  # with the token in hand, then with a refreshed one
                token = await tokens.access_token(current, lane=Lane.BACKGROUND) if current is not None else None
                if current is None or token is None:
                    return False
                try:
                    return (await api.me(token, lane=Lane.BACKGROUND)).user_key == self.user_key_of(user)
                except TossRejected as error:
                    if error.error_code in NO_LONGER_LINKED:
                        return False
                    if not is_dead_token(error):
                        raise
                current = await tokens.refuse(current)
        except TossError as error:
            raise other_error(error) from error
        return False

    async def end_link(self, user: User, *, cause: str) -> bool:
        """End what we have of a link that is over: sessions, tokens, personal data. `cause` is for the partner.

        False if there has been a login, or another end, since this row was read.
        """
        now = self._clock()
        async with self._database.transaction() as session:
            ended = await session.scalar(
                update(User)
                .where(User.user_id == user.user_id, User.link_version == user.link_version)
                .values(
                    link_version=User.link_version + 1,
                    unlinked_at=now,
                    unlink_sent_at=None,  # who has asked for more than that, to be erased, still is
                    user_key=None,
                    profile=None,
                    ci_hash=None,
                    scopes=[],
                    agreed_terms=[],
                    **NO_TOKENS,
                )
                .returning(User.user_id)
            )
            if ended is not None:
                await session.execute(delete(LoginSession).where(LoginSession.user_id == user.user_id))
                self._tell_unlinked(session, user, cause)
        if ended is not None:
            await self._database.forget()
            self._log.info("user_unlinked", user_id=user.user_id)
        return ended is not None

    async def erase(self, user: User, *, cause: str | None = None) -> bool:
        """Nothing remains. False if there has been a login, or another end, since this row was read.

        `cause`: why this is the end of their link, too, unless that was over before; None if it lives on at Toss.
        """
        async with self._database.transaction() as session:
            erased = await session.scalar(
                delete(User)
                .where(User.user_id == user.user_id, User.link_version == user.link_version)
                .returning(User.user_id)
            )
            # Who was known by an anonymous key had no link.
            if (
                erased is not None
                and cause is not None
                and user.unlinked_at is None
                and user.kind == UserKind.MEMBER
            ):
                self._tell_unlinked(session, user, cause)
        if erased is not None:
            await self._database.forget()
            self._log.info("user_erased", user_id=user.user_id)
        return erased is not None

    def _tell_unlinked(self, session: AsyncSession, user: User, cause: str) -> None:
        data = {"userId": user.user_id, "cause": cause}
        self._outbox.record(session, EventType.LOGIN_UNLINKED, subject=user.user_id, data=data)

    # --- What a crash or time leaves to do ----------------------------------------------------------------

    async def leaving(self) -> Sequence[User]:
        """Users who have asked to leave some time ago, and are still here."""
        async with self._database.transaction() as session:
            return (
                await session.scalars(
                    select(User)
                    .where(User.unlink_wanted_at <= self._clock() - UNLINK_REST)
                    .order_by(User.unlink_wanted_at)
                    .limit(BATCH)
                )
            ).all()

    async def past_retention(self) -> Sequence[User]:
        """Users who have not logged in for so long, or have unlinked so long ago, that they are to be forgotten."""
        now = self._clock()
        async with self._database.transaction() as session:
            return (
                await session.scalars(
                    select(User)
                    .where(
                        (User.linked_at < now - self._rules.retention)
                        | (User.unlinked_at < now - self._rules.unlinked_retention)
                    )
                    .order_by(User.linked_at)
                    .limit(BATCH)
                )
            ).all()

    async def purge(self) -> Purged:
        """Delete sessions that are over and codes that no longer mean anything."""
        async with self._database.transaction() as session:
            codes = await session.scalars(
                delete(LoginExchange)
                .where(LoginExchange.created_at < self._clock() - CODE_LIFE * 2)
                .returning(LoginExchange.code_hash)
            )
            forgotten = len(codes.all())
        ended = await self.sessions.purge()
        await self._database.forget()
        return Purged(ended, forgotten)

    # --- Shared -------------------------------------------------------------------------------------------

    def _toss(self) -> tuple[LoginApi, UserTokens]:
        if self._api is None or self._tokens is None:
            raise TossNotConfigured("no client certificate is configured")
        return self._api, self._tokens

    def _unseal(self, row: User | LoginExchange, column: str) -> str:
        try:
            return self._vault.open(getattr(row, column), row.place_of(column))
        except UnsealError as error:
            raise SealedDataUnreadable from error


def _is_settled(exchange: LoginExchange, *, since: datetime) -> bool:
    """Whether a caller who came at `since` is answered from this. Later ones may try what failed, once more."""
    if exchange.state == ExchangeState.REJECTED:
        return True
    if exchange.settled_at is None:
        return False
    return exchange.state == ExchangeState.DONE or exchange.settled_at >= since


def _was_spent(exchange: LoginExchange, *, before: datetime) -> bool:
    return exchange.state == ExchangeState.DONE and exchange.settled_at is not None and exchange.settled_at < before


async def _keep_grant(session: AsyncSession, code_hash: str, grant: Sealed) -> None:
    await session.execute(
        update(LoginExchange)
        .where(LoginExchange.code_hash == code_hash, LoginExchange.state == ExchangeState.OPEN)
        .values(state=ExchangeState.EXCHANGED, grant=grant)
    )


async def _settle_exchange(
    session: AsyncSession, code_hash: str, lease_id: str | None, error: AppError, now: datetime
) -> None:
    values: dict[str, object] = {
        "lease_id": None,
        "lease_until": None,
        "settled_at": now,
        "problem": error.code,
        "toss_code": error.toss_code,
    }
    if isinstance(error, LoginRejected):
        values |= {"state": ExchangeState.REJECTED, "grant": None}
    await session.execute(
        update(LoginExchange)
        .where(LoginExchange.code_hash == code_hash, LoginExchange.lease_id == lease_id)
        .values(**values)
    )


def _dump(profile: Profile) -> str:
    return json.dumps({"personal": dict(profile.personal), "unreadable": profile.unreadable})
