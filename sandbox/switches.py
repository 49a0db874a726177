"""What the reference leaves open, with its safest value as default."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Situation(StrEnum):
    """Why Toss says FAIL."""

    BAD_TOKEN = "bad_token"  # noqa: S105
    INVALID = "invalid"
    SESSION_REUSED = "session_reused"
    UNKNOWN_TX = "unknown_tx"
    NOT_COMPLETED = "not_completed"
    READS_USED_UP = "reads_used_up"
    TOO_LATE = "too_late"
    EXPIRED = "expired"


class Links(StrEnum):
    """What the launch links of USER_PERSONAL hold (reference 3.3)."""

    TEXT_NULL = "text_null"
    JSON_NULL = "json_null"
    REAL = "real"
    ABSENT = "absent"


class WireModel(BaseModel):
    """camelCase in JSON, snake_case in Python; nothing unknown and nothing converted."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", validate_assignment=True
    )


def default_codes() -> dict[Situation, str]:
    return {
        Situation.BAD_TOKEN: "CE1000",
        Situation.UNKNOWN_TX: "CE3100",
        Situation.NOT_COMPLETED: "CE3102",
        # The rest is inferred: reference 7, "simulator defaults for cases whose code is unknown".
        Situation.INVALID: "CE3000",
        Situation.SESSION_REUSED: "CE3000",
        Situation.READS_USED_UP: "CE3101",
        Situation.TOO_LATE: "CE3103",
        Situation.EXPIRED: "CE3103",
    }


class Switches(WireModel):
    links: Links = Links.TEXT_NULL
    auth_url: bool = False
    """Q9: authUrl for USER_NONE is not on the Apps-in-Toss page."""
    age_group: bool = True
    """Q8: in the table, missing from the sample."""
    explicit_error_null: bool = False
    """Reference 3.2: some Toss products add `"error": null` to a success."""
    request_url_required: bool = True
    """Q2."""
    null_fields_as_text: bool = False
    """ci2 and ciUpdate as the text "null", as the launch links have it."""
    token_expires_in: int | None = None
    """Seconds; None means by the kind of client (reference 2)."""
    token_expires_in_as_text: bool = False
    request_life_seconds: int = Field(default=600, ge=1)
    """Q3: the life of a request that names none; only the maximum of 1800 is known."""
    sibling_paths: bool = True
    """Q1: answer on the paths without /id as well."""
    session_reuse_refused: bool = True
    """Q7: the documentation forbids it; what Toss does is unknown."""
    codes: dict[Situation, str] = Field(default_factory=default_codes)
    fail_statuses: dict[str, int] = Field(default_factory=dict)
    """HTTP status by error code where it differs from 401 for CE1000 and 400 for the rest."""

    def code(self, situation: Situation) -> str:
        return self.codes.get(situation, default_codes()[situation])

    def fail_status(self, code: str) -> int:
        # Reference 3.2: 400 was seen for CE3102 and 401 for a bad token; 400 elsewhere is inferred.
        return self.fail_statuses.get(code, 401 if code == "CE1000" else 400)
