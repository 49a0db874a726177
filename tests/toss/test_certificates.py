"""Finding, repairing, checking and choosing pairs, and the keeper over pools that only pretend to connect."""

import asyncio
import base64
import codecs
import gc
import os
import ssl
import stat
import tempfile
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from app.toss.certificate_keeper import CertificateKeeper
from app.toss.certificates import (
    MAX_FILE_BYTES,
    CertificateSources,
    FaultKind,
    Found,
    Repair,
    expiry_mark,
    ssl_context,
)
from app.toss.errors import CertificateRefused, NotSent, OutcomeUnknown

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LOOK = timedelta(seconds=10)
RETRY = timedelta(seconds=60)
LONGEST_CALL = timedelta(seconds=30)


@dataclass(frozen=True)
class Pair:
    certificate: str
    key: str

    def write(self, folder: Path, name: str = "app") -> "Pair":
        (folder / f"{name}_public.crt").write_text(self.certificate)
        (folder / f"{name}_private.key").write_text(self.key)
        return self


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture(scope="session")
def issue(authority):
    def issued(start=-10, end=380, *, key_type=trustme.KeyType.ECDSA, ca=authority, chain=False) -> Pair:
        """Days from NOW."""
        leaf = ca.issue_cert(
            "client@mini.app",
            common_name="mini-app",
            not_before=NOW + start * DAY,
            not_after=NOW + end * DAY,
            key_type=key_type,
        )
        certificates = leaf.cert_chain_pems if chain else leaf.cert_chain_pems[:1]
        return Pair("".join(blob.bytes().decode() for blob in certificates), leaf.private_key_pem.bytes().decode())

    return issued


@pytest.fixture(scope="session")
def pair(issue):
    return issue()


@pytest.fixture(scope="session")
def rsa_pair(issue):
    return issue(key_type=trustme.KeyType.RSA)


def kinds(found: Found, now: datetime = NOW) -> list[FaultKind]:
    return [fault.kind for fault in found.faults_at(now)]


def fingerprint_of(pair: Pair) -> str:
    return x509.load_pem_x509_certificate(pair.certificate.encode()).fingerprint(hashes.SHA256()).hex()


def assert_no_key(text: str, *pairs: Pair) -> None:
    assert "PRIVATE KEY-----" not in text
    for pair in pairs:
        assert all(line not in text for line in pair.key.splitlines()[1:-1] if len(line) > 30)


def self_signed(key, *, algorithm) -> Pair:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mini-app")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY).sign(key, algorithm)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM).decode(), secret.decode())


# --- Repair -----------------------------------------------------------------------------------------------


def wrapped(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def without_end(text: str) -> str:
    return text[: text.rindex("-----END")]


def body_twice(text: str) -> str:
    lines = text.strip().splitlines()
    inner = base64.b64encode("".join(lines[1:-1]).encode()).decode()
    return "\n".join([lines[0], inner, lines[-1], ""])


DAMAGE = {
    "none": (lambda text: text, set()),
    "spaces around": (lambda text: f"\n  {text}\n\n", set()),
    "indented": (lambda text: text.replace("\n", "\n    "), set()),
    "text before": (lambda text: f"Bag Attributes\n  friendlyName: x\n{text}", set()),
    "escaped": (lambda text: text.replace("\n", "\\n"), {Repair.ESCAPED_LINE_ENDS}),
    "escaped twice": (lambda text: text.replace("\n", "\\\\n"), {Repair.ESCAPED_LINE_ENDS}),
    "escaped windows": (lambda text: text.replace("\n", "\\r\\n"), {Repair.ESCAPED_LINE_ENDS}),
    "quoted": (lambda text: f'"{text}"', {Repair.QUOTES}),
    "quoted, escaped": (
        lambda text: "'" + text.replace("\n", "\\n") + "'",
        {Repair.QUOTES, Repair.ESCAPED_LINE_ENDS},
    ),
    "base64": (wrapped, {Repair.BASE64_TWICE}),
    "base64 in lines": (lambda text: base64.encodebytes(text.encode()).decode(), {Repair.BASE64_TWICE}),
    "base64 three times": (lambda text: wrapped(wrapped(text)), {Repair.BASE64_TWICE}),
    "base64 of escaped": (
        lambda text: wrapped(text.replace("\n", "\\n")),
        {Repair.BASE64_TWICE, Repair.ESCAPED_LINE_ENDS},
    ),
    "base64 inside": (body_twice, {Repair.BASE64_TWICE}),
    "no end line": (without_end, {Repair.MISSING_END_LINE}),
    "half an end line": (lambda text: text.strip()[:-9], {Repair.MISSING_END_LINE}),
    "windows": (lambda text: text.replace("\n", "\r\n"), {Repair.LINE_ENDS}),
    "old mac": (lambda text: text.replace("\n", "\r"), {Repair.LINE_ENDS}),
    "byte order mark": (lambda text: "\ufeff" + text, {Repair.BYTE_ORDER_MARK}),
    "one line": (lambda text: text.replace("\n", " "), {Repair.LOST_LINE_ENDS}),
    "glued": (lambda text: text.replace("\n", ""), {Repair.LOST_LINE_ENDS}),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["pair", "rsa_pair"])
def test_damaged_texts_are_repaired_and_reported(damage, kind, request):
    pair = request.getfixturevalue(kind)
    spoil, repairs = DAMAGE[damage]
    sources = CertificateSources(texts=[(spoil(pair.certificate), spoil(pair.key))])
    found = sources.read()
    assert [one.fingerprint for one in found.pairs] == [fingerprint_of(pair)]
    assert kinds(found) == []
    for where in ("certificate text", "key text"):
        assert {note.repair for note in found.repairs if note.where == where} == repairs
    assert_no_key(repr(found) + repr(sources) + "".join(map(str, found.repairs)), pair)
    assert ssl_context(found.pairs[0], None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_from_a_windows_editor_is_repaired(pair, tmp_path, encoding):
    (tmp_path / "a.crt").write_text(pair.certificate.replace("\n", "\r\n"), encoding=encoding, newline="")
    (tmp_path / "a.key").write_bytes(codecs.BOM_UTF16_BE + pair.key.encode("utf-16-be"))
    found = CertificateSources(folder=tmp_path).read()
    assert len(found.pairs) == 1
    assert [(note.where, note.repair) for note in found.repairs] == [
        ("a.crt", Repair.BYTE_ORDER_MARK),
        ("a.crt", Repair.LINE_ENDS),
        ("a.key", Repair.BYTE_ORDER_MARK),
    ]


def test_swapped_texts_and_files_are_taken_as_they_were_meant(pair, tmp_path):
    found = CertificateSources(texts=[(pair.key, pair.certificate)]).read()
    assert len(found.pairs) == 1
    assert {note.repair for note in found.repairs} == {Repair.SWAPPED}
    Pair(pair.key, pair.certificate).write(tmp_path)
    files = [(tmp_path / "app_public.crt", tmp_path / "app_private.key")]
    for sources in (CertificateSources(folder=tmp_path), CertificateSources(files=files)):
        found = sources.read()
        assert (len(found.pairs), kinds(found)) == (1, [])
        assert {str(note) for note in found.repairs} == {
            "app_public.crt: certificate and key were swapped",
            "app_private.key: certificate and key were swapped",
        }


@pytest.mark.parametrize("empty", [None, ""])
def test_both_in_one_is_a_pair(pair, tmp_path, empty):
    together = pair.key + pair.certificate
    (tmp_path / "both.pem").write_text(together)
    path = tmp_path / "both.pem"
    for sources in (
        CertificateSources(texts=[(together, empty)]),
        CertificateSources(files=[(path, None), (path, path)]),
        CertificateSources(folder=tmp_path),
    ):
        found = sources.read()
        assert (len(found.pairs), found.faults, found.repairs) == (1, (), ())
    path.rename(tmp_path / "both.crt")
    assert [note.repair for note in CertificateSources(folder=tmp_path).read().repairs] == [Repair.TOGETHER]


def test_traditional_key_labels_are_read(rsa_pair, pair):
    for one, label in ((rsa_pair, "RSA PRIVATE KEY"), (pair, "EC PRIVATE KEY")):
        key = load_pem_private_key(one.key.encode(), None)
        old = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
        assert label in old
        parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        found = CertificateSources(texts=[(one.certificate, parameters + old)]).read()
        assert (len(found.pairs), found.repairs) == (1, ())


# --- Checks -----------------------------------------------------------------------------------------------


def faults_of(certificate: str, key: str | None) -> list[FaultKind]:
    found = CertificateSources(texts=[(certificate, key)]).read()
    assert len(found.pairs) == 0 or found.faults_at(NOW) != []
    text = repr(found) + "".join(map(str, found.faults))
    assert_no_key(text, Pair("", key or ""))
    return kinds(found)


def test_every_fault_has_a_kind(issue, pair, authority):
    other = issue()
    root = authority.cert_pem.bytes().decode()
    weak = self_signed(rsa.generate_private_key(65537, 1024), algorithm=hashes.SHA256())
    foreign = self_signed(ed25519.Ed25519PrivateKey.generate(), algorithm=None)
    locked = load_pem_private_key(pair.key.encode(), None)
    secret = BestAvailableEncryption(b"password")
    locked_key = locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret).decode()
    old_locked_key = locked.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, secret).decode()
    cut = pair.key.splitlines()
    cases = {
        "no key": ((pair.certificate, None), [FaultKind.MISSING_KEY]),
        "certificate twice": ((pair.certificate, pair.certificate), [FaultKind.MISSING_KEY]),
        "key twice": ((pair.key + " ", pair.key), [FaultKind.MISSING_CERTIFICATE]),
        "another's key": ((pair.certificate, other.key), [FaultKind.MISMATCH]),
        "expired": (tuple(vars(issue(-400, -1)).values()), [FaultKind.EXPIRED]),
        "not yet": (tuple(vars(issue(1, 400)).values()), [FaultKind.NOT_YET_VALID]),
        "authority": ((root, authority.private_key_pem.bytes().decode()), [FaultKind.IS_CA]),
        "authority's certificate": ((root, pair.key), [FaultKind.MISMATCH]),
        "weak": ((weak.certificate, weak.key), [FaultKind.UNSUPPORTED_KEY]),
        "ed25519": ((foreign.certificate, foreign.key), [FaultKind.UNSUPPORTED_KEY]),
        "locked": ((pair.certificate, locked_key), [FaultKind.UNREADABLE, FaultKind.MISSING_KEY]),
        "locked, old": ((pair.certificate, old_locked_key), [FaultKind.UNREADABLE, FaultKind.MISSING_KEY]),
        "cut": ((pair.certificate, "\n".join(cut[:2])), [FaultKind.UNREADABLE, FaultKind.MISSING_KEY]),
        "garbage": (("garbage", pair.key), [FaultKind.UNREADABLE, FaultKind.MISSING_CERTIFICATE]),
        "request": (
            (pair.certificate.replace("CERTIFICATE", "CERTIFICATE REQUEST"), pair.key),
            [FaultKind.UNREADABLE, FaultKind.MISSING_CERTIFICATE],
        ),
        "nothing": (("", None), [FaultKind.EMPTY]),
        "blanks": ((" \n", ""), [FaultKind.EMPTY]),
    }
    assert {name: faults_of(*texts) for name, (texts, _) in cases.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }


def test_a_fault_says_in_plain_words_where_and_what(issue, tmp_path):
    issue(-400, -1).write(tmp_path, "old")
    (found,) = CertificateSources(folder=tmp_path).read().faults_at(NOW)
    assert str(found) == "old_public.crt: the certificate has expired (on 2026-11-19)"


def test_a_pair_tells_what_a_log_may_show(issue):
    pair = issue(-10, 30)
    found = CertificateSources(texts=[(pair.certificate, pair.key)]).read().pairs[0]
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    assert found.subject == "mini-app"
    assert int(found.serial, 16) == certificate.serial_number
    assert found.fingerprint == fingerprint_of(pair)
    assert (found.not_before, found.not_after) == (NOW - 10 * DAY, NOW + 30 * DAY)
    assert found.days_left(NOW) == 30
    assert found.days_left(NOW + timedelta(seconds=1)) == 29
    assert found.days_left(NOW + 31 * DAY) == -1
    assert_no_key(repr(found) + str(found) + f"{found}", pair)
    assert "key" not in repr(found).lower()


@pytest.mark.parametrize(
    ("left", "mark"),
    [(31, None), (30, 30), (29, 30), (8, 30), (7, 7), (2, 7), (1, 1), (0.5, 1), (-3, 1)],
)
def test_the_end_is_announced_at_three_marks(pair, left, mark):
    found = CertificateSources(texts=[(pair.certificate, pair.key)]).read().pairs[0]
    assert expiry_mark(found, found.not_after - left * DAY) == mark


def test_a_chain_goes_with_its_certificate(authority, issue):
    middle = authority.create_child_ca()
    pair = issue(ca=middle, chain=True)
    assert pair.certificate.count("BEGIN") == 2
    root = authority.cert_pem.bytes().decode()
    for text in (pair.certificate + root, root + pair.certificate):
        (found,) = CertificateSources(texts=[(text, pair.key)]).read().pairs
        assert found.fingerprint == fingerprint_of(pair)
        assert found.chain_pem.count(b"BEGIN") == 3
        assert found.chain_pem.startswith(pair.certificate[:200].encode())


# --- The folder -------------------------------------------------------------------------------------------


def test_pairs_are_matched_by_key_and_not_by_name(issue, tmp_path):
    first, second = issue(-10), issue(-5)
    Pair(first.certificate, second.key).write(tmp_path, "a")
    Pair(second.certificate, first.key).write(tmp_path, "b")
    found = CertificateSources(folder=tmp_path).read()
    assert {one.fingerprint for one in found.pairs} == {fingerprint_of(first), fingerprint_of(second)}
    assert kinds(found) == []


def test_a_pair_that_lies_in_two_places_is_one(pair, tmp_path):
    pair.write(tmp_path, "a")
    pair.write(tmp_path, "b")
    sources = CertificateSources(folder=tmp_path, texts=[(pair.certificate, pair.key)])
    assert len(sources.read().pairs) == 1


def test_what_does_not_belong_in_the_folder_is_passed_over(pair, authority, tmp_path):
    pair.write(tmp_path)
    (tmp_path / ".hidden.key").write_text("garbage")
    (tmp_path / "README").write_text("Keep out")
    (tmp_path / "console.zip").write_bytes(b"PK\x03\x04\xff\xfe")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub.crt").mkdir()
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())  # beside tls.crt in secrets of cert-manager
    found = CertificateSources(folder=tmp_path).read()
    assert (len(found.pairs), found.faults, found.repairs) == (1, (), ())


def test_files_that_cannot_be_read_are_faults_and_hide_no_others(pair, tmp_path):
    pair.write(tmp_path)
    os.mkfifo(tmp_path / "pipe.key")
    (tmp_path / "gone.crt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "large.pem").write_bytes(b"-" * (MAX_FILE_BYTES + 1))
    (tmp_path / "empty.pem").write_bytes(b"")
    (tmp_path / "noise.key").write_bytes(bytes(range(256)))
    found = CertificateSources(folder=tmp_path).read()
    assert len(found.pairs) == 1
    assert {fault.where: fault.kind for fault in found.faults} == {
        "pipe.key": FaultKind.UNREADABLE,
        "gone.crt": FaultKind.UNREADABLE,
        "large.pem": FaultKind.UNREADABLE,
        "empty.pem": FaultKind.EMPTY,
        "noise.key": FaultKind.UNREADABLE,
    }


def test_an_empty_or_missing_folder_is_a_fault(tmp_path):
    assert kinds(CertificateSources(folder=tmp_path).read()) == [FaultKind.EMPTY]
    missing = CertificateSources(folder=tmp_path / "nowhere", files=[(tmp_path / "no.crt", tmp_path / "no.key")])
    assert kinds(missing.read()) == [FaultKind.UNREADABLE] * 3
    assert missing.stamp() == missing.stamp()
    assert not CertificateSources().is_configured
    assert missing.is_configured


def test_the_stamp_changes_with_anything_that_matters(issue, tmp_path):
    pair = issue().write(tmp_path)
    sources = CertificateSources(folder=tmp_path, files=[(tmp_path / "app_public.crt", None)])
    seen = [sources.stamp()]
    assert sources.stamp() == seen[0]

    def is_new() -> bool:
        seen.append(sources.stamp())
        return seen[-1] not in seen[:-1]

    key = tmp_path / "app_private.key"
    key.write_text(pair.key + "\n")
    assert is_new()  # the size
    os.utime(key, ns=(1, 1))
    assert is_new()  # the time
    replacement = tmp_path / ".new"
    replacement.write_text(pair.key + "\n")
    os.utime(replacement, ns=(1, 1))
    replacement.rename(key)
    assert is_new()  # the inode
    key.unlink()
    assert is_new()


class Volume:
    """A folder as Kubernetes mounts a secret: names link into `..data`, which links to the current version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version = 0

    def publish(self, pair: Pair) -> None:
        self._version += 1
        version = self.folder / f"..2026_11_20.{self._version}"
        version.mkdir()
        pair.write(version, "app")
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self.folder / "..data")
        for name in ("app_public.crt", "app_private.key"):
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")


def test_a_swapped_link_is_noticed(issue, tmp_path):
    volume, sources = Volume(tmp_path), CertificateSources(folder=tmp_path)
    first, second = issue(-10), issue(-5)
    volume.publish(first)
    before = sources.stamp()
    assert [one.fingerprint for one in sources.read().pairs] == [fingerprint_of(first)]
    volume.publish(second)
    assert sources.stamp() != before
    assert [one.fingerprint for one in sources.read().pairs] == [fingerprint_of(second)]
    assert kinds(sources.read()) == []


def test_the_newest_pair_in_force_comes_first(issue):
    pairs = {
        "long": issue(-10, 400),
        "short": issue(-10, 300),
        "newer": issue(-5, 100),
        "future": issue(5, 400),
        "expired": issue(-1, -0.5),
    }
    names = {fingerprint_of(pair): name for name, pair in pairs.items()}
    found = CertificateSources(texts=[(pair.certificate, pair.key) for pair in pairs.values()]).read()

    def order(now: datetime) -> list[str]:
        return [names[one.fingerprint] for one in found.usable(now)]

    assert order(NOW) == ["newer", "long", "short"]
    assert order(NOW + 5 * DAY) == ["future", "newer", "long", "short"]
    assert order(NOW + 350 * DAY) == ["future", "long"]
    assert order(NOW + 999 * DAY) == []


# --- The TLS context --------------------------------------------------------------------------------------


def checked(pair: Pair):
    (found,) = CertificateSources(texts=[(pair.certificate, pair.key)]).read().pairs
    return found


def test_a_context_is_made_and_leaves_no_file(pair, rsa_pair, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for one in (pair, rsa_pair):
        context = ssl_context(checked(one), None)
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_anonymous_memory_the_file_is_locked_private_and_short_lived(pair, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    load = ssl.SSLContext.load_cert_chain

    def watched(self, certfile, keyfile=None, password=None):
        seen.append((stat.S_IMODE(Path(certfile).stat().st_mode), Path(certfile).read_text()))
        load(self, certfile, keyfile, password)
        if len(seen) == 2:
            raise ssl.SSLError("as if OpenSSL did not like it")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    ssl_context(checked(pair), None)
    with pytest.raises(ssl.SSLError):
        ssl_context(checked(pair), None)
    assert [mode for mode, _ in seen] == [0o600] * 2
    for _, content in seen:
        assert "BEGIN ENCRYPTED PRIVATE KEY" in content
        assert all(line not in content for line in pair.key.splitlines()[1:-1])
    assert list(tmp_path.iterdir()) == []


def test_a_bad_authority_file_is_an_error_of_the_system(tmp_path):
    (tmp_path / "ca.pem").write_text("garbage")
    for name in ("ca.pem", "nowhere.pem"):
        with pytest.raises(OSError, match=r"."):
            ssl_context(None, tmp_path / name)


# --- The keeper -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class FakePool:
    fingerprint: str
    world: "World"
    proofs: int = 0
    is_closed: bool = False

    async def prove(self) -> None:
        self.proofs += 1
        self.world.proving.set()
        await self.world.gate.wait()
        fault = self.world.faults.get(self.fingerprint)
        if fault is not None:
            raise fault

    async def aclose(self) -> None:
        assert not self.is_closed
        self.is_closed = True
        self.world.closing.set()
        await self.world.exit.wait()


@dataclass
class World:
    """A folder, two clocks, and an other side that takes or refuses certificates."""

    folder: Path
    now: datetime = NOW
    seconds: float = 1000.0
    faults: dict[str, Exception] = field(default_factory=dict)
    pools: list[FakePool] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Proofs pass only while it is open."""
    proving: asyncio.Event = field(default_factory=asyncio.Event)
    exit: asyncio.Event = field(default_factory=asyncio.Event)
    """Pools are closed only while it is open."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    errors_on_open: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self.exit.set()
        self.keeper = CertificateKeeper(
            sources=CertificateSources(folder=self.folder),
            open_pool=self.open,
            clock=lambda: self.now,
            monotonic=lambda: self.seconds,
            look_every=LOOK,
            retry_every=RETRY,
            longest_call=LONGEST_CALL,
        )

    async def open(self, certificate) -> FakePool:
        if self.errors_on_open:
            raise self.errors_on_open.pop()
        pool = FakePool(certificate.fingerprint, self)
        self.pools.append(pool)
        return pool

    def refuse(self, pair: Pair, fault: Exception | None = None) -> None:
        self.faults[fingerprint_of(pair)] = fault or CertificateRefused("REVOKED")

    def accept(self, pair: Pair) -> None:
        del self.faults[fingerprint_of(pair)]

    @property
    def in_use(self) -> str | None:
        return self.keeper.certificate and self.keeper.certificate.fingerprint

    @property
    def alarm(self) -> FaultKind | None:
        return self.keeper.alarm and self.keeper.alarm.kind

    async def look(self, *, after: timedelta = LOOK) -> None:
        self.seconds += after.total_seconds()
        await self.keeper.look()


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    yield world
    await world.keeper.aclose()
    assert all(pool.is_closed for pool in world.pools)


async def test_without_a_pair_there_is_nothing_to_send_with(world):
    with pytest.raises(NotSent, match="no usable client certificate") as caught:
        async with world.keeper.lease():
            raise AssertionError
    assert caught.value.is_tls
    assert (world.in_use, world.alarm) == (None, FaultKind.EMPTY)


async def test_the_first_lease_waits_for_the_first_look_and_a_lone_pair_needs_no_proof(world, pair):
    pair.write(world.folder)
    async with world.keeper.lease() as lease:
        assert lease.certificate.fingerprint == fingerprint_of(pair)
    assert [pool.proofs for pool in world.pools] == [0]
    assert world.alarm is None


async def test_files_are_looked_at_only_when_it_is_time_and_nobody_waits(world, issue):
    old = issue(-10).write(world.folder, "old")
    await world.look()
    new = issue(-5).write(world.folder, "new")
    world.gate.clear()
    for step in (0.0, 9.9):
        world.seconds += step
        async with world.keeper.lease() as lease:
            assert lease.certificate.fingerprint == fingerprint_of(old)
    assert len(world.pools) == 1
    world.seconds += 0.1
    async with world.keeper.lease() as lease:  # begins the look, and does not wait for its proof
        assert lease.certificate.fingerprint == fingerprint_of(old)
    world.gate.set()
    await world.look()
    assert world.in_use == fingerprint_of(new)
    assert [(pool.proofs, pool.is_closed) for pool in world.pools] == [(0, True), (1, False)]


async def test_many_callers_share_one_look_and_one_proof(world, issue):
    issue(-10).write(world.folder, "old")

    async def lease() -> str:
        async with world.keeper.lease() as lease:
            await asyncio.sleep(0)
            return lease.certificate.fingerprint

    assert len(set(await asyncio.gather(*(lease() for _ in range(50))))) == 1
    assert len(world.pools) == 1
    new = issue(-5).write(world.folder, "new")
    world.gate.clear()
    world.seconds += 10
    calls = [asyncio.create_task(lease()) for _ in range(50)]
    await asyncio.gather(*calls)
    world.gate.set()
    await world.keeper.look()
    assert (world.in_use, len(world.pools), world.pools[1].proofs) == (fingerprint_of(new), 2, 1)


@pytest.mark.parametrize("fault", [CertificateRefused("REVOKED"), OutcomeUnknown("ReadError"), NotSent("refused")])
async def test_a_pair_that_is_not_proved_changes_nothing_but_the_alarm(world, issue, fault):
    old = issue(-10).write(world.folder, "old")
    await world.look()
    new = issue(-5).write(world.folder, "new")
    world.refuse(new, fault)
    await world.look()
    kind = FaultKind.REFUSED if isinstance(fault, CertificateRefused) else FaultKind.UNPROVED
    assert (world.in_use, world.alarm) == (fingerprint_of(old), kind)
    assert world.keeper.alarm.since == NOW
    assert "new_public.crt" in world.keeper.alarm.what
    assert [pool.is_closed for pool in world.pools] == [False, True]
    world.now += DAY
    await world.look()
    assert world.pools[1].proofs == 1
    assert len(world.pools) == 2  # not asked again at every look
    assert world.keeper.alarm.since == NOW
    world.accept(new)
    await world.look(after=RETRY)
    assert (world.in_use, world.alarm) == (fingerprint_of(new), None)


async def test_a_pair_that_failed_is_tried_at_once_when_the_files_change(world, issue):
    issue(-10).write(world.folder, "old")
    await world.look()
    new = issue(-5).write(world.folder, "new")
    world.refuse(new)
    await world.look()
    world.accept(new)
    new.write(world.folder, "again")
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(new), None)


async def test_a_pair_that_openssl_does_not_take_changes_nothing(world, issue):
    old = issue(-10).write(world.folder, "old")
    await world.look()
    issue(-5).write(world.folder, "new")
    world.errors_on_open = [ssl.SSLError("ee key too small")]
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(old), FaultKind.UNREADABLE)


async def test_a_fault_nobody_thought_of_leaves_the_pair_in_use(world, issue):
    old = issue(-10).write(world.folder, "old")
    await world.look()
    issue(-5).write(world.folder, "new")
    world.errors_on_open = [ZeroDivisionError("the-message")]
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(old), FaultKind.UNREADABLE)
    assert "ZeroDivisionError" in world.keeper.alarm.what
    assert "the-message" not in world.keeper.alarm.what


async def test_bad_files_set_the_alarm_and_their_removal_clears_it(world, issue, authority):
    good = issue(-10).write(world.folder, "good")
    await world.look()
    root = authority.cert_pem.bytes().decode(), authority.private_key_pem.bytes().decode()
    bad = {
        FaultKind.MISMATCH: (issue(-1).certificate, issue(-1).key),
        FaultKind.EXPIRED: tuple(vars(issue(-9, -1)).values()),
        FaultKind.NOT_YET_VALID: tuple(vars(issue(9, 99)).values()),
        FaultKind.IS_CA: root,
        FaultKind.UNREADABLE: ("garbage", "garbage"),
        FaultKind.EMPTY: ("", ""),
    }
    for kind, texts in bad.items():
        Pair(*texts).write(world.folder, "bad")
        await world.look()
        assert (world.in_use, world.alarm) == (fingerprint_of(good), kind)
        for file in world.folder.glob("bad*"):
            file.unlink()
        await world.look()
        assert (world.in_use, world.alarm) == (fingerprint_of(good), None)
    assert len(world.pools) == 1


async def test_when_everything_goes_the_pair_in_use_stays(world, pair):
    pair.write(world.folder)
    await world.look()
    for file in world.folder.iterdir():
        file.unlink()
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(pair), FaultKind.EMPTY)
    world.folder.rmdir()
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(pair), FaultKind.UNREADABLE)
    world.folder.mkdir()


async def test_a_pair_takes_over_on_the_day_it_becomes_valid(world, issue):
    old = issue(-10, 20).write(world.folder, "old")
    new = issue(5, 400).write(world.folder, "new")
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(old), FaultKind.NOT_YET_VALID)
    world.now += 5 * DAY
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(new), None)


async def test_an_expired_pair_is_used_on_when_there_is_no_other(world, issue):
    pair = issue(-10, 1).write(world.folder)
    await world.look()
    world.now += 2 * DAY
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(pair), FaultKind.EXPIRED)


def announced(caplog) -> list[tuple]:
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    events = [event for event in said if event["event"] == "client_certificate_expires_soon"]
    return [(event["level"], event["days_left"], event["where"]) for event in events]


async def test_the_end_is_announced_once_at_each_mark(world, issue, caplog):
    issue(-10, 40).write(world.folder)
    seen = []
    for days in (31, 30, 29.5, 8, 7, 6, 2, 1, 0.5):
        world.now = NOW + (40 - days) * DAY
        await world.look()
        await world.look()
        seen.append(len(announced(caplog)))
    assert seen == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    where = world.keeper.certificate.where
    assert announced(caplog) == [("warning", 30, where), ("warning", 7, where), ("error", 1, where)]
    world.now = NOW + 41 * DAY
    await world.look()
    assert (world.alarm, len(announced(caplog))) == (FaultKind.EXPIRED, 3)


async def test_an_end_that_has_come_already_is_the_alarms_affair_alone(world, issue, caplog):
    issue(-10, 40).write(world.folder)
    await world.look()
    world.now = NOW + 41 * DAY
    await world.look()
    assert (world.alarm, announced(caplog)) == (FaultKind.EXPIRED, [])


async def test_another_pairs_end_is_announced_for_itself_and_none_twice(world, issue, caplog):
    first = issue(-10, 20).write(world.folder, "first")
    await world.look()
    second = issue(-5, 6).write(world.folder, "second")
    await world.look()
    assert world.in_use == fingerprint_of(second)
    (world.folder / "second_public.crt").unlink()
    (world.folder / "second_private.key").unlink()
    await world.look()
    second.write(world.folder, "second")
    await world.look()
    assert world.in_use in {fingerprint_of(first), fingerprint_of(second)}
    assert [(level, days) for level, days, _ in announced(caplog)] == [("warning", 20), ("warning", 6)]


async def test_at_the_start_the_newest_pair_that_proves_itself_is_used(world, issue):
    old, middle, new = (issue(day).write(world.folder, f"pair{-day}") for day in (-10, -5, -1))
    world.refuse(new)
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(middle), FaultKind.REFUSED)
    assert fingerprint_of(old) not in {pool.fingerprint for pool in world.pools}


async def test_at_the_start_the_newest_pair_is_used_when_none_can_be_proved(world, issue):
    old, new = issue(-10).write(world.folder, "old"), issue(-5).write(world.folder, "new")
    for pair in (old, new):
        world.refuse(pair, NotSent("unreachable"))
    await world.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(new), FaultKind.UNPROVED)
    world.faults.clear()
    await world.look(after=RETRY)
    assert (world.in_use, world.alarm) == (fingerprint_of(new), None)


async def test_a_refused_pair_is_replaced_once_however_many_were_refused(world, issue):
    old, new = issue(-10).write(world.folder, "old"), issue(-5).write(world.folder, "new")
    await world.look()
    refused = world.keeper.certificate
    assert refused.fingerprint == fingerprint_of(new)
    world.refuse(new)
    assert set(await asyncio.gather(*(world.keeper.replace(refused) for _ in range(50)))) == {True}
    assert (world.in_use, world.alarm) == (fingerprint_of(old), FaultKind.REFUSED)
    assert [pool.proofs for pool in world.pools] == [1, 1]
    assert await world.keeper.replace(refused)  # a late one
    assert len(world.pools) == 2
    world.refuse(old)
    assert not await world.keeper.replace(world.keeper.certificate)
    assert world.in_use == fingerprint_of(old)
    assert len(world.pools) == 2  # the other was refused a moment ago
    world.faults.clear()
    await world.look(after=RETRY)
    assert (world.in_use, world.alarm) == (fingerprint_of(new), None)


async def test_a_lone_refused_pair_stays_and_is_tried_again_later(world, pair):
    pair.write(world.folder)
    await world.look()
    world.refuse(pair)
    certificate = world.keeper.certificate
    assert set(await asyncio.gather(*(world.keeper.replace(certificate) for _ in range(9)))) == {False}
    assert (world.in_use, world.alarm) == (fingerprint_of(pair), FaultKind.REFUSED)
    await world.look(after=RETRY)
    assert world.alarm is FaultKind.REFUSED
    world.accept(pair)
    await world.look(after=RETRY)
    assert (world.in_use, world.alarm) == (fingerprint_of(pair), None)


async def test_a_refusal_during_a_look_is_not_missed(world, issue):
    issue(-10).write(world.folder, "old")
    await world.look()
    refused = world.keeper.certificate
    new = issue(-5).write(world.folder, "new")
    world.gate.clear()
    looking = asyncio.create_task(world.look())
    await world.proving.wait()
    replacing = asyncio.create_task(world.keeper.replace(refused))
    await asyncio.sleep(0)
    world.gate.set()
    assert await replacing
    await looking
    assert (world.in_use, world.alarm) == (fingerprint_of(new), None)


async def test_a_refusal_at_the_end_of_a_look_is_not_missed_either(world, issue):
    old = issue(-10).write(world.folder, "old")
    await world.look()
    new = issue(-5).write(world.folder, "new")
    world.exit.clear()
    looking = asyncio.create_task(world.look())
    await world.closing.wait()  # the look has chosen, and closes what it has replaced
    assert world.in_use == fingerprint_of(new)
    world.refuse(new)
    replacing = asyncio.create_task(world.keeper.replace(world.keeper.certificate))
    await asyncio.sleep(0)
    world.exit.set()
    assert await replacing
    await looking
    assert (world.in_use, world.alarm) == (fingerprint_of(old), FaultKind.REFUSED)


async def test_a_doubted_pair_proves_itself_again_but_not_more_often_than_that(world, issue):
    old, new = issue(-10).write(world.folder, "old"), issue(-5).write(world.folder, "new")
    await world.look()
    for _ in range(20):
        world.keeper.doubt()
    await world.look(after=timedelta(0))
    assert [(pool.proofs, pool.is_closed) for pool in world.pools] == [(1, True), (1, False)]
    world.refuse(new, OutcomeUnknown("ReadError"))
    world.keeper.doubt()
    await world.look(after=timedelta(0))
    assert world.in_use == fingerprint_of(new)  # too soon
    world.seconds += RETRY.total_seconds()
    world.keeper.doubt()
    await world.keeper.look()
    assert (world.in_use, world.alarm) == (fingerprint_of(old), FaultKind.UNPROVED)


async def test_a_pool_is_closed_when_its_last_user_has_gone_or_has_stayed_too_long(world, issue):
    issue(-10).write(world.folder, "first")
    await world.look()
    async with world.keeper.lease() as first:
        issue(-5).write(world.folder, "second")
        await world.look()
        assert not first.pool.is_closed
        async with world.keeper.lease() as second:
            issue(-1).write(world.folder, "third")
            await world.look()
            assert not second.pool.is_closed
        assert second.pool.is_closed
        await world.look()
        assert not first.pool.is_closed
        await world.look()
        assert first.pool.is_closed  # its call has taken longer than any can
    assert [pool.is_closed for pool in world.pools] == [True, True, False]


async def test_closing_in_the_middle_of_a_proof_leaves_nothing_open(tmp_path, issue):
    world = World(tmp_path)
    issue(-10).write(tmp_path, "old")
    await world.look()
    issue(-5).write(tmp_path, "new")
    world.gate.clear()
    waiting = asyncio.create_task(world.look())
    await world.proving.wait()
    await world.keeper.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [pool.is_closed for pool in world.pools] == [True, True]


async def test_nothing_that_is_logged_or_shown_holds_a_key(world, issue, caplog, capsys):
    pairs = [issue(-10).write(world.folder, "good"), issue(-5).write(world.folder, "refused")]
    pairs += [issue(-400, -1).write(world.folder, "expired"), issue()]
    Pair(pairs[0].certificate, pairs[3].key).write(world.folder, "mixed")
    (world.folder / "cut.key").write_text("\n".join(pairs[0].key.splitlines()[:3]))
    (world.folder / "escaped.key").write_text(pairs[0].key.replace("\n", "\\n"))
    world.refuse(pairs[1])
    await world.look()
    keeper = world.keeper
    shown = repr(
        [keeper.__dict__, keeper.alarm, keeper.faults, keeper.repairs, keeper.certificate, keeper._current]
    )
    with pytest.raises(NotSent) as caught:
        raise world.faults[fingerprint_of(pairs[1])]
    shown += "".join(traceback.format_exception(caught.value))
    output = capsys.readouterr()
    logged = caplog.text + output.out + output.err
    assert "client_certificate_in_use" in logged
    assert "client_certificate_alarm" in logged
    assert "client_certificate_repaired" in logged
    assert_no_key(shown + logged, *pairs)
    gc.collect()
