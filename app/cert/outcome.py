"""Rules about an opened result: pure, no database, no clock, no network."""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from typing import Literal, Self

from typing_extensions import override

KOREA = timezone(timedelta(hours=9), "KST")
"""Korea has had no daylight saving time since 1988."""
ADULT_AGE = 19


class AgeGroup(StrEnum):
    ADULT = "ADULT"
    MINOR = "MINOR"
    UNKNOWN = "UNKNOWN"


AdultRule = Literal["by_date", "by_year"]


@dataclass(frozen=True)
class Identity:
    """Who the user proved to be. Absent and unreadable fields are missing from `personal` (G3)."""

    personal: dict[str, str]
    unreadable: tuple[str, ...]

    @override
    def __repr__(self) -> str:
        return "Identity(...)"

    def dump(self) -> str:
        return json.dumps({"personal": self.personal, "unreadable": self.unreadable}, ensure_ascii=False)

    @classmethod
    def load(cls, text: str) -> Self:
        stored = json.loads(text)
        return cls(stored["personal"], tuple(stored["unreadable"]))


@dataclass(frozen=True)
class Age:
    """What Toss says of the age, and what the birthday says."""

    stated: AgeGroup
    derived: AgeGroup
    rule: AdultRule

    @property
    def disagrees(self) -> bool:
        return AgeGroup.UNKNOWN not in (self.stated, self.derived) and self.stated != self.derived


def age_of(identity: Identity, *, at: datetime, rule: AdultRule) -> Age:
    """An absent or unknown group is UNKNOWN, never ADULT (toss-cert reference 3.6, Q8).

    by_date: an adult from the 19th birthday on; born on 29 February, from 1 March in other years.
    by_year: an adult from 1 January of the year of the 19th birthday.
    """
    stated = identity.personal.get("ageGroup", "")
    birthday = parse_birthday(identity.personal.get("birthday", ""))
    return Age(
        stated=AgeGroup(stated) if stated in (AgeGroup.ADULT, AgeGroup.MINOR) else AgeGroup.UNKNOWN,
        derived=_derive(birthday, on=at.astimezone(KOREA).date(), rule=rule),
        rule=rule,
    )


def _derive(birthday: date | None, *, on: date, rule: AdultRule) -> AgeGroup:
    if birthday is None:
        return AgeGroup.UNKNOWN
    years = on.year - birthday.year
    if rule == "by_date" and (on.month, on.day) < (birthday.month, birthday.day):
        years -= 1
    return AgeGroup.ADULT if years >= ADULT_AGE else AgeGroup.MINOR


def parse_birthday(text: str) -> date | None:
    """YYYYMMDD of a real day; None for anything else."""
    if len(text) != len("YYYYMMDD") or not (text.isascii() and text.isdigit()):
        return None
    try:
        return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None
