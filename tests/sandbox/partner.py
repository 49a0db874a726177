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
