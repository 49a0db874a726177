"""The sandbox's TLS: a CA that is kept, so that a client may go on trusting it, and a server certificate."""

import ssl
from pathlib import Path

import trustme

from sandbox.crypto import write_secret


class ServerTls:
    def __init__(self, folder: Path, name: str) -> None:
        self.ca_file = folder / "tls-ca.pem"
        """What a client must trust."""
        key_file = folder / "tls-ca.key"
        if self.ca_file.exists() and key_file.exists():
            ca = trustme.CA.from_pem(self.ca_file.read_bytes(), key_file.read_bytes())
        else:
            ca = trustme.CA(organization_name="Apps-in-Toss sandbox", organization_unit_name="TEST ONLY")
            write_secret(key_file, ca.private_key_pem.bytes())
            ca.cert_pem.write_to_path(self.ca_file)
        self._certificate = ca.issue_cert(*{"127.0.0.1", "localhost", name})

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # reference 2: 1.2 or later only
        self._certificate.configure_cert(context)
        return context
