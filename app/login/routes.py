"""Toss login over HTTP: the mini-app door and the partner-server door."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.deps import (
    NO_STORE,
    CertDep,
    DepartureDep,
    InboxDep,
    LoginDep,
    SessionDep,
    SessionIntrospector,
    SettingsDep,
    UserEraser,
    UserReader,
)
from app.errors import (
    AnonKeyRejected,
    AppError,
    LoginInProgress,
    LoginRejected,
    SealedDataUnreadable,
    SessionNotFound,
    SessionRequired,
    TossNotConfigured,
    UnlinkNeedsLogin,
    UpstreamRefused,
    UserNotFound,
)
from app.login.schemas import (
    AnonymousLoginRequest,
    FullUserBody,
    IntrospectionBody,
    IntrospectRequest,
    LoggedInBody,
    LoginRequest,
    LookUpRequest,
    SessionBody,
    SessionsBody,
    UserBody,
    VerifiedPerson,
)
from app.login.service import LoggedIn, LoginService
from app.login.tables import User
from app.problems import ALWAYS, PARTNER, UPSTREAM, documented
from app.settings import Settings

OVERTAKEN_SINCE = timedelta(minutes=10)
"""A notice of an unlink that came this long before a login ended may have been about this login."""

SessionId = Annotated[str, Path(alias="sessionId", pattern=r"^[0-9a-f-]{36}$")]
UserId = Annotated[str, Path(alias="userId", pattern=r"^[0-9a-f-]{36}$")]

PARTNER_API: tuple[type[AppError], ...] = (*UPSTREAM, UpstreamRefused, TossNotConfigured)
MINE: tuple[type[AppError], ...] = (*ALWAYS, SessionRequired)

mini_app = APIRouter(prefix="/api/v1", tags=["Toss login (mini-app)"], dependencies=[NO_STORE])
partner_server = APIRouter(prefix="/server/v1", tags=["Toss login (partner server)"], dependencies=[NO_STORE])


def _user_body(login: LoginService, settings: Settings, user: User) -> UserBody:
    return UserBody.of(
        user, login.profile_of(user), login.user_key_of(user), disclosed=settings.login.disclosed_fields
    )


def _logged_in(login: LoginService, settings: Settings, logged_in: LoggedIn) -> LoggedInBody:
    return LoggedInBody.of(logged_in, _user_body(login, settings, logged_in.user))


@mini_app.post(
    "/login",
    responses=documented(*ALWAYS, *PARTNER_API, LoginRejected, LoginInProgress, SealedDataUnreadable),
    response_model_exclude_none=True,
)
async def log_in(body: LoginRequest, login: LoginDep, inbox: InboxDep, settings: SettingsDep) -> LoggedInBody:
    """Exchange what `appLogin()` gave for a session with us. The code serves once."""
    logged_in = await login.log_in(body.authorization_code, body.referrer)
    user_key = login.user_key_of(logged_in.user)
    if user_key is not None:
        await inbox.recheck(user_key, since=logged_in.issued.session.created_at - OVERTAKEN_SINCE)
        if await login.sessions.verify(logged_in.issued.token) is None:
            raise LoginRejected("the user has unlinked meanwhile")
    return _logged_in(login, settings, logged_in)


@mini_app.post(
    "/login/anonymous",
    responses=documented(*ALWAYS, *PARTNER_API, AnonKeyRejected, SealedDataUnreadable),
    response_model_exclude_none=True,
)
async def log_in_anonymously(body: AnonymousLoginRequest, login: LoginDep, settings: SettingsDep) -> LoggedInBody:
    """A session for whoever holds an anonymous key that Toss issued for this mini-app."""
    return _logged_in(login, settings, await login.log_in_anonymously(body.anon_key))


@mini_app.get("/me", responses=documented(*MINE, SealedDataUnreadable), response_model_exclude_none=True)
async def get_me(live: SessionDep, login: LoginDep, settings: SettingsDep) -> UserBody:
    return _user_body(login, settings, live.user)


@mini_app.post("/logout", status_code=204, response_class=Response, responses=documented(*MINE))
async def log_out(live: SessionDep, login: LoginDep) -> None:
    """End this session, at once and on every replica."""
    await login.sessions.end(live.session.session_id, user_id=live.user.user_id)


@mini_app.delete(
    "/me",
    status_code=204,
    response_class=Response,
    responses=documented(*MINE, *PARTNER_API, UnlinkNeedsLogin, SealedDataUnreadable),
)
async def leave(live: SessionDep, departure: DepartureDep) -> None:
    """Unlink at Toss, then erase. If Toss does not answer, the wish is kept and finished later by itself."""
    await departure.by_request(live.user.user_id)


@mini_app.get("/me/sessions", responses=documented(*MINE))
async def list_my_sessions(live: SessionDep, login: LoginDep) -> SessionsBody:
    sessions = await login.sessions.of(live.user.user_id)
    return SessionsBody(sessions=[SessionBody.of(each, current=live.session.session_id) for each in sessions])


@mini_app.delete(
    "/me/sessions/{sessionId}",
    status_code=204,
    response_class=Response,
    responses=documented(*MINE, SessionNotFound),
)
async def end_my_session(session_id: SessionId, live: SessionDep, login: LoginDep) -> None:
    await login.end_session(session_id, of=live.user.user_id)


@partner_server.post("/sessions/introspect", responses=documented(*ALWAYS, *PARTNER, SealedDataUnreadable))
async def introspect_session(
    body: IntrospectRequest, login: LoginDep, cert: CertDep, _partner: SessionIntrospector
) -> IntrospectionBody:
    """Who sent you this session token? Never believe a user id or userKey that a mini-app sends."""
    live = await login.sessions.verify(body.session_token)
    if live is None:
        return IntrospectionBody(active=False)
    known = await cert.known_person(live.user.user_id, ci_hash=live.user.ci_hash)
    verification = None
    if known is not None:
        verification = VerifiedPerson(
            tx_id=known.verification.tx_id,
            completed_at=known.verification.completed_at,
            is_same_person=known.is_same_person,
        )
    return IntrospectionBody.of(live, login.user_key_of(live.user), verification)


@partner_server.post("/user-lookup", responses=documented(*ALWAYS, *PARTNER, UserNotFound, SealedDataUnreadable))
async def look_up_user(body: LookUpRequest, login: LoginDep, _partner: UserReader) -> FullUserBody:
    """By `userKey`, which does not belong in an address."""
    user = await login.find(body.user_key)
    if user is None:
        raise UserNotFound
    return FullUserBody.of(user, login.profile_of(user), login.user_key_of(user))


@partner_server.get("/users/{userId}", responses=documented(*ALWAYS, *PARTNER, UserNotFound, SealedDataUnreadable))
async def get_user(user_id: UserId, login: LoginDep, _partner: UserReader) -> FullUserBody:
    user = await login.user(user_id)
    return FullUserBody.of(user, login.profile_of(user), login.user_key_of(user))


@partner_server.delete(
    "/users/{userId}/sessions",
    status_code=204,
    response_class=Response,
    responses=documented(*ALWAYS, *PARTNER, UserNotFound),
)
async def end_sessions_of_user(user_id: UserId, login: LoginDep, _partner: UserEraser) -> None:
    await login.end_sessions(user_id)


@partner_server.delete(
    "/users/{userId}",
    status_code=204,
    response_class=Response,
    responses=documented(*ALWAYS, *PARTNER, *PARTNER_API, UserNotFound, UnlinkNeedsLogin, SealedDataUnreadable),
)
async def erase_user(user_id: UserId, departure: DepartureDep, _partner: UserEraser) -> None:
    """Unlink at Toss, then erase, as when the user asks for it."""
    await departure.by_request(user_id)
