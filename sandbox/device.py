"""The part of the control API that plays a mini-app's console and its users' devices (reference 15.4)."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.budget import DEFAULT_LIMIT, DEFAULT_WINDOW_SECONDS
from sandbox.callbacks import CallbackKind, CallbackSettings, shown
from sandbox.client_certificates import LIFE_DAYS, ClientCertificate, KeyType
from sandbox.miniapps import DEFAULT_APP, Referrer, Scope, TossUser, UnlinkReferrer
from sandbox.orders import Handler, read
from sandbox.state import SandboxState
from sandbox.switches import WireModel


class OfApp(WireModel):
    app_name: str = Field(default=DEFAULT_APP, min_length=1)


class NewCertificate(OfApp):
    days: float = Field(default=LIFE_DAYS, gt=0)
    days_left: float | None = None
    not_before: datetime | None = None
    key_type: KeyType = KeyType.RSA


class Revocation(WireModel):
    serial: int
    """A JSON number, or text: it is longer than JavaScript can count."""


class AppChanges(WireModel):
    scopes: list[Scope] | None = None
    agreed_terms: list[str] | None = None
    is_login_configured: bool | None = None
    aad: str | None = None


class NewUser(WireModel):
    id: str = Field(min_length=1)
    name: str
    phone: str
    birthday: str
    gender: str
    nationality: str
    ci: str
    email: str | None = None


class Login(OfApp):
    referrer: Referrer = Referrer.DEFAULT
    scopes: list[Scope] | None = None


class Unlink(OfApp):
    referrer: UnlinkReferrer = UnlinkReferrer.UNLINK


class NewLimit(OfApp):
    requests: int = Field(default=DEFAULT_LIMIT, ge=0)
    window_seconds: float = Field(default=DEFAULT_WINDOW_SECONDS, gt=0)


class CallbackChanges(CallbackSettings):
    kind: CallbackKind = CallbackKind.LOGIN_UNLINK
    app_name: str = Field(default=DEFAULT_APP, min_length=1)


class NewNotice(OfApp):
    user_key: int
    referrer: str


class NewRegistration(CallbackSettings):
    app_name: str = Field(default=DEFAULT_APP, min_length=1)


class AnyNotice(OfApp):
    """Of any kind and with any body, so that it can be wrong."""

    kind: CallbackKind
    body: dict[str, Any]


class Redelivery(WireModel):
    ids: list[int] | None = None
    kind: CallbackKind | None = None
    copies: int | None = Field(default=None, ge=0)
    reverse: bool = False


class DeviceFace:
    def __init__(self, *, state: SandboxState, issue: Callable[..., ClientCertificate]) -> None:
        self._state = state
        self._issue = issue

    def questions(self) -> list[tuple[str, Handler]]:
        return [
            ("users", self._show_users),
            ("callbacks", self._show_callbacks),
            ("mini-apps/{name}/decryption-key", self._show_key),
        ]

    def orders(self) -> list[tuple[str, Handler]]:
        return [
            ("certificates", self._new_certificate),
            ("certificates/revoke", self._revoke),
            ("mini-apps/{name}", self._configure),
            ("users", self._new_user),
            ("users/{user}/login", self._log_in),
            ("users/{user}/anon-key", self._anon_key),
            ("users/{user}/unlink", self._unlink),
            ("login-tokens/revoke", self._revoke_tokens),
            ("budget", self._set_limit),
            ("callback", self._configure_callback),
            ("callback/register", self._register_callback),
            ("callbacks", self._announce),
            ("callbacks/send", self._send),
            ("callbacks/deliver", self._deliver),
            ("callbacks/console-test", self._console_test),
        ]

    # The console

    async def _new_certificate(self, request: Request) -> Response:
        order = await read(request, NewCertificate)
        pair = await run_in_threadpool(self._issue, **order.model_dump())
        return JSONResponse(
            {
                "appName": pair.app_name,
                "serial": str(pair.serial),
                "notBefore": pair.not_before.isoformat(),
                "notAfter": pair.not_after.isoformat(),
                "publicCrt": pair.public_crt,
                "privateKey": pair.private_key,
            }
        )

    async def _revoke(self, request: Request) -> Response:
        self._state.mini_apps.revoke((await read(request, Revocation)).serial)
        return self._done()

    async def _configure(self, request: Request) -> Response:
        changes = await read(request, AppChanges)
        self._state.mini_apps.configure(request.path_params["name"], **changes.model_dump())
        return self._done()

    async def _show_key(self, request: Request) -> Response:
        """What the console sends by e-mail (reference 6.5)."""
        app = self._state.mini_apps.app(request.path_params["name"])
        keys = {"decryptionKey": app.decryption_key, "secondDecryptionKey": app.second_decryption_key}
        return JSONResponse(keys | {"aad": app.aad})

    async def _revoke_tokens(self, _request: Request) -> Response:
        self._state.mini_apps.revoke_tokens()
        return self._done()

    async def _set_limit(self, request: Request) -> Response:
        order = await read(request, NewLimit)
        self._state.budget.set_limit(order.app_name, order.requests, window_seconds=order.window_seconds)
        return self._done()

    # The device

    async def _show_users(self, _request: Request) -> Response:
        users = self._state.mini_apps.users()
        return JSONResponse([{"id": user.id, "name": user.name} for user in users])

    async def _new_user(self, request: Request) -> Response:
        self._state.mini_apps.add_user(TossUser(**(await read(request, NewUser)).model_dump()))
        return self._done()

    async def _log_in(self, request: Request) -> Response:
        order = await read(request, Login)
        handed = self._state.mini_apps.log_in(request.path_params["user"], **order.model_dump())
        return JSONResponse(
            {
                "authorizationCode": handed.authorization_code,
                "referrer": handed.referrer,
                "askedForConsent": handed.asked_for_consent,
            }
        )

    async def _anon_key(self, request: Request) -> Response:
        order = await read(request, OfApp)
        key = self._state.mini_apps.anon_key(request.path_params["user"], order.app_name)
        return JSONResponse({"type": "HASH", "hash": key})

    async def _unlink(self, request: Request) -> Response:
        order = await read(request, Unlink)
        made = await run_in_threadpool(
            self._state.unlink_by_user,
            request.path_params["user"],
            app_name=order.app_name,
            referrer=order.referrer,
        )
        return JSONResponse({"deliveries": [shown(delivery) for delivery in made]})

    # Toss, calling back

    async def _configure_callback(self, request: Request) -> Response:
        changes = (await read(request, CallbackChanges)).model_dump(exclude_unset=True)
        app_name = changes.pop("app_name", DEFAULT_APP)
        kind = changes.pop("kind", CallbackKind.LOGIN_UNLINK)
        made = self._state.callbacks.configure(app_name, kind=kind, **changes)
        return JSONResponse(made.model_dump(mode="json", by_alias=True, exclude={"auth_value"}))

    async def _register_callback(self, request: Request) -> Response:
        """The console's step 4 of a product's registration (reference 14.2)."""
        changes = (await read(request, NewRegistration)).model_dump(exclude_unset=True)
        app_name = changes.pop("app_name", DEFAULT_APP)
        delivery = await run_in_threadpool(self._state.callbacks.register, app_name, **changes)
        return JSONResponse(shown(delivery))

    async def _show_callbacks(self, _request: Request) -> Response:
        return JSONResponse(self._state.callbacks.snapshot())

    async def _announce(self, request: Request) -> Response:
        order = await read(request, NewNotice)
        notice, made = await run_in_threadpool(
            self._state.callbacks.announce, order.user_key, order.referrer, app_name=order.app_name
        )
        return JSONResponse({"id": notice.id, "deliveries": [shown(delivery) for delivery in made]})

    async def _send(self, request: Request) -> Response:
        order = await read(request, AnyNotice)
        notice, made = await run_in_threadpool(
            self._state.callbacks.send, order.kind, order.body, app_name=order.app_name
        )
        return JSONResponse({"id": notice.id, "deliveries": [shown(delivery) for delivery in made]})

    async def _deliver(self, request: Request) -> Response:
        order = await read(request, Redelivery)
        made = await run_in_threadpool(self._state.callbacks.deliver, **order.model_dump())
        return JSONResponse({"deliveries": [shown(delivery) for delivery in made]})

    async def _console_test(self, request: Request) -> Response:
        order = await read(request, OfApp)
        test = await run_in_threadpool(self._state.callbacks.test_from_console, order.app_name)
        answer: dict[str, Any] = {
            "preflight": shown(test.preflight),
            "isPreflightAllowed": test.is_preflight_allowed,
            "call": test.call and shown(test.call),
            "isAnswerReadable": test.is_answer_readable,
            "isSuccess": test.is_success,
        }
        return JSONResponse(answer)

    def _done(self) -> Response:
        return JSONResponse(self._state.snapshot())
