"""A little partner's server for the API behind mTLS, written from the reference alone, to test the fake with."""

import base64
import ssl
from typing import Any

import httpx2
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sandbox.client_certificates import ClientCertificate
from sandbox.server import SandboxServer

PREFIX = "/api-partner/v1/apps-in-toss"
LOGIN = f"{PREFIX}/user/oauth2"
ENCRYPTED = {"name", "phone", "birthday", "ci", "gender", "nationality", "email"}


def partner_tls(sandbox: SandboxServer, pair: ClientCertificate | None, folder) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(sandbox.ca_file))
    if pair is not None:
        context.load_cert_chain(*pair.write(folder, f"pair-{pair.serial}"))
    return context


class PartnerClient:
    """Each method returns the raw response."""

    def __init__(self, sandbox: SandboxServer, tls: ssl.SSLContext) -> None:
        self.sandbox = sandbox
        self.http = httpx2.Client(base_url=sandbox.partner_url, verify=tls, trust_env=False, timeout=10)

    def exchange(self, code: str, referrer: str = "DEFAULT") -> httpx2.Response:
        body = {"authorizationCode": code, "referrer": referrer}
        return self.http.post(f"{LOGIN}/generate-token", json=body)

    def refresh(self, token: str) -> httpx2.Response:
        return self.http.post(f"{LOGIN}/refresh-token", json={"refreshToken": token})

    def me(self, token: str) -> httpx2.Response:
        return self.http.get(f"{LOGIN}/login-me", headers={"Authorization": f"Bearer {token}"})

    def unlink_token(self, token: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return self.http.post(f"{LOGIN}/access/remove-by-access-token", json={}, headers=headers)

    def unlink_user(self, user_key: Any, token: str | None = None) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self.http.post(f"{LOGIN}/access/remove-by-user-key", json={"userKey": user_key}, headers=headers)

    def anon(self, key: str) -> httpx2.Response:
        return self.http.post(f"{PREFIX}/users/anon-key/verify", headers={"x-anon-key": key})

    def code(self, user: str = "man", **how: Any) -> str:
        return self.sandbox.state.mini_apps.log_in(user, **how).authorization_code

    def tokens(self, user: str = "man", **how: Any) -> dict[str, Any]:
        return success(self.exchange(self.code(user, **how)))

    def opened(self, answer: dict[str, Any], *, key: str | None = None) -> dict[str, str]:
        return {
            name: open_field(answer[name], key or self.sandbox.decryption_key)
            for name in sorted(ENCRYPTED)
            if answer[name] is not None
        }


class PayClient:
    """Toss Pay and the status of in-app orders, for one user. Each method returns the raw response."""

    def __init__(self, partner: PartnerClient, tls: ssl.SSLContext) -> None:
        self.sandbox = partner.sandbox
        self.partner = partner
        self.http = httpx2.Client(base_url=self.sandbox.pay_url, verify=tls, trust_env=False, timeout=10)
        self.headers: dict[str, str] = {}
        self.log_in("man")

    def log_in(self, user: str) -> None:
        self.partner.tokens(user)
        self.headers = {"x-toss-user-key": str(self.sandbox.state.mini_apps.user_key(user))}

    def post(self, call: str, body: Any, **headers: str) -> httpx2.Response:
        return self.http.post(f"{PREFIX}/pay/{call}", json=body, headers=headers or self.headers)

    def make(self, order_no: str = "order-1", **fields: Any) -> httpx2.Response:
        usual = {"orderNo": order_no, "productDesc": "아메리카노 1잔", "amount": 4500, "amountTaxFree": 0}
        return self.post("make-payment", {**usual, "isTestPayment": True, **fields})

    def made(self, order_no: str = "order-1", **fields: Any) -> str:
        return success(self.make(order_no, **fields))["payToken"]

    def approved(self, order_no: str = "order-1", **fields: Any) -> str:
        token = self.made(order_no, **fields)
        self.sandbox.state.pay.authenticate(token)
        return token

    def paid(self, order_no: str = "order-1", **fields: Any) -> str:
        token = self.approved(order_no, **fields)
        success(self.execute(token))
        return token

    def execute(self, token: str, **fields: Any) -> httpx2.Response:
        return self.post("execute-payment", {"payToken": token, "isTestPayment": True, **fields})

    def refund(self, token: str, **fields: Any) -> httpx2.Response:
        body = {"payToken": token, "reason": "단순변심", "isTestPayment": True, **fields}
        return self.post("refund-payment", body)

    def status(self, **fields: Any) -> httpx2.Response:
        return self.post("get-payment-status", {"isTestPayment": True, **fields})

    def create_key(self) -> httpx2.Response:
        return self.post("create-billing-key", {"productDesc": "월 구독", "isTestPayment": True})

    def active_key(self) -> str:
        token = success(self.create_key())["wrappedToken"]
        self.sandbox.state.billing.authenticate(token)
        return token

    def charge(self, key: str, order_no: str = "charge-1", **fields: Any) -> httpx2.Response:
        usual = {"wrappedToken": key, "orderNo": order_no, "productDesc": "월 구독", "amount": 9900}
        return self.post("execute-billing", usual | fields)

    def key_status(self, key: str) -> httpx2.Response:
        return self.post("get-billing-key-status", {"wrappedToken": key})

    def remove_key(self, key: str) -> httpx2.Response:
        return self.post("remove-billing-key", {"wrappedToken": key})

    def order(self, order_id: str, **headers: str) -> httpx2.Response:
        path = f"{PREFIX}/order/get-order-status"
        return self.partner.http.post(path, json={"orderId": order_id}, headers=headers)


def open_field(text: str, key: str, aad: str = "TOSS") -> str:
    data = base64.b64decode(text, validate=True)
    return AESGCM(base64.b64decode(key)).decrypt(data[:12], data[12:], aad.encode()).decode()


def success(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"resultType", "success"}
    assert body["resultType"] == "SUCCESS"
    return body["success"]


def failure(response: httpx2.Response) -> tuple[int, str]:
    body = response.json()
    assert (body["resultType"], body["success"]) == ("FAIL", None)
    assert set(body["error"]) == {"errorType", "errorCode", "reason", "data", "title"}
    return response.status_code, body["error"]["errorCode"]


def bare(response: httpx2.Response) -> tuple[int, dict[str, str]]:
    return response.status_code, response.json()
