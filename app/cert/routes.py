"""Toss Cert over HTTP: the mini-app door and the partner-server door."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Response

from app.cert.schemas import (
    CheckedPersonBody,
    ClaimRequest,
    CompareRequest,
    ComparisonBody,
    EvidenceBody,
    FullResultBody,
    OneTouchRequest,
    OutcomeBody,
    StartedBody,
    StartRequest,
    StatusBody,
)
from app.cert.service import LoggedIn
from app.deps import (
    NO_STORE,
    CertComparer,
    CertDep,
    CertEraser,
    CertEvidenceReader,
    CertReader,
    DepartureDep,
    LoginDep,
    OwnerDep,
    OwnersDep,
    SessionDep,
    SettingsDep,
)
from app.errors import (
    AgeRestricted,
    AppError,
    ResultInProgress,
    ResultOutcomeUnknown,
    ResultReadsExhausted,
    SealedDataUnreadable,
    SessionRequired,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
    UserNotFound,
    VerificationErased,
    VerificationExpired,
    VerificationNotCompleted,
    VerificationNotFound,
    VerificationRefused,
    VerificationTokenRequired,
    VerificationUnknownToToss,
)
from app.problems import ALWAYS, PARTNER, documented

UserId = Annotated[str, Path(alias="userId", pattern=r"^[0-9a-f-]{36}$")]
TxId = Annotated[str, Path(alias="txId", pattern=r"^[A-Za-z0-9_-]{1,64}$")]

CERT_UPSTREAM: tuple[type[AppError], ...] = (
    UpstreamUnavailable,
    UpstreamTimeout,
    UpstreamInvalid,
    AgeRestricted,
    VerificationRefused,
)
ENDED: tuple[type[AppError], ...] = (VerificationExpired, ResultReadsExhausted, VerificationUnknownToToss)
RESULT: tuple[type[AppError], ...] = (
    *ALWAYS,
    *CERT_UPSTREAM,
    *ENDED,
    VerificationNotFound,
    VerificationNotCompleted,
    ResultInProgress,
    ResultOutcomeUnknown,
    VerificationErased,
    SealedDataUnreadable,
)

mini_app = APIRouter(prefix="/api/v1/cert", tags=["Toss Cert (mini-app)"], dependencies=[NO_STORE])
partner_server = APIRouter(prefix="/server/v1/cert", tags=["Toss Cert (partner server)"], dependencies=[NO_STORE])


@mini_app.post(
    "/requests",
    status_code=201,
    responses=documented(*ALWAYS, *CERT_UPSTREAM, SessionRequired),
    response_model_exclude_none=True,
    openapi_extra={"security": [{}]},  # or none: without a session its token shows whose it is
)
async def start_verification(
    cert: CertDep, owner: OwnerDep, departure: DepartureDep, body: Annotated[StartRequest | None, Body()] = None
) -> StartedBody:
    """Start a verification. Without a body it is USER_NONE (one-touch).

    With a session token it belongs to that session; without, to the holder of the token in the answer.
    """
    if body is None or isinstance(body, OneTouchRequest):
        started = await cert.start(owner=owner)
    else:
        started = await cert.start(owner=owner, name=body.name, phone=body.phone, birthday=body.birthday)
    if owner is not None and not await departure.given(started.verification.tx_id, owner.user_id):
        raise SessionRequired
    return StartedBody.of(started)


@mini_app.post(
    "/requests/{txId}/claim",
    responses=documented(*ALWAYS, SessionRequired, VerificationNotFound),
)
async def claim_verification(
    tx_id: TxId, body: ClaimRequest, cert: CertDep, departure: DepartureDep, live: SessionDep
) -> StatusBody:
    """Bind a verification that began before the login to this session. Its token serves no longer."""
    owner = LoggedIn(live.session.session_id, live.user.user_id)
    taken = await cert.take_over(tx_id, cert.holder(body.verification_token), owner)
    if not await departure.given(tx_id, owner.user_id):
        raise SessionRequired
    return StatusBody.of(taken)


@mini_app.get(
    "/requests/{txId}/status",
    responses=documented(
        *ALWAYS, *CERT_UPSTREAM, *ENDED, VerificationNotFound, VerificationTokenRequired, SessionRequired
    ),
)
async def get_verification_status(tx_id: TxId, cert: CertDep, holder: OwnersDep) -> StatusBody:
    """Progress only. COMPLETED here is not proof; the result is."""
    return StatusBody.of(await cert.status(tx_id, holder))


@mini_app.post(
    "/requests/{txId}/result",
    responses=documented(*RESULT, VerificationTokenRequired, SessionRequired),
    response_model_exclude_none=True,
)
async def fetch_verification_outcome(
    tx_id: TxId, cert: CertDep, holder: OwnersDep, settings: SettingsDep
) -> OutcomeBody:
    """The verified outcome, as far as the operator discloses it. May be repeated."""
    return OutcomeBody.of(await cert.result(tx_id, holder), disclosed=settings.cert.disclosed_fields)


@partner_server.get(
    "/requests/{txId}/status",
    responses=documented(*ALWAYS, *CERT_UPSTREAM, *ENDED, *PARTNER, VerificationNotFound),
)
async def get_verification_status_as_partner(tx_id: TxId, cert: CertDep, partner: CertReader) -> StatusBody:
    return StatusBody.of(await cert.status(tx_id, partner))


@partner_server.post("/requests/{txId}/result", responses=documented(*RESULT, *PARTNER))
async def fetch_full_result(tx_id: TxId, cert: CertDep, partner: CertReader) -> FullResultBody:
    """Everything that was verified, CI and DI included. May be repeated."""
    return FullResultBody.of(await cert.result(tx_id, partner))


@partner_server.post("/users/{userId}/result", responses=documented(*RESULT, *PARTNER))
async def fetch_full_result_of_user(user_id: UserId, cert: CertDep, partner: CertReader) -> FullResultBody:
    """As by txId, of the newest verification that this user has finished."""
    latest = await cert.latest_of(user_id)
    return FullResultBody.of(await cert.result(latest.tx_id, partner))


@partner_server.post("/users/{userId}/compare", responses=documented(*RESULT, *PARTNER, UserNotFound))
async def compare_with_login(
    user_id: UserId, login: LoginDep, cert: CertDep, partner: CertComparer
) -> CheckedPersonBody:
    """Has this user been verified, and is that the person who is logged in? Ask before what needs both."""
    user = await login.user(user_id)
    return CheckedPersonBody.of(await cert.check_person(user_id, partner, ci_hash=user.ci_hash))


@partner_server.post("/requests/{txId}/compare", responses=documented(*RESULT, *PARTNER))
async def compare_person(tx_id: TxId, body: CompareRequest, cert: CertDep, partner: CertComparer) -> ComparisonBody:
    """Is the verified user the person with this CI or DI, or this name and birthday?"""
    return ComparisonBody.of(
        await cert.compare(tx_id, partner, ci=body.ci, di=body.di, name=body.name, birthday=body.birthday)
    )


@partner_server.get(
    "/requests/{txId}/signature",
    responses=documented(*ALWAYS, *PARTNER, VerificationNotFound, SealedDataUnreadable),
)
async def get_signature_evidence(tx_id: TxId, cert: CertDep, partner: CertEvidenceReader) -> EvidenceBody:
    return EvidenceBody.of(await cert.evidence(tx_id, partner))


@partner_server.delete(
    "/requests/{txId}",
    status_code=204,
    response_class=Response,
    responses=documented(*ALWAYS, *PARTNER, VerificationNotFound),
)
async def erase_verification(
    tx_id: TxId,
    cert: CertDep,
    partner: CertEraser,
    keep_signature: Annotated[bool, Query(alias="keepSignature")] = False,  # noqa: FBT002 - a query parameter
) -> None:
    """Erase the personal data. `keepSignature=true` keeps the evidence until its own retention ends."""
    await cert.erase(tx_id, partner, keeps_signature=keep_signature)
