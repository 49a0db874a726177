"""The host of login: Toss login, anonymous keys, in-app purchase (reference of Apps in Toss, 6, 7 and 10)."""

import base64
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import Request
from typing_extensions import override

from sandbox.clock import iap_time, korean_time
from sandbox.crypto import seal_login_field
from sandbox.faults import CallName, FaultKind, FaultOrder
from sandbox.miniapps import ACCESS_SECONDS, Grant, InvalidGrant, MiniApp, Scope, scope_names
from sandbox.partner import UNAUTHENTICATED, Call, InvalidFields, PartnerAnswer, PartnerFace, json_object, text
from sandbox.shared import CallFailed
from sandbox.state import SandboxState
from sandbox.switches import DecryptionKey
from sandbox.tokens import access_token

_LOGIN = "user/oauth2"
_LARGEST_USER_KEY = 2**63 - 1

# Which consent opens which field of login-me (reference 6.4).
_SCOPE_OF = {
    "name": Scope.NAME,
    "phone": Scope.PHONE,
    "birthday": Scope.BIRTHDAY,
    "ci": Scope.CI,
    "gender": Scope.GENDER,
    "nationality": Scope.NATIONALITY,
    "email": Scope.EMAIL,
}


# Made up; that they are Korean sentences is documented (reference 10.1).
_ORDER_REASONS = {
    "ORDER_IN_PROGRESS": "주문이 진행 중이에요.",
    "PAYMENT_PENDING": "결제가 진행 중이에요.",
    "PAYMENT_COMPLETED": "결제가 완료되었지만 상품 지급이 확인되지 않았어요.",
    "PURCHASED": "구매가 완료되었어요.",
    "FAILED": "결제에 실패했어요.",
    "REFUNDED": "환불된 주문이에요.",
    "NOT_FOUND": "주문을 찾을 수 없어요.",
    "MINIAPP_MISMATCH": "다른 미니앱의 주문이에요.",
    "ERROR": "주문을 조회하지 못했어요.",
}


class LoginFace(PartnerFace):
    def __init__(self, *, state: SandboxState, token_key: Callable[[], rsa.RSAPrivateKey]) -> None:
        super().__init__(state)
        self._token_key = token_key

    @override
    def _calls(self) -> list[Call]:
        return [
            (CallName.LOGIN_EXCHANGE, "POST", f"{_LOGIN}/generate-token", self._exchange),
            (CallName.LOGIN_REFRESH, "POST", f"{_LOGIN}/refresh-token", self._refresh),
            (CallName.LOGIN_ME, "GET", f"{_LOGIN}/login-me", self._me),
            (CallName.UNLINK_TOKEN, "POST", f"{_LOGIN}/access/remove-by-access-token", self._unlink_token),
            (CallName.UNLINK_USER, "POST", f"{_LOGIN}/access/remove-by-user-key", self._unlink_user),
            (CallName.ANON_VERIFY, "POST", "users/anon-key/verify", self._anon_verify),
            (CallName.IAP_STATUS, "POST", "order/get-order-status", self._order_status),
        ]

    @override
    def _subject(self, app_name: str, call: CallName, fields: dict[str, Any]) -> str | None:
        order_id = fields.get("orderId")
        return order_id if call is CallName.IAP_STATUS and isinstance(order_id, str) else None

    def _exchange(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        fields = json_object(request, body)
        code, referrer = text(fields, "authorizationCode"), text(fields, "referrer")
        return self._tokens(app_name, self._state.mini_apps.exchange(app_name, code, referrer))

    def _refresh(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        token = text(json_object(request, body), "refreshToken")
        return self._tokens(app_name, self._state.mini_apps.refresh(app_name, token))

    def _tokens(self, app_name: str, grant: Grant) -> PartnerAnswer:
        token = access_token(
            subject=grant.user,  # at Toss opaque
            audience=app_name,
            scopes=list(grant.scopes),
            issued_at=self._state.clock.now(),
            lifetime=ACCESS_SECONDS,
            key=self._token_key(),
        )
        self._state.mini_apps.remember_access(token, app_name, grant)
        payload: dict[str, Any] = {
            "tokenType": "Bearer",
            "accessToken": token,
            "refreshToken": grant.refresh_token,
            "expiresIn": self._number(ACCESS_SECONDS),
            "scope": " ".join(grant.scopes),
        }
        return self._success(payload, user_key=grant.user_key)

    def _me(self, app_name: str, request: Request, _body: bytes) -> PartnerAnswer:
        link = self._state.mini_apps.of_access_token(app_name, _bearer(request))
        user = self._state.mini_apps.user(link.user)
        if user is None:
            raise CallFailed("USER_NOT_FOUND", "the user has left Toss")
        app = self._state.mini_apps.app(app_name)
        switches = self._state.switches
        clear = {
            name: value
            for name, scope in _SCOPE_OF.items()
            if scope in link.consents and (value := getattr(user, name)) is not None
        }
        payload: dict[str, Any] = {
            "userKey": self._user_key(link.user_key),
            "scope": (", " if switches.scope_blanks else ",").join(scope_names(link)),
            "agreeTerms" if switches.agree_terms_spelling else "agreedTerms": list(app.agreed_terms),
            "di": None,
            **dict.fromkeys(_SCOPE_OF),
        }
        if switches.login_me_extras:
            payload |= {"policy": {}, "certTxId": None}
            if Scope.PHONE in link.consents:
                clear["callingCode"] = user.calling_code
        for name, value in clear.items():
            payload[name] = self._sealed(app, value, wrong_aad=name in switches.wrong_aad_fields)
        answer = self._success(payload, user_key=link.user_key)
        answer.app, answer.clear = app, clear
        return answer

    def _unlink_token(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        if body:
            json_object(request, body)
        link = self._state.mini_apps.of_access_token(app_name, _bearer(request))
        self._state.mini_apps.unlink(app_name, link.user_key)
        is_empty = self._state.switches.unlink_token_empty
        payload = {} if is_empty else {"userKey": self._user_key(link.user_key)}
        return self._success(payload, user_key=link.user_key)

    def _unlink_user(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        user_key = json_object(request, body).get("userKey")
        if type(user_key) is not int or not 0 <= user_key <= _LARGEST_USER_KEY:
            raise InvalidFields("userKey", "is no int64", user_key)
        if self._state.switches.unlink_user_needs_bearer:
            link = self._state.mini_apps.of_access_token(app_name, _bearer(request))
            if link.user_key != user_key:  # inferred
                raise InvalidGrant("the token is of another user")
        self._state.mini_apps.unlink(app_name, user_key)
        return self._success({"userKey": self._user_key(user_key)}, user_key=user_key)

    def _anon_verify(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        if body:
            json_object(request, body)
        key = request.headers.get("x-anon-key", "")
        if self._state.mini_apps.user_of_anon_key(app_name, key) is None:
            return self._anon_refused("this mini-app has no such key")
        answer = self._success({})
        answer.body[self._payload_key] = "true" if self._state.switches.anon_success_as_text else True
        answer.payload = None
        return answer

    def _order_status(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        order_id = text(json_object(request, body), "orderId")
        switches = self._state.switches
        is_named = "x-toss-user-key" in request.headers or switches.iap_user_header_required
        user = self._user(app_name, request) if is_named else None
        answer = self._state.iap.ask(app_name, order_id, user)
        payload: dict[str, Any] = {
            "orderId": order_id,
            "status": answer.status,
            "reason": _ORDER_REASONS[answer.status],
        }
        if (order := answer.order) is not None:
            write = korean_time if switches.iap_zone else iap_time
            payload |= {"sku": order.sku, "statusDeterminedAt": write(order.determined_at)}
        return self._success(payload)

    def _anon_refused(self, note: str) -> PartnerAnswer:
        return self._failed(self._state.switches.anon_failure_status, UNAUTHENTICATED, note)

    def _sealed(self, app: MiniApp, text: str, *, wrong_aad: bool = False, wrong_key: bool = False) -> str:
        use_second = (self._state.switches.decryption_key is DecryptionKey.SECOND) is not wrong_key
        key = app.second_decryption_key if use_second else app.decryption_key
        return seal_login_field(text, key=key, aad=f"not {app.aad}" if wrong_aad else app.aad)

    # Faults

    @override
    def _token_rejected(self, call: CallName) -> PartnerAnswer:
        match call:
            case CallName.ANON_VERIFY:
                return self._anon_refused("ordered")
            case CallName.IAP_STATUS:
                return super()._token_rejected(call)
            case _:
                return self._invalid_grant(call, "ordered")

    @override
    def _spoil_sealed(self, answer: PartnerAnswer, order: FaultOrder) -> None:
        for name, clear in answer.clear.items():
            if answer.payload is not None and order.field in (None, name):
                answer.payload[name] = self._spoilt(answer, clear, order.kind)

    def _spoilt(self, answer: PartnerAnswer, clear: str, kind: FaultKind) -> str:
        assert answer.app is not None
        match kind:
            case FaultKind.WRONG_AAD:
                return self._sealed(answer.app, clear, wrong_aad=True)
            case FaultKind.WRONG_KEY:
                return self._sealed(answer.app, clear, wrong_key=True)
            case _:
                return _damaged(self._sealed(answer.app, clear))


def _damaged(sealed: str) -> str:
    data = base64.b64decode(sealed)
    return base64.b64encode(data[:-1] + bytes([data[-1] ^ 1])).decode()  # the tag is the end of it


def _bearer(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind != "Bearer" or not token:
        raise InvalidGrant("no Authorization: Bearer header")
    return token
