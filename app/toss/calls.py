"""What is told of every call to Toss: its name, how it ended and how long it took."""

import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from app.toss.errors import BudgetExhausted, NotSent, OutcomeUnknown, TossError, TossRejected

Observe = Callable[[str, str, float], None]
"""Gets the call's name, its outcome and seconds."""

OK: Final = "ok"


class Observed(Protocol):
    @property
    def observe(self) -> Observe: ...


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Observed)


def unobserved(_call: str, _outcome: str, _seconds: float) -> None:
    return


def observed(
    call: str,
) -> Callable[
    [Callable[Concatenate[S, P], Coroutine[Any, Any, R]]], Callable[Concatenate[S, P], Coroutine[Any, Any, R]]
]:
    """Tells of the whole of it: the wait for a connection and a token, what is asked twice, and reading the answer.

    A call that is cut off by the end of the process is not told of.
    """

    def decorate(
        method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
        @wraps(method)
        async def timed(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            started = time.perf_counter()
            try:
                answer = await method(self, *args, **kwargs)
            except TossError as error:
                self.observe(call, _outcome(error), time.perf_counter() - started)
                raise
            self.observe(call, OK, time.perf_counter() - started)
            return answer

        return timed

    return decorate


def _outcome(error: TossError) -> str:
    """By what may be done next, as the errors themselves."""
    match error:
        case BudgetExhausted():
            return "over_budget"
        case NotSent():
            return "not_sent"
        case OutcomeUnknown():
            return "outcome_unknown"
        case TossRejected():
            return "rejected"
        case _:
            return "unintelligible"
