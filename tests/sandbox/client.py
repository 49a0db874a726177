"""A little Toss Cert client, written from the reference alone, to test the fake with."""

import base64
import os
import ssl
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sandbox.server import SandboxServer

OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA1()), algorithm=hashes.SHA1(), label=None)
PATH = "/api/v2/sign/user/auth/id"


@dataclass
class ClientSession:
    public_key: str
    version: str = "v1"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    key: bytes = field(default_factory=lambda: os.urandom(32))
    iv: bytes = field(default_factory=lambda: os.urandom(12))

    def text(self) -> str:
        return f"AES_GCM${base64.b64encode(self.key).decode()}${base64.b64encode(self.iv).decode()}"

    def session_key(self, text: str | None = None) -> str:
        rsa = load_der_public_key(base64.b64decode(self.public_key))
        wrapped = rsa.encrypt((text or self.text()).encode(), OAEP)
        return f"{self.version}${self.id}${base64.b64encode(wrapped).decode()}"

    def seal(self, text: str) -> str:
        sealed = AESGCM(self.key).encrypt(self.iv, text.encode(), self.key)
        return f"{self.version}${self.id}${base64.b64encode(sealed).decode()}"

    def open(self, envelope: str) -> str:
        version, session_id, sealed = envelope.split("$")
        assert (version, session_id) == (self.version, self.id)
        return AESGCM(self.key).decrypt(self.iv, base64.b64decode(sealed, validate=True), self.key).decode()


class CertClient:
    """Calls the fake as a partner's server would. Each method returns the raw response."""

    def __init__(self, sandbox: SandboxServer, *, tls: ssl.SSLContext | None = None) -> None:
        self.sandbox = sandbox
        context = tls or ssl.create_default_context(cafile=str(sandbox.ca_file))
        self.http = httpx2.Client(base_url=sandbox.toss_url, verify=context, trust_env=False, timeout=10)
        self.credentials = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        self.access_token: str | None = None

    def session(self, **parts: Any) -> ClientSession:
        return ClientSession(self.sandbox.public_key, **parts)

    def token(self, **form: str) -> httpx2.Response:
        usual = {"grant_type": "client_credentials", "scope": "ca", **self.credentials}
        return self.http.post("/token", data=usual | form)

    def post(self, call: str, body: Any, *, path: str = PATH, **headers: str) -> httpx2.Response:
        if self.access_token is None:
            self.access_token = self.token().json()["access_token"]
        headers = {"Authorization": f"Bearer {self.access_token}"} | headers
        return self.http.post(f"{path}/{call}", json=body, headers=headers)

    def request(self, **fields: Any) -> httpx2.Response:
        return self.post("request", {"requestType": "USER_NONE", "requestUrl": "intoss://app"} | fields)

    def personal(self, session: ClientSession | None = None, **fields: Any) -> dict[str, Any]:
        session = session or self.session()
        return {
            "requestType": "USER_PERSONAL",
            "requestUrl": "intoss://app",
            "triggerType": "APP_SCHEME",
            "userName": session.seal("홍길동"),
            "userPhone": session.seal("01012345678"),
            "userBirthday": session.seal("19900101"),
            "sessionKey": session.session_key(),
        } | fields

    def status(self, tx_id: str) -> httpx2.Response:
        return self.post("status", {"txId": tx_id})

    def result(self, tx_id: str, session: ClientSession | None = None) -> httpx2.Response:
        session = session or self.session()
        return self.post("result", {"txId": tx_id, "sessionKey": session.session_key()})

    def started(self, **fields: Any) -> str:
        return self.request(**fields).json()["success"]["txId"]

    def approved(self, persona: str | None = None) -> str:
        tx_id = self.started()
        self.sandbox.state.approve(tx_id, persona)
        return tx_id


def code(response: httpx2.Response) -> tuple[int, str]:
    body = response.json()
    assert body["resultType"] == "FAIL"
    assert body["success"] is None
    error = body["error"]
    assert set(error) == {"errorType", "errorCode", "reason", "data", "title"}
    assert (error["errorType"], error["data"], error["title"]) == (0, {}, None)
    return response.status_code, error["errorCode"]
