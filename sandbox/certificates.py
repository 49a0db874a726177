"""The sandbox's TLS: a CA that is kept, so that a client may go on trusting it, and a server certificate."""

import ssl
from pathlib import Path

import trustme

from sandbox.crypto import write_secret


def server_tls(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The CA file a client must trust, and the server's context."""
    ca_file, key_file = folder / "tls-ca.pem", folder / "tls-ca.key"
    if ca_file.exists() and key_file.exists():
        ca = trustme.CA.from_pem(ca_file.read_bytes(), key_file.read_bytes())
    else:
        ca = trustme.CA(organization_name="Apps-in-Toss sandbox", organization_unit_name="TEST ONLY")
        write_secret(key_file, ca.private_key_pem.bytes())
        ca.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # reference 2: 1.2 or later only
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return ca_file, context
