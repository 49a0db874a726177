"""What is told of every call: its name, how it ended, how long it took."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from app.toss.calls import observed
from app.toss.errors import (
    BudgetExhausted,
    CertificateRefused,
    NotSent,
    OutcomeUnknown,
    TossFault,
    TossRejected,
    Unintelligible,
)


@dataclass
class Api:
    error: BaseException | None = None
    told: list[tuple[str, str, float]] = field(default_factory=list)

    def observe(self, call: str, outcome: str, seconds: float) -> None:
        self.told.append((call, outcome, seconds))

    @observed("thing.ask")
    async def ask(self, what: str, *, times: int = 1) -> str:
        if self.error is not None:
            raise self.error
        return what * times


async def test_a_call_is_told_of_with_its_answer_untouched():
    api = Api()
    assert await api.ask("x", times=3) == "xxx"
    [(call, outcome, seconds)] = api.told
    assert (call, outcome) == ("thing.ask", "ok")
    assert 0 <= seconds < 60


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotSent("x"), "not_sent"),
        (CertificateRefused("x"), "not_sent"),
        (BudgetExhausted(timedelta(seconds=1), limit="all"), "over_budget"),
        (OutcomeUnknown("x"), "outcome_unknown"),
        (TossFault(result_type="HTTP_TIMEOUT", error_code="x"), "outcome_unknown"),
        (TossRejected(http_status=200, error_code="x"), "rejected"),
        (Unintelligible("x", http_status=200), "unintelligible"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_an_error_is_told_of_and_goes_on(error, outcome):
    api = Api(error)
    with pytest.raises(type(error)) as caught:
        await api.ask("x")
    assert caught.value is error
    assert [(call, how) for call, how, _ in api.told] == [("thing.ask", outcome)]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("a bug")])
async def test_what_says_nothing_of_toss_is_not_told_of(error):
    api = Api(error)
    with pytest.raises(type(error)):
        await api.ask("x")
    assert api.told == []
