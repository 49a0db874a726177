"""Access tokens: RS256 JWTs in the shape of Toss's samples (reference 3.1; for Toss login 6.2)."""

import base64
import json
import uuid
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa


def access_token(
    *,
    subject: str,
    audience: str,
    scopes: list[str],
    issued_at: datetime,
    lifetime: int,
    key: rsa.RSAPrivateKey,
) -> str:
    issued = int(issued_at.timestamp())
    claims = {
        "sub": subject,
        "aud": audience,
        "nbf": issued,
        "scope": scopes,
        "iss": "https://cert.toss.im",
        "exp": issued + lifetime,
        "iat": issued,
        "jti": str(uuid.uuid4()),
    }
    signed = f"{_part({'kid': 'cert', 'alg': 'RS256'})}.{_part(claims)}"
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{_base64url(signature)}"


def _part(value: dict[str, object]) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
