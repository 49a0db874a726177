"""Toss Cert, the use cases: start, ask, fetch the result once and safely, answer from our store afterwards."""

import hmac
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

import structlog
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from typing_extensions import override

from app.cert.outcome import AdultRule, Age, Identity, age_of
from app.cert.refusals import FINAL_CODES, UNREADABLE, app_error, ending
from app.cert.tables import (
    MAX_READS,
    READS_LOST,
    ResultState,
    Verification,
    discard_answer,
    drop_lease,
    give_back_read,
    keep_answer,
    take_lease,
)
from app.database import Database, LateWrites
from app.errors import (
    AppError,
    ResultInProgress,
    ResultOutcomeUnknown,
    ResultReadsExhausted,
    SealedDataUnreadable,
    UpstreamInvalid,
    VerificationErased,
    VerificationExpired,
    VerificationNotFound,
)
from app.events.outbox import Outbox
from app.events.tables import EventType
from app.person import normalize_name
from app.toss.cert import CertApi, OpenedResult, RequestStatus, ResultAnswer, StartedRequest
from app.toss.errors import NotSent, TossError, TossRejected, Unintelligible
from app.toss.signature import SignatureChecker
from app.upstream import ASK_AGAIN
from app.vault import Sealed, UnsealError, Vault

TOKEN_PREFIX = "vt_"  # noqa: S105 - makes a leaked token recognisable
BATCH = 200
STEPS_TO: dict[RequestStatus, tuple[RequestStatus, ...]] = {
    RequestStatus.REQUESTED: (),
    RequestStatus.IN_PROGRESS: (RequestStatus.REQUESTED,),
    RequestStatus.EXPIRED: (RequestStatus.REQUESTED, RequestStatus.IN_PROGRESS),
    RequestStatus.COMPLETED: (RequestStatus.REQUESTED, RequestStatus.IN_PROGRESS),
}
"""Which stored status a newly seen one may replace: answers may overtake each other."""

Clock = Callable[[], datetime]
Checkpoint = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Holder:
    """Somebody who shows a verification token: reaches the verification that it was given for, nothing else."""

    token_hash: str


@dataclass(frozen=True)
class PartnerServer:
    """The partner's own backend: reaches every verification."""

    key_id: str


@dataclass(frozen=True)
class LoggedIn:
    """Somebody with a login session: reaches the verifications that this session started or took over."""

    session_id: str
    user_id: str


Caller = Holder | LoggedIn | PartnerServer


@dataclass(frozen=True)
class Rules:
    """The operator's choices."""

    result_window: timedelta
    request_life: timedelta
    lease: timedelta
    start_within: timedelta
    """Of the lease: so much later a call would not be answered before its end."""
    adult_rule: AdultRule
    retention: timedelta
    signature_retention: timedelta


@dataclass(frozen=True)
class Counts:
    """What is counted, for metrics."""

    moved: Callable[[str], None]
    """A verification has come to this status or, later on, this result state."""
    handed_out: Callable[[str], None]
    """A result, from this source."""
    lost: Callable[[], None]
    """The answer of a result call."""


@dataclass(frozen=True)
class Started:
    verification: Verification
    links: StartedRequest
    token: str | None
    """None for somebody logged in, whose session shows that the verification is theirs."""

    @override
    def __repr__(self) -> str:
        return "Started(...)"


class Source(StrEnum):
    """Where an outcome came from (G2: the caller is told)."""

    READ = "READ"
    LAST_READ = "LAST_READ"
    RECOVERED = "RECOVERED"
    STORED = "STORED"


@dataclass(frozen=True)
class Retrieved:
    verification: Verification
    identity: Identity
    age: Age
    source: Source


@dataclass(frozen=True)
class Comparison:
    """Per given field: True, False, or None where the verification has no readable value."""

    matches: dict[str, bool | None]

    @property
    def is_same_person(self) -> bool | None:
        if False in self.matches.values():
            return False
        return None if None in self.matches.values() else True


@dataclass(frozen=True)
class CheckedPerson:
    verification: Verification
    is_same_person: bool | None
    """None where one side has no CI."""


@dataclass(frozen=True)
class Evidence:
    verification: Verification
    signature: str

    @override
    def __repr__(self) -> str:
        return "Evidence(...)"


@dataclass(frozen=True)
class Reconciled:
    leases_settled: int
    answers_opened: int
    identities_erased: int
    signatures_erased: int


class CertService:
    def __init__(
        self,
        *,
        database: Database,
        writes: LateWrites,
        api: CertApi,
        vault: Vault,
        signatures: SignatureChecker,
        outbox: Outbox,
        rules: Rules,
        clock: Clock,
        checkpoint: Checkpoint,
        counts: Counts,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._api = api
        self._vault = vault
        self._signatures = signatures
        self._outbox = outbox
        self._rules = rules
        self._clock = clock
        self._checkpoint = checkpoint
        self._counts = counts
        self._monotonic = monotonic
        self._log = structlog.stdlib.get_logger("app.cert")
        self._writes = writes

    def holder(self, token: str) -> Holder:
        return Holder(self._vault.hash("verification_token", token))

    # --- Start and status ---------------------------------------------------------------------------------

    async def start(
        self,
        *,
        owner: LoggedIn | None = None,
        name: str | None = None,
        phone: str | None = None,
        birthday: str | None = None,
    ) -> Started:
        """USER_PERSONAL when all three are given, USER_NONE when none is.

        Without an owner, whoever holds the token that comes back is the owner.

        Raises: UpstreamUnavailable, UpstreamTimeout, UpstreamInvalid, AgeRestricted, VerificationRefused.
        """
        try:
            if name is not None and phone is not None and birthday is not None:
                request_type = "USER_PERSONAL"
                started = await self._api.request_personal(name=name, phone=phone, birthday=birthday)
            else:
                request_type = "USER_NONE"
                started = await self._api.request_one_touch()
        except TossError as error:
            raise app_error(error) from error
        token = TOKEN_PREFIX + secrets.token_urlsafe(32) if owner is None else None
        now = self._clock()
        verification = Verification(
            tx_id=started.tx_id,
            request_type=request_type,
            token_hash=self._vault.hash("verification_token", token) if token is not None else None,
            session_id=owner.session_id if owner is not None else None,
            user_id=owner.user_id if owner is not None else None,
            status=RequestStatus.REQUESTED,
            created_at=now,
            requested_at=started.requested_at or now,
            expires_at=now + self._rules.request_life,
            result_state=ResultState.NONE,
            reads_succeeded=0,
            reads_unknown=0,
        )
        try:
            async with self._database.transaction() as session:
                session.add(verification)
        except IntegrityError:
            # Toss named a txId that we know already: it must not change hands.
            raise UpstreamInvalid from None
        self._counts.moved(RequestStatus.REQUESTED)
        self._log.info("verification_started", tx_id=started.tx_id, request_type=request_type)
        return Started(verification, started, token)

    async def status(self, tx_id: str, caller: Caller) -> Verification:
        """Progress only. A status that cannot change any more is answered from our store.

        Raises: VerificationNotFound, the ending of a verification that has ended, and as `start`.
        """
        verification = await self._find(tx_id, caller)
        if verification.result_state == ResultState.ENDED:
            raise ending(verification.end_code)
        if verification.status in (RequestStatus.COMPLETED, RequestStatus.EXPIRED):
            return verification
        try:
            seen = await self._api.status(tx_id)
        except TossRejected as error:
            await self._end_if_final(tx_id, error)
            raise app_error(error) from error
        except TossError as error:
            raise app_error(error) from error
        await self._note_status(tx_id, seen)
        return await self._find(tx_id, caller)

    async def take_over(self, tx_id: str, holder: Holder, owner: LoggedIn) -> Verification:
        """Bind a verification that began before the login to the session; its token serves no longer.

        Raises: VerificationNotFound, also for a token that was used for this before.
        """
        async with self._database.transaction() as session:
            taken: Verification | None = await session.scalar(
                update(Verification)
                .where(Verification.tx_id == tx_id, Verification.token_hash == holder.token_hash)
                .values(token_hash=None, session_id=owner.session_id, user_id=owner.user_id)
                .returning(Verification)
            )
        if taken is None:
            raise VerificationNotFound
        return taken

    async def _note_status(self, tx_id: str, seen: RequestStatus) -> None:
        values: dict[str, object] = {"status": seen}
        if seen is RequestStatus.COMPLETED:
            values["completion_seen_at"] = self._clock()
        async with self._database.transaction() as session:
            moved = await session.scalar(
                update(Verification)
                .where(Verification.tx_id == tx_id, Verification.status.in_(STEPS_TO[seen]))
                .values(**values)
                .returning(Verification.tx_id)
            )
        if moved is not None:
            self._counts.moved(seen)

    # --- The result (G1 to G4) ----------------------------------------------------------------------------

    async def result(self, tx_id: str, caller: Caller) -> Retrieved:
        """The verified outcome. The first call reads it at Toss; later ones come from our store.

        Raises: VerificationNotFound, VerificationNotCompleted, ResultInProgress, ResultOutcomeUnknown,
        VerificationExpired, ResultReadsExhausted, VerificationUnknownToToss, VerificationErased, and as `start`.
        """
        verification = await self._find(tx_id, caller)
        if verification.result_state == ResultState.NONE:
            self._refuse_when_over(verification)
            retrieved = await self._read(verification)
        else:
            retrieved = await self._from_store(verification)
        self._counts.handed_out(retrieved.source)
        return retrieved

    async def _from_store(self, verification: Verification) -> Retrieved:
        match ResultState(verification.result_state):
            case ResultState.STORED:
                return self._retrieved(verification, Source.STORED)
            case ResultState.ANSWERED:
                opened = await self._open(verification)
                if opened.result_state != ResultState.STORED:
                    raise ResultInProgress(retry_after=ASK_AGAIN)
                return self._retrieved(opened, Source.RECOVERED)
            case ResultState.ENDED:
                raise ending(verification.end_code)
            case ResultState.ERASED:
                raise VerificationErased
            case ResultState.NONE:
                raise ResultInProgress(retry_after=ASK_AGAIN)

    def _refuse_when_over(self, verification: Verification) -> None:
        """Toss hands out nothing after its window; asking then is noise (toss-cert reference 8).

        When the user finished is known exactly only from the result. Until then the earliest upper bound counts:
        the moment at which we saw COMPLETED, or the end of the request's life.
        """
        if verification.status == RequestStatus.EXPIRED:
            raise VerificationExpired
        known = (verification.completed_at, verification.completion_seen_at, verification.expires_at)
        finished_by = min(instant for instant in known if instant is not None)
        if self._clock() >= finished_by + self._rules.result_window:
            raise VerificationExpired

    async def _read(self, verification: Verification) -> Retrieved:
        tx_id = verification.tx_id
        began = self._monotonic()
        leased, lease_id = await self._lease(tx_id)
        if leased is None:
            return await self._without_lease(tx_id)
        source = Source.READ if leased.reads_left == MAX_READS - 1 else Source.LAST_READ
        await self._checkpoint("leased")
        if self._monotonic() - began > self._rules.start_within.total_seconds():
            # This process was stopped. By the time of an answer, another could hold the lease.
            await self._writes.commit(partial(give_back_read, tx_id=tx_id, lease_id=lease_id), tx_id=tx_id)
            raise ResultInProgress(retry_after=ASK_AGAIN)
        try:
            answer = await self._api.result(tx_id)
        except TossError as error:
            return await self._without_answer(leased, lease_id, error)
        await self._checkpoint("answer_received")
        sealed = self._vault.seal(answer.dump(), leased.place_of("answer"))
        await self._writes.commit(partial(keep_answer, tx_id=tx_id, answer=sealed), tx_id=tx_id)
        await self._checkpoint("answer_kept")
        stored = await self._open(await self._get(tx_id))
        await self._checkpoint("result_stored")
        if stored.result_state != ResultState.STORED:
            return await self._from_store(stored)
        self._log.info("verification_result_stored", tx_id=tx_id, source=source)
        return self._retrieved(stored, source)

    async def _without_answer(self, leased: Verification, lease_id: str, error: TossError) -> Retrieved:
        """Settle a call that brought nothing. What certainly read nothing gives its read back (reference 8)."""
        tx_id = leased.tx_id
        if isinstance(error, NotSent | TossRejected) or (isinstance(error, Unintelligible) and error.was_refused):
            await self._writes.commit(partial(give_back_read, tx_id=tx_id, lease_id=lease_id), tx_id=tx_id)
            if isinstance(error, TossRejected):
                await self._end_if_final(tx_id, error)
            raise app_error(error) from error
        await self._writes.commit(partial(drop_lease, tx_id=tx_id, lease_id=lease_id), tx_id=tx_id)
        self._counts.lost()
        self._log.warning("result_answer_lost", tx_id=tx_id, reads_left=leased.reads_left, why=str(error))
        current = await self._get(tx_id)
        if current.result_state in (ResultState.ANSWERED, ResultState.STORED):
            return await self._from_store(current)  # another call has it
        has_more = current.reads_left > 0
        raise ResultOutcomeUnknown(
            reads_left=current.reads_left,
            retryable=has_more,
            retry_after=ASK_AGAIN if has_more else None,
        ) from error

    async def _lease(self, tx_id: str) -> tuple[Verification | None, str]:
        lease_id, now = str(uuid.uuid4()), self._clock()
        async with self._database.transaction() as session:
            leased = await take_lease(session, tx_id, lease_id=lease_id, now=now, until=now + self._rules.lease)
        return leased, lease_id

    async def _without_lease(self, tx_id: str) -> Retrieved:
        """Another call was first, or there is nothing left to read."""
        verification = await self._get(tx_id)
        is_held = verification.lease_until is not None and verification.lease_until > self._clock()
        if verification.result_state == ResultState.NONE and verification.reads_left <= 0 and not is_held:
            raise ResultReadsExhausted
        return await self._from_store(verification)

    async def _open(self, verification: Verification) -> Verification:
        """Open a stored answer and store what was in it. Two callers may do this at once: the first one counts.

        Raises: UpstreamInvalid when no field at all could be opened, SealedDataUnreadable.
        """
        if verification.result_state != ResultState.ANSWERED or verification.answer is None:
            return verification
        answer = ResultAnswer.load(self._unseal(verification, "answer", verification.answer))
        opened = answer.open()
        if not opened.personal:
            await self._discard_answer(verification, opened)
            raise UpstreamInvalid(reads_left=verification.reads_left, retryable=verification.reads_left > 0)
        values = self._values_of(verification, opened)
        async with self._database.transaction() as session:
            stored: Verification | None = await session.scalar(
                update(Verification)
                .where(
                    Verification.tx_id == verification.tx_id,
                    Verification.result_state == ResultState.ANSWERED,
                    Verification.answer == verification.answer,
                )
                .values(**values)
                .returning(Verification)
            )
            if stored is not None:
                self._outbox.record(
                    session,
                    EventType.VERIFICATION_COMPLETED,
                    subject=stored.tx_id,
                    data={"txId": stored.tx_id, "userId": stored.user_id, "completedAt": stored.completed_at},
                )
        if stored is not None:
            self._counts.moved(ResultState.STORED)
        return stored or await self._get(verification.tx_id)

    def _values_of(self, verification: Verification, opened: OpenedResult) -> dict[str, object]:
        now = self._clock()
        report = None
        if opened.signature is not None:
            report = self._signatures.check(
                opened.signature,
                tx_id=verification.tx_id,
                requested_at=opened.requested_at,
                completed_at=opened.completed_at,
            )
            if not report.is_valid:
                self._log.warning("signature_check_failed", tx_id=verification.tx_id, checks=report.checks)
        if opened.unreadable:
            self._log.warning("fields_unreadable", tx_id=verification.tx_id, fields=opened.unreadable)
        personal = opened.personal
        identity = Identity(personal, opened.unreadable)
        return {
            "result_state": ResultState.STORED,
            "status": RequestStatus.COMPLETED,
            "completed_at": opened.completed_at or verification.completion_seen_at or now,
            "answer": None,
            "identity": self._vault.seal(identity.dump(), verification.place_of("identity")),
            "signature": self._vault.seal(opened.signature, verification.place_of("signature"))
            if opened.signature is not None
            else None,
            "signature_report": dict(report.checks) if report is not None else None,
            "ci_hash": self._vault.hash("ci", personal["ci"]) if "ci" in personal else None,
            "di_hash": self._vault.hash("di", personal["di"]) if "di" in personal else None,
            "stored_at": now,
        }

    async def _discard_answer(self, verification: Verification, opened: OpenedResult) -> None:
        self._log.error("result_unreadable", tx_id=verification.tx_id, fields=opened.unreadable)
        async with self._database.transaction() as session:
            has_ended = await discard_answer(session, verification, end_code=UNREADABLE)
        if has_ended:
            self._counts.moved(ResultState.ENDED)

    async def _end_if_final(self, tx_id: str, error: TossRejected) -> None:
        if error.error_code not in FINAL_CODES:
            return
        async with self._database.transaction() as session:
            ended = await session.scalar(
                update(Verification)
                .where(
                    Verification.tx_id == tx_id,
                    Verification.result_state == ResultState.NONE,
                    # A result call that is out may bring what another call was told is over.
                    (Verification.lease_until.is_(None)) | (Verification.lease_until <= self._clock()),
                )
                .values(result_state=ResultState.ENDED, end_code=error.error_code)
                .returning(Verification.tx_id)
            )
        if ended is not None:
            self._counts.moved(ResultState.ENDED)
        self._log.info("verification_ended", tx_id=tx_id, toss_code=error.error_code)

    # --- What the partner's server may ask besides --------------------------------------------------------

    async def compare(
        self,
        tx_id: str,
        caller: PartnerServer,
        *,
        ci: str | None = None,
        di: str | None = None,
        name: str | None = None,
        birthday: str | None = None,
    ) -> Comparison:
        """Is this the same person? Nothing of the verified data is given away but yes, no or unknown.

        Raises: as `result`.
        """
        retrieved = await self.result(tx_id, caller)
        personal = retrieved.identity.personal
        matches: dict[str, bool | None] = {}
        row = retrieved.verification
        for kind, given, known in (("ci", ci, row.ci_hash), ("di", di, row.di_hash)):
            if given is not None:
                hashed = self._vault.hash(kind, given)
                matches[kind] = None if known is None else hmac.compare_digest(known, hashed)
        if name is not None:
            known = personal.get("name")
            matches["name"] = None if known is None else normalize_name(known) == normalize_name(name)
        if birthday is not None:
            known = personal.get("birthday")
            matches["birthday"] = None if known is None else known == birthday
        return Comparison(matches)

    async def latest_of(self, user_id: str) -> Verification:
        """The newest verification of a user that was finished, and whose result is here or can still be had.

        Raises: VerificationNotFound.
        """
        can_be_read = (Verification.result_state == ResultState.NONE) & (
            Verification.completion_seen_at > self._clock() - self._rules.result_window
        )
        async with self._database.transaction() as session:
            latest = await session.scalar(
                select(Verification)
                .where(
                    Verification.user_id == user_id,
                    Verification.status == RequestStatus.COMPLETED,
                    Verification.result_state.in_((ResultState.ANSWERED, ResultState.STORED)) | can_be_read,
                )
                .order_by(Verification.created_at.desc())
                .limit(1)
            )
        if latest is None:
            raise VerificationNotFound
        return latest

    async def check_person(self, user_id: str, caller: PartnerServer, *, ci_hash: str | None) -> CheckedPerson:
        """Whether the newest verification of a user names the person whose CI has this hash.

        Raises: as `result`.
        """
        latest = await self.latest_of(user_id)
        return _checked((await self.result(latest.tx_id, caller)).verification, ci_hash)

    async def known_person(self, user_id: str, *, ci_hash: str | None) -> CheckedPerson | None:
        """As `check_person`, from what is stored alone: no read is spent."""
        async with self._database.transaction() as session:
            stored = await session.scalar(
                select(Verification)
                .where(Verification.user_id == user_id, Verification.result_state == ResultState.STORED)
                .order_by(Verification.created_at.desc())
                .limit(1)
            )
        return _checked(stored, ci_hash) if stored is not None else None

    async def evidence(self, tx_id: str, caller: PartnerServer) -> Evidence:
        """The user's signature, as the law wants it kept together with the txId (toss-cert reference 6).

        Raises: VerificationNotFound when there is no signature (yet, or any more).
        """
        verification = await self._find(tx_id, caller)
        if verification.signature is None:
            raise VerificationNotFound("no signature is stored for this verification")
        return Evidence(verification, self._unseal(verification, "signature", verification.signature))

    async def erase(self, tx_id: str, caller: PartnerServer, *, keeps_signature: bool) -> None:
        """Erase the personal data; that the verification took place remains. May be repeated.

        Raises: VerificationNotFound.
        """
        await self._find(tx_id, caller)
        async with self._database.transaction() as session:
            await session.execute(
                update(Verification)
                .where(Verification.tx_id == tx_id)
                .values(**_erased(self._clock()), **({} if keeps_signature else {"signature": None}))
            )
        await self._database.forget()
        self._log.info("verification_erased", tx_id=tx_id, key_id=caller.key_id, keeps_signature=keeps_signature)

    async def erase_of(self, user_id: str) -> None:
        """A user leaves: as `erase` for all that is theirs. Signatures stay for as long as the law wants them."""
        async with self._database.transaction() as session:
            await session.execute(
                update(Verification)
                .where(Verification.user_id == user_id, Verification.erased_at.is_(None))
                .values(**_erased(self._clock()))
            )
        await self._database.forget()

    async def abandon(self, tx_id: str) -> None:
        """Its owner has left while it was being given to them: as `erase`, before there is much to erase."""
        async with self._database.transaction() as session:
            await session.execute(
                update(Verification).where(Verification.tx_id == tx_id).values(**_erased(self._clock()))
            )
        await self._database.forget()

    async def owners(self, *, since: datetime) -> set[str]:
        """Users of whom there is a verification from then on that has not been erased."""
        async with self._database.transaction() as session:
            found = await session.scalars(
                select(Verification.user_id)
                .where(
                    Verification.created_at >= since,
                    Verification.user_id.is_not(None),
                    Verification.erased_at.is_(None),
                )
                .distinct()
            )
            return {user_id for user_id in found if user_id is not None}

    # --- What a crash or time leaves to do ----------------------------------------------------------------

    async def reconcile(self) -> Reconciled:
        """Settle leases left by a crash, open answers left closed, erase what is past its retention."""
        now = self._clock()
        done = Reconciled(
            leases_settled=await self._settle_leases(now),
            answers_opened=await self._open_answers(),
            identities_erased=await self._erase_identities(now - self._rules.retention),
            signatures_erased=await self._erase_signatures(now - self._rules.signature_retention),
        )
        await self._database.forget()
        return done

    async def _settle_leases(self, now: datetime) -> int:
        async with self._database.transaction() as session:
            settled = (
                await session.scalars(
                    update(Verification)
                    .where(Verification.lease_until <= now)
                    .values(lease_id=None, lease_until=None)
                    .returning(Verification)
                )
            ).all()
            # An answer that comes after its lease is still kept (keep_answer), so only the last read ends it.
            lost = [row.tx_id for row in settled if row.reads_left <= 0]
            ended = await session.scalars(
                update(Verification)
                .where(Verification.tx_id.in_(lost), Verification.result_state == ResultState.NONE)
                .values(result_state=ResultState.ENDED, end_code=READS_LOST)
                .returning(Verification.tx_id)
            )
            count = len(ended.all())
        for _ in range(count):
            self._counts.moved(ResultState.ENDED)
        return len(settled)

    async def _open_answers(self) -> int:
        opened, last = 0, ""
        while True:
            async with self._database.transaction() as session:
                batch = (
                    await session.scalars(
                        select(Verification)
                        .where(Verification.result_state == ResultState.ANSWERED, Verification.tx_id > last)
                        .order_by(Verification.tx_id)
                        .limit(BATCH)
                    )
                ).all()
            if not batch:
                return opened
            for verification in batch:
                last = verification.tx_id
                try:
                    await self._open(verification)
                except AppError as error:
                    # One answer that does not open must not keep the others closed.
                    self._log.error("answer_not_opened", tx_id=last, code=error.code)
                else:
                    opened += 1

    async def _erase_identities(self, before: datetime) -> int:
        async with self._database.transaction() as session:
            erased = await session.scalars(
                update(Verification)
                .where(Verification.created_at < before, Verification.erased_at.is_(None))
                .values(**_erased(self._clock()))
                .returning(Verification.tx_id)
            )
            return len(erased.all())

    async def _erase_signatures(self, before: datetime) -> int:
        async with self._database.transaction() as session:
            erased = await session.scalars(
                update(Verification)
                .where(Verification.created_at < before, Verification.signature.is_not(None))
                .values(signature=None)
                .returning(Verification.tx_id)
            )
            return len(erased.all())

    # --- Shared ------------------------------------------------------------------------------------------

    async def _find(self, tx_id: str, caller: Caller) -> Verification:
        """Raises: VerificationNotFound, also when it is somebody else's."""
        verification = await self._get(tx_id)
        match caller:
            case Holder(token_hash=token_hash):
                is_theirs = hmac.compare_digest(verification.token_hash or "", token_hash)
            case LoggedIn(session_id=session_id):
                is_theirs = verification.session_id == session_id
            case PartnerServer():
                is_theirs = True
        if not is_theirs:
            raise VerificationNotFound
        return verification

    async def _get(self, tx_id: str) -> Verification:
        async with self._database.transaction() as session:
            verification = await session.get(Verification, tx_id)
        if verification is None:
            raise VerificationNotFound
        return verification

    def _retrieved(self, verification: Verification, source: Source) -> Retrieved:
        if verification.identity is None:
            raise VerificationErased
        identity = Identity.load(self._unseal(verification, "identity", verification.identity))
        at = verification.completed_at or verification.created_at
        age = age_of(identity, at=at, rule=self._rules.adult_rule)
        if age.disagrees and source is not Source.STORED:
            self._log.warning("age_group_disagrees", tx_id=verification.tx_id)
        return Retrieved(verification, identity, age, source)

    def _unseal(self, verification: Verification, column: str, sealed: Sealed) -> str:
        try:
            return self._vault.open(sealed, verification.place_of(column))
        except UnsealError as error:
            raise SealedDataUnreadable from error


def _checked(verification: Verification, ci_hash: str | None) -> CheckedPerson:
    known = verification.ci_hash
    is_same = None if known is None or ci_hash is None else hmac.compare_digest(known, ci_hash)
    return CheckedPerson(verification, is_same)


def _erased(now: datetime) -> dict[str, object]:
    return {
        "result_state": ResultState.ERASED,
        "answer": None,
        "identity": None,
        "ci_hash": None,
        "di_hash": None,
        "erased_at": now,
    }
