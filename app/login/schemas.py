"""Toss login on our wire: camelCase JSON, input checks, what each door shows."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from app.login.service import LoggedIn
from app.login.sessions import LiveSession
from app.login.tables import LoginSession, User, UserKind
from app.person import mask_name
from app.settings import ProfileField
from app.toss.login import MAX_USER_KEY, Profile
from app.wire import Input, Wire

MAX_CODE = 4096
MAX_REFERRER = 64
MAX_ANON_KEY = 256
"""64 characters suffice for storing one, says Toss's staff (apps-in-toss reference 4)."""


def _visible(text: str) -> str:
    if not all("!" <= mark <= "~" for mark in text):
        raise ValueError("must be printable ASCII without blanks")
    return text


def _visible_text(limit: int, description: str) -> Any:  # noqa: ANN401 - what Field returns
    return Field(min_length=1, max_length=limit, description=description, json_schema_extra={"pattern": "^[!-~]+$"})


class LoginRequest(Input):
    """Both values exactly as `appLogin()` gave them."""

    authorization_code: Annotated[str, AfterValidator(_visible), _visible_text(MAX_CODE, "Serves once, 10 minutes")]
    referrer: Annotated[str, AfterValidator(_visible), _visible_text(MAX_REFERRER, "DEFAULT or SANDBOX")]


class AnonymousLoginRequest(Input):
    anon_key: Annotated[
        str, AfterValidator(_visible), _visible_text(MAX_ANON_KEY, "The `hash` of `getAnonymousKey()`")
    ]


class UserBody(Wire):
    """Who is logged in, as far as the operator discloses it (`BFF_LOGIN__DISCLOSED_FIELDS`)."""

    user_id: str = Field(description="Our own name for this user; means nothing elsewhere")
    kind: UserKind
    linked_at: datetime
    scopes: list[str] = Field(description="To what the user has consented at Toss")
    agreed_terms: list[str]
    user_key: str | None = None
    masked_name: str | None = None
    name: str | None = None
    phone: str | None = None
    calling_code: str | None = None
    birthday: str | None = None
    gender: str | None = None
    nationality: str | None = None
    email: str | None = None
    unreadable_fields: list[str] = Field(
        default_factory=list, description="Disclosed fields that could not be opened"
    )

    @classmethod
    def of(cls, user: User, profile: Profile, user_key: int | None, *, disclosed: frozenset[ProfileField]) -> Self:
        shown: dict[str, Any] = {
            field.value: profile.personal.get(field.value)
            for field in disclosed - {ProfileField.MASKED_NAME, ProfileField.USER_KEY}
        }
        if ProfileField.MASKED_NAME in disclosed and "name" in profile.personal:
            shown["maskedName"] = mask_name(profile.personal["name"])
        if ProfileField.USER_KEY in disclosed and user_key is not None:
            shown["userKey"] = str(user_key)
        sources = {"name" if field is ProfileField.MASKED_NAME else field.value for field in disclosed}
        return cls.model_validate(
            {
                "userId": user.user_id,
                "kind": user.kind,
                "linkedAt": user.linked_at,
                "scopes": user.scopes or [],
                "agreedTerms": user.agreed_terms or [],
                "unreadableFields": [field for field in profile.unreadable if field in sources],
                **shown,
            }
        )


class LoggedInBody(Wire):
    session_token: str = Field(description="For `Authorization: Bearer`. Given out once, kept by us as a hash only")
    session_id: str
    expires_at: datetime = Field(description="Without use; every use moves it on, up to `endsAt`")
    ends_at: datetime
    user: UserBody

    @classmethod
    def of(cls, logged_in: LoggedIn, user: UserBody) -> Self:
        session = logged_in.issued.session
        return cls(
            session_token=logged_in.issued.token,
            session_id=session.session_id,
            expires_at=session.expires_at,
            ends_at=session.ends_at,
            user=user,
        )


class SessionBody(Wire):
    session_id: str
    created_at: datetime
    expires_at: datetime
    ends_at: datetime
    is_current: bool

    @classmethod
    def of(cls, session: LoginSession, *, current: str | None = None) -> Self:
        return cls(
            session_id=session.session_id,
            created_at=session.created_at,
            expires_at=session.expires_at,
            ends_at=session.ends_at,
            is_current=session.session_id == current,
        )


class SessionsBody(Wire):
    sessions: list[SessionBody]


class IntrospectRequest(Input):
    session_token: str = Field(min_length=1, max_length=200, description="As the mini-app sent it to you")


class VerifiedPerson(Wire):
    tx_id: str
    completed_at: datetime | None
    is_same_person: bool | None = Field(description="By CI; null when either side has none")


class IntrospectionBody(Wire):
    """Who is behind a session token. When it is not active, nothing but that is said."""

    active: bool
    session_id: str | None = None
    user_id: str | None = None
    kind: UserKind | None = None
    user_key: str | None = Field(None, description="Null for an anonymous user")
    expires_at: datetime | None = None
    verification: VerifiedPerson | None = Field(
        None,
        description="The newest Toss Cert verification of this user whose result was fetched. Null: require one "
        "before what needs it",
    )

    @classmethod
    def of(cls, live: LiveSession, user_key: int | None, verification: VerifiedPerson | None) -> Self:
        return cls(
            active=True,
            session_id=live.session.session_id,
            user_id=live.user.user_id,
            kind=UserKind(live.user.kind),
            user_key=str(user_key) if user_key is not None else None,
            expires_at=live.session.expires_at,
            verification=verification,
        )


class LookUpRequest(Input):
    user_key: int = Field(ge=1, le=MAX_USER_KEY)


class ProfileBody(Wire):
    """Each field is null when the user has not consented to it or when it could not be opened."""

    name: str | None
    calling_code: str | None
    phone: str | None
    birthday: str | None
    ci: str | None
    gender: str | None
    nationality: str | None
    email: str | None = Field(description="As the user gave it; Toss has not verified it")


class FullUserBody(Wire):
    user_id: str
    kind: UserKind
    user_key: str | None = Field(description="Null for an anonymous user, and after an unlink")
    created_at: datetime
    linked_at: datetime
    unlinked_at: datetime | None
    scopes: list[str]
    agreed_terms: list[str]
    profile: ProfileBody
    unreadable_fields: list[str]

    @classmethod
    def of(cls, user: User, profile: Profile, user_key: int | None) -> Self:
        return cls(
            user_id=user.user_id,
            kind=UserKind(user.kind),
            user_key=str(user_key) if user_key is not None else None,
            created_at=user.created_at,
            linked_at=user.linked_at,
            unlinked_at=user.unlinked_at,
            scopes=user.scopes or [],
            agreed_terms=user.agreed_terms or [],
            profile=ProfileBody.model_validate(
                {
                    field.alias or name: profile.personal.get(field.alias or name)
                    for name, field in ProfileBody.model_fields.items()
                }
            ),
            unreadable_fields=list(profile.unreadable),
        )
