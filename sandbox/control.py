"""The hand that plays the user, moves the clock and orders faults; and the page for a person to do it on."""

from collections.abc import Callable
from pathlib import Path

from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sandbox.client_certificates import ClientCertificate
from sandbox.device import DeviceFace
from sandbox.faults import CallName, FaultOrder
from sandbox.money import MoneyFace
from sandbox.orders import read, with_problems
from sandbox.own_backend import OwnBackend
from sandbox.state import SandboxState
from sandbox.switches import Switches, WireModel

_PAGE = Path(__file__).with_name("page.html")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src *; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
}


class Advance(WireModel):
    advance_seconds: float


class Approval(WireModel):
    persona: str | None = None


class NewClient(WireModel):
    client_id: str = Field(min_length=1)
    client_secret: str = Field(min_length=1)


class Release(WireModel):
    call: CallName | None = None


class ControlFace:
    def __init__(
        self,
        *,
        state: SandboxState,
        issue: Callable[..., ClientCertificate],
        own_backend: OwnBackend,
        config: dict[str, str],
    ) -> None:
        self._state = state
        self._device = DeviceFace(state=state, issue=issue)
        self._money = MoneyFace(state)
        self._own_backend = own_backend
        self._config = config

    def app(self) -> Starlette:
        routes = [
            Route("/", self._page),
            Route("/control/config", self._show_config),
            Route("/control/state", self._show_state),
            Route("/control/personas", self._show_personas),
            *self._own_backend.routes(),
        ]
        questions = (*self._device.questions(), *self._money.questions())
        routes += [Route(f"/control/{path}", handler) for path, handler in questions]
        for path, handler in (
            ("reset", self._reset),
            ("clock", self._move_clock),
            ("switches", self._set_switches),
            ("faults", self._order_fault),
            ("faults/release", self._release),
            ("transactions/{tx_id}/open", self._open),
            ("transactions/{tx_id}/approve", self._approve),
            ("transactions/{tx_id}/expire", self._expire),
            ("clients", self._add_client),
            ("tokens/revoke", self._revoke_tokens),
            *self._device.orders(),
            *self._money.orders(),
        ):
            routes.append(Route(f"/control/{path}", with_problems(handler), methods=["POST"]))
        return Starlette(routes=routes)

    async def _page(self, _request: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    async def _show_config(self, _request: Request) -> Response:
        return JSONResponse(self._config)

    async def _show_state(self, _request: Request) -> Response:
        return JSONResponse(self._state.snapshot())

    async def _show_personas(self, _request: Request) -> Response:
        # Made-up people: showing them is the point. CI and DI stay out, the page has no use for them.
        shown = ("key", "label", "name", "birthday", "gender", "nationality")
        people = self._state.personas.values()
        return JSONResponse(
            [{name: getattr(person, name) for name in shown} | {"ageGroup": person.age_group} for person in people]
        )

    async def _reset(self, _request: Request) -> Response:
        kept = self._state.callbacks.all_settings()
        self._state.reset()
        for (app_name, kind), settings in kept.items():  # set in the console, which is not reset
            self._state.callbacks.configure(app_name, kind=kind, **settings.model_dump())
        return self._done()

    async def _move_clock(self, request: Request) -> Response:
        self._state.clock.advance((await read(request, Advance)).advance_seconds)
        return self._done()

    async def _set_switches(self, request: Request) -> Response:
        changes = await read(request, Switches)
        self._state.set_switches(**changes.model_dump(exclude_unset=True))
        return self._done()

    async def _order_fault(self, request: Request) -> Response:
        order = await read(request, FaultOrder)
        self._state.order_fault(**order.model_dump())
        return self._done()

    async def _release(self, request: Request) -> Response:
        self._state.release((await read(request, Release)).call)
        return self._done()

    async def _open(self, request: Request) -> Response:
        self._state.open(request.path_params["tx_id"])
        return self._done()

    async def _approve(self, request: Request) -> Response:
        self._state.approve(request.path_params["tx_id"], (await read(request, Approval)).persona)
        return self._done()

    async def _expire(self, request: Request) -> Response:
        self._state.expire(request.path_params["tx_id"])
        return self._done()

    async def _add_client(self, request: Request) -> Response:
        client = await read(request, NewClient)
        self._state.add_client(client.client_id, client.client_secret)
        return self._done()

    async def _revoke_tokens(self, _request: Request) -> Response:
        self._state.revoke_tokens()
        return self._done()

    def _done(self) -> Response:
        return JSONResponse(self._state.snapshot())
