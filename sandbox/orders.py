"""How the control API reads an order and says what is wrong with it."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.shared import NotPossible

Model = TypeVar("Model", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]


async def read(request: Request, model: type[Model]) -> Model:
    """Raises pydantic's ValidationError."""
    return model.model_validate_json(await request.body() or b"{}")


def with_problems(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except NotPossible as error:
            return JSONResponse({"detail": str(error)}, status_code=409)
        except ValidationError as error:
            details: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
            return JSONResponse({"detail": "the order cannot be read", "errors": details}, status_code=422)

    return answer
