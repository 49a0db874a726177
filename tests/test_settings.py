"""What the environment may say, and what production refuses (G14), always without a value."""

import base64
import hashlib
import json
import os
import traceback
from datetime import UTC, datetime, timedelta

import pytest

from app.main import create_app
from app.settings import FILE_SUFFIX, LONGEST_FILE, DisclosedField, Settings, SettingsError, _variables
from app.toss.crypto import TOSS_PUBLIC_KEY

KEY = base64.b64encode(hashlib.sha256(b"sealing").digest()).decode()
KEY_2 = base64.b64encode(hashlib.sha256(b"sealing 2").digest()).decode()
HASH_KEY = base64.b64encode(hashlib.sha256(b"hashing").digest()).decode()
SECRET = "s3cr3t-Value"
OTHER_PUBLIC_KEY = base64.b64encode(b"another key").decode()

VALID = {
    "BFF_ENVIRONMENT": "production",
    "BFF_VAULT__KEYS": json.dumps({"k1": KEY}),
    "BFF_VAULT__ACTIVE_KEY": "k1",
    "BFF_VAULT__HASH_KEY": HASH_KEY,
    "BFF_CERT__CLIENT_ID": "client",
    "BFF_CERT__CLIENT_SECRET": SECRET,
}


@pytest.fixture
def environment(monkeypatch):
    """Set variables over a valid production; None takes one away."""
    for name in os.environ:
        if name.upper().startswith("BFF_"):
            monkeypatch.delenv(name)

    def set_all(**changes: str | None) -> None:
        for name, value in (VALID | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    set_all()
    return set_all


def faults_of(environment, **changes: str | None) -> list[str]:
    """What is wrong; no fault may show a value."""
    environment(**changes)
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment()
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    values = {value for value in (VALID | changes).values() if value and len(value) > 7} | {KEY, HASH_KEY}
    for value in values - {"production"}:
        assert value not in shown
    return caught.value.faults


def test_a_few_variables_are_enough_for_production(environment):
    environment()
    settings = Settings.from_environment()
    assert settings.cert.client_secret.get_secret_value() == SECRET
    assert settings.cert.api_url == "https://cert.toss.im"
    assert settings.cert.token_url == "https://oauth2.cert.toss.im/token"
    assert settings.cert.request_path == "/api/v2/sign/user/auth/id/request"
    assert settings.cert.public_key is None
    assert not settings.serves_docs


def test_nothing_shows_a_secret(environment):
    environment(BFF_DATABASE__URL=f"postgresql+asyncpg://u:{SECRET}@h/d", BFF_REDIS__URL=f"redis://:{SECRET}@h")
    settings = Settings.from_environment()
    shown = repr(settings) + str(settings) + str(settings.model_dump()) + settings.model_dump_json()
    for secret in (SECRET, KEY, HASH_KEY):
        assert secret not in shown


def test_settings_do_not_change(environment):
    environment()
    settings = Settings.from_environment()
    for group, field in ((settings, "environment"), (settings.cert, "client_id"), (settings.vault, "active_key")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(group, field, "x")


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("BFF_SERVER__PORT", "9000", lambda s: s.server.port == 9000),
        ("BFF_SERVER__DOCS_ENABLED", "true", lambda s: s.serves_docs),
        ("BFF_SERVER__DOCS_ENABLED", "", lambda s: not s.serves_docs),
        ("BFF_REDIS__URL", "", lambda s: s.redis.url is None),
        ("BFF_CERT__EXPIRE_SECONDS", "", lambda s: s.cert.expire_seconds is None),
        ("BFF_CALLBACKS__LOGIN_UNLINK_AUTH", "", lambda s: s.callbacks.login_unlink_auth is None),
        ("BFF_CALLBACKS__RETENTION_DAYS", "7", lambda s: s.callbacks.retention_days == 7),
        ("BFF_CERT__EXPIRE_SECONDS", "60", lambda s: s.cert.expire_seconds == 60),
        ("BFF_CERT__CA_FILE", "", lambda s: s.cert.ca_file is None),
        ("BFF_CERT__SIGNATURE_POLICY_OID", "none", lambda s: s.cert.signature_policy_oid is None),
        (
            "BFF_CERT__API_URL",
            "https://next.cert.toss.im/base/",
            lambda s: s.cert.api_url == "https://next.cert.toss.im/base",
        ),
        ("BFF_CERT__READ_TIMEOUT", "2.5", lambda s: s.cert.read_timeout == timedelta(seconds=2.5)),
        ("BFF_CERT__READ_TIMEOUT", "PT4S", lambda s: s.cert.read_timeout == timedelta(seconds=4)),
        ("BFF_CERT__TOKEN_MAX_TTL", "3600", lambda s: s.cert.token_max_ttl == timedelta(hours=1)),
        ("BFF_CERT__RESULT_WINDOW_MARGIN", "0", lambda s: s.cert.result_window_margin == timedelta(0)),
        ("BFF_CERT__DISCLOSED_FIELDS", '["gender"]', lambda s: s.cert.disclosed_fields == {DisclosedField.GENDER}),
        ("BFF_CERT__DISCLOSED_FIELDS", "[]", lambda s: s.cert.disclosed_fields == frozenset()),
        ("BFF_CERT__SIGNATURE_CA_FILES", '["/a", "/b"]', lambda s: len(s.cert.signature_ca_files) == 2),
        ("BFF_NETWORK__ALLOWED_ORIGINS", '["https://a"]', lambda s: s.network.allowed_origins == ("https://a",)),
        ("bff_server__port", "9001", lambda s: s.server.port == 9001),
    ],
)
def test_variables_are_read_as_text(environment, name, text, read):
    environment(**{name: text})
    assert read(Settings.from_environment())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BFF_SERVER__PORT", "70000"),
        ("BFF_SERVER__PORT", "http"),
        ("BFF_SERVER__WORKERS", "0"),
        ("BFF_SERVER__BODY_LIMIT_BYTES", "10"),
        ("BFF_LOGGING__LEVEL", "CHATTY"),
        ("BFF_ENVIRONMENT", "staging!"),
        ("BFF_VAULT__HASH_KEY", "bm90IDMyIGJ5dGVz"),
        ("BFF_VAULT__HASH_KEY", "not base64 at all"),
        ("BFF_VAULT__HASH_KEY", ""),
        ("BFF_VAULT__ACTIVE_KEY", "k 1 with spaces"),
        ("BFF_CERT__CLIENT_ID", ""),
        ("BFF_CERT__CLIENT_SECRET", ""),
        ("BFF_CERT__EXPIRE_SECONDS", "1801"),
        ("BFF_CERT__READ_TIMEOUT", "0"),
        ("BFF_CERT__READ_TIMEOUT", "-3"),
        ("BFF_CERT__READ_TIMEOUT", "nan"),
        ("BFF_CERT__READ_TIMEOUT", "inf"),
        ("BFF_CERT__READ_TIMEOUT", "1e300"),
        ("BFF_CERT__RESULT_WINDOW_MARGIN", "3600"),
        ("BFF_CERT__REQUEST_PATH", "no/slash"),
        ("BFF_CERT__STATUS_PATH", "/with?query"),
        ("BFF_CERT__VERSION", "v1$"),
        ("BFF_CERT__TRIGGER_TYPE", "SMS_TRIGGER"),
        ("BFF_CERT__ADULT_RULE", "by_height"),
        ("BFF_CERT__DISCLOSED_FIELDS", '["ci"]'),
        ("BFF_CERT__DISCLOSED_FIELDS", '["di"]'),
        ("BFF_CERT__RETENTION_DAYS", "0"),
        ("BFF_CALLBACKS__RETENTION_DAYS", "0"),
        ("BFF_CALLBACKS__LOGIN_UNLINK_AUTH", " with-blanks-around "),
        ("BFF_CALLBACKS__LOGIN_UNLINK_AUTH", "with-a\nline-break"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_variable(environment, name, text):
    faults = faults_of(environment, **{name: text})
    assert len(faults) == 1
    assert faults[0].startswith(name)


@pytest.mark.parametrize("name", ["BFF_CERT__TOKEN_URL", "BFF_CERT__API_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "http://cert.toss.im",
        "ftp://cert.toss.im",
        "cert.toss.im/token",
        "https://",
        "https://user:pa55word@cert.toss.im",
        "https://cert.toss.im/?secret=pa55word",
        "https://cert.toss.im/#pa55word",
        "http://127.0.0.1.evil.example",
        "http://[::1",
        "javascript:alert(1)",
    ],
)
def test_toss_is_reached_over_https_only(environment, name, url):
    faults = faults_of(environment, **{name: url})
    assert [fault.partition(":")[0] for fault in faults] == [name]


@pytest.mark.parametrize("url", ["https://cert.toss.im:99999", "https://cert.toss.im:port", "https://cert toss.im"])
def test_an_address_that_cannot_be_used_is_refused(environment, url):
    assert faults_of(environment, BFF_CERT__API_URL=url)


@pytest.mark.parametrize("host", ["127.0.0.1:1234", "localhost", "[::1]:8443"])
def test_loopback_may_do_without_tls_but_not_in_production(environment, host):
    environment(BFF_ENVIRONMENT="development", BFF_CERT__API_URL=f"http://{host}")
    assert Settings.from_environment().cert.api_url == f"http://{host}"
    assert faults_of(environment, BFF_ENVIRONMENT="production") == [
        "BFF_CERT__API_URL: not a host of toss.im, and BFF_NETWORK__ACCEPT_HOSTS does not confirm it"
    ]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.2",
        "127.1",
        "2130706433",
        "localhost.",
        "0.0.0.0",
        "sandbox:8443",
        "cert.toss.im.evil.example",
        "toss.im.x",
    ],
)
def test_production_talks_to_toss_only_or_to_hosts_that_are_confirmed(environment, host):
    fault = "BFF_CERT__API_URL: not a host of toss.im, and BFF_NETWORK__ACCEPT_HOSTS does not confirm it"
    assert faults_of(environment, BFF_CERT__API_URL=f"https://{host}") == [fault]
    name = host.partition(":")[0]
    environment(BFF_CERT__API_URL=f"https://{host}", BFF_NETWORK__ACCEPT_HOSTS=json.dumps([name]))
    assert Settings.from_environment().faults() == []


def test_loopback_cannot_be_confirmed_for_production(environment):
    assert faults_of(environment, BFF_CERT__API_URL="https://localhost", BFF_NETWORK__ACCEPT_HOSTS='["localhost"]')


@pytest.mark.parametrize("key", [bytes(range(32)), b"a phrase of thirty-two letters..", b"\x01\x02" * 16])
def test_keys_that_somebody_thought_up_are_placeholders(environment, key):
    text = base64.b64encode(key).decode()
    assert faults_of(environment, BFF_VAULT__HASH_KEY=text) == [
        "BFF_VAULT__HASH_KEY: a placeholder, not a random key"
    ]


def test_a_key_has_one_spelling(environment):
    last = chr(ord(HASH_KEY[-2]) + 1)
    assert faults_of(environment, BFF_VAULT__HASH_KEY=HASH_KEY[:-2] + last + "=")


def test_two_spellings_of_a_variable_are_a_fault(environment):
    """pydantic-settings ignores case: a stray lower-case name would switch the guard off."""
    assert faults_of(environment, bff_environment="development") == ["BFF_ENVIRONMENT: given in two spellings"]


@pytest.mark.parametrize("id_and_secret", [(" test_x", "live"), ("live", "TEST_x")])
def test_test_credentials_are_known_however_they_are_written(environment, id_and_secret):
    client_id, secret = id_and_secret
    assert faults_of(environment, BFF_CERT__CLIENT_ID=client_id, BFF_CERT__CLIENT_SECRET=secret)


def test_libpqs_sslmode_is_understood(environment):
    environment(BFF_DATABASE__URL="postgresql://bff@db.example/bff?sslmode=require")
    url = Settings.from_environment().database.url.get_secret_value()
    assert url == "postgresql+asyncpg://bff@db.example/bff?ssl=require"


# --- Names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["BFF_CERTS__CLIENT_ID", "BFF_FOO", "BFF_CERT_CLIENT_ID", "BFF_DATABASEURL", "bff_typo", "BFF_", "BFF___URL"],
)
def test_a_misspelt_group_is_a_fault(environment, name):
    faults = faults_of(environment, **{name: "some value"})
    assert faults == [f"{name}: unknown variable"]


@pytest.mark.parametrize(
    "name", ["BFF_CERT__CLIENTID", "BFF_SERVER__HOSTNAME", "BFF_VAULT__KEY", "BFF_FAULT__PAUSE", "BFF_REDIS__"]
)
def test_a_misspelt_field_is_a_fault(environment, name):
    assert faults_of(environment, **{name: "some value"}) == [f"{name}: unknown variable"]


@pytest.mark.parametrize("name", [name for name in VALID if name != "BFF_ENVIRONMENT"])
def test_a_missing_variable_is_named(environment, name):
    assert faults_of(environment, **{name: None}) == [f"{name}: is required"]


def test_an_empty_environment_names_everything_it_needs(environment):
    faults = faults_of(environment, **dict.fromkeys(VALID))
    assert set(faults) == {f"{name}: is required" for name in VALID if name != "BFF_ENVIRONMENT"}
    assert len(faults) == 5


# --- Files ------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """The name of a file with this content."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "s3cr3t-place"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("mark", "line_end"),
    [("", ""), ("", "\n"), ("", "\r\n"), pytest.param("\ufeff", "\r\n", id="as Notepad does it")],
)
def test_a_variable_may_be_given_as_a_file(environment, file, mark, line_end):
    environment(BFF_CERT__CLIENT_SECRET=None, BFF_CERT__CLIENT_SECRET_FILE=file(mark + "of  a file " + line_end))
    assert Settings.from_environment().cert.client_secret.get_secret_value() == "of  a file "


@pytest.mark.parametrize(
    ("variable", "content"),
    [
        ("BFF_VAULT__KEYS", json.dumps({"k1": KEY}, indent=1) + "\n"),
        ("BFF_ENVIRONMENT", "production"),
        ("BFF_VAULT__HASH_KEY", HASH_KEY + "\n"),
        ("BFF_CERT__CLIENT_ID", "client"),
    ],
)
def test_json_required_and_outermost_variables_too(environment, file, variable, content):
    environment()
    expected = Settings.from_environment()
    environment(**{variable: None, f"{variable}_FILE": file(content)})
    assert Settings.from_environment() == expected
    environment(**{variable: "", f"{variable}_FILE": None, f"{variable}_file".lower(): file(content)})
    assert Settings.from_environment() == expected


def test_a_pem_text_keeps_its_lines(environment, file):
    environment(BFF_TOSS__KEY_PEM_FILE=file("-----BEGIN\nbody\n-----END\n"))
    key = Settings.from_environment().toss.key_pem
    assert key is not None
    assert key.get_secret_value() == "-----BEGIN\nbody\n-----END"


def test_names_that_end_alike_keep_their_meaning(environment):
    own = {name for name, _ in _variables() if name.endswith(FILE_SUFFIX)}
    assert {"BFF_TOSS__CERTIFICATE_FILE", "BFF_TOSS__KEY_FILE", "BFF_CERT__CA_FILE"} < own
    assert not {name.removesuffix(FILE_SUFFIX) for name in own} & {name for name, _ in _variables()}
    environment(**dict.fromkeys(own, "/nowhere/at/all"))
    settings = Settings.from_environment()
    assert str(settings.toss.key_file) == str(settings.cert.ca_file) == "/nowhere/at/all"


def test_a_file_that_is_not_named_is_no_file(environment):
    environment(BFF_CERT__CLIENT_SECRET_FILE="", BFF_EVENTS__SECRETS_FILE="")
    assert Settings.from_environment().cert.client_secret.get_secret_value() == SECRET


def test_a_value_and_a_file_contradict_each_other(environment, file):
    assert faults_of(environment, BFF_CERT__CLIENT_SECRET_FILE=file("another-s3cr3t")) == [
        "BFF_CERT__CLIENT_SECRET_FILE: BFF_CERT__CLIENT_SECRET is given as well"
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read (FileNotFoundError)"),
        (b"\xff\xfe secret", "cannot be read (UnicodeDecodeError)"),
        ("", "the file is empty"),
        ("\n", "the file is empty"),
        ("s3cr3t\0", "the file holds no text of a setting"),
        ("s3cr3t" * LONGEST_FILE, "the file holds no text of a setting"),
    ],
    ids=["absent", "not UTF-8", "empty", "line end", "NUL", "long"],
)
def test_a_file_that_holds_nothing_readable_is_a_fault(environment, file, content, why):
    place = file("") + "-that-is-not-there" if content is None else file(content)
    assert faults_of(environment, BFF_EVENTS__SECRETS_FILE=place) == [f"BFF_EVENTS__SECRETS_FILE: {why}"]


def test_a_file_without_an_end_is_not_read_for_ever(environment):
    (fault,) = faults_of(environment, BFF_EVENTS__SECRETS_FILE="/dev/zero")
    assert fault.startswith("BFF_EVENTS__SECRETS_FILE: ")


@pytest.mark.parametrize(
    ("variable", "content", "fault"),
    [
        ("BFF_VAULT__HASH_KEY", "no key, but a s3cr3t", "must be Base64"),
        ("BFF_VAULT__HASH_KEY", "A" * 43 + "=", "a placeholder, not a random key"),
        ("BFF_VAULT__KEYS", "{s3cr3t", "must be JSON (a list or an object)"),
    ],
)
def test_what_stands_in_a_file_is_examined_and_not_shown(environment, file, variable, content, fault):
    changes = {variable: None, f"{variable}_FILE": file(content)}
    assert faults_of(environment, **changes) == [f"{variable}: {fault}"]


@pytest.mark.parametrize("name", ["BFF_FOO_FILE", "BFF_VAULT_FILE", "BFF_CERT__CLIENT_FILE", "BFF_CERT___FILE"])
def test_a_file_for_a_misspelt_variable_is_a_fault(environment, file, name):
    (fault,) = faults_of(environment, **{name: file("s3cr3t")})
    assert fault.startswith(f"{name}: ")


# --- JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "k1=" + KEY, KEY, f"['{KEY}']", f'{{"k1": "{KEY}"'])
def test_json_that_does_not_parse_is_a_fault_that_shows_nothing(environment, text):
    assert faults_of(environment, BFF_VAULT__KEYS=text)
    assert faults_of(environment, BFF_VAULT__KEYS=VALID["BFF_VAULT__KEYS"], BFF_CERT=text)


@pytest.mark.parametrize("keys", [{"k1": "short"}, {"k1": KEY, "k2": ""}, ["k1"], {}, {"k1": None}, {"k1": 7}])
def test_keys_of_another_form_are_faults(environment, keys):
    faults = faults_of(environment, BFF_VAULT__KEYS=json.dumps(keys))
    assert all(fault.startswith(("BFF_VAULT__KEYS", "BFF_VAULT__ACTIVE_KEY")) for fault in faults)


def test_a_key_that_changed_places_with_its_id_is_not_shown(environment):
    shown = " ".join(faults_of(environment, BFF_VAULT__KEYS=json.dumps({KEY: "k1"})))
    assert KEY.upper() not in shown.upper()


def test_json_that_does_not_parse_is_named_by_its_variable(environment):
    (fault,) = faults_of(environment, BFF_NETWORK__ALLOWED_ORIGINS="https://a.example")
    assert "BFF_NETWORK" in fault


SOON = (datetime.now(UTC) + timedelta(hours=23)).isoformat()
LATE = (datetime.now(UTC) + timedelta(hours=25)).isoformat()


@pytest.mark.parametrize("instant", ["2026-01-31T12:00:00Z", "2026-01-31T21:00:00+09:00", "2026-01-31T12:00:00.5Z"])
def test_an_exception_ends_at_an_instant(environment, instant):
    environment(BFF_NETWORK__CALLBACK_EXCEPTIONS=json.dumps({"login-unlink": instant}))
    (until,) = Settings.from_environment().network.callback_exceptions.values()
    assert until == datetime.fromisoformat(instant)


@pytest.mark.parametrize(
    "exceptions",
    [
        *({"login-unlink": value} for value in ("2026-01-31T12:00:00", "2026-01-31", "1769860800", 1769860800, "")),
        *({"login-unlink": value} for value in (None, "tomorrow", True, "12:00", [], {})),
        *(
            {name: SOON}
            for name in ("", "/login-unlink", "login/unlink", "Login", "a b", "..", "a" * 41, "%2e", "é")
        ),
        ["login-unlink"],
        "login-unlink",
    ],
)
def test_an_exception_of_another_form_is_a_fault(environment, exceptions):
    (fault,) = faults_of(environment, BFF_NETWORK__CALLBACK_EXCEPTIONS=json.dumps(exceptions))
    assert fault.startswith("BFF_NETWORK__CALLBACK_EXCEPTIONS: ")


def test_how_far_an_exception_reaches_goes_by_the_applications_own_clock(environment):
    exceptions = {"login-unlink": "2026-01-31T12:00:00Z"}
    environment(BFF_NETWORK__CALLBACK_EXCEPTIONS=json.dumps(exceptions))
    settings = Settings.from_environment()
    until = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert settings.faults(now=until - timedelta(hours=24)) == []
    (fault,) = settings.faults(now=until - timedelta(hours=24, seconds=1))
    assert fault.startswith("BFF_NETWORK__CALLBACK_EXCEPTIONS")
    with pytest.raises(SettingsError, match="CALLBACK_EXCEPTIONS"):
        create_app(settings, clock=lambda: until - timedelta(days=2))


@pytest.mark.parametrize("variable", ["BFF_LIMITS__PER_MINUTE", "BFF_LIMITS__STARTS_PER_MINUTE"])
@pytest.mark.parametrize("value", ["0", "-1", "none", "null", "1.5"])
def test_a_limit_cannot_be_switched_off(environment, variable, value):
    (fault,) = faults_of(environment, **{variable: value})
    assert fault.startswith(f"{variable}: ")
    environment(**{variable: ""})
    limits = Settings.from_environment().limits
    assert (limits.per_minute, limits.starts_per_minute) == (600, 60)


@pytest.mark.parametrize(
    "dsn", ["https://key@o1.ingest.sentry.io/7", "http://key@sentry.example:9000/path/7", "https://k:s@h.example/1"]
)
def test_a_dsn_names_a_key_and_a_project(environment, dsn):
    environment(BFF_SENTRY__DSN=dsn, BFF_ENVIRONMENT="development")
    assert Settings.from_environment().sentry.dsn.get_secret_value() == dsn


@pytest.mark.parametrize(
    "dsn",
    [
        "sentry.example/7",
        "https://sentry.example/7",
        "https://key@sentry.example",
        "ftp://key@h.example/7",
        "https://key@/7",
        "https://key@h.example:x/7",
        "https://key@h.example/name",
        "https://key@h.example/²",
        "7",
    ],
)
def test_what_is_no_dsn_is_a_fault_that_does_not_show_it(environment, dsn):
    assert faults_of(environment, BFF_SENTRY__DSN=dsn) == [
        "BFF_SENTRY__DSN: must be a DSN: https://KEY@HOST/PROJECT"
    ]


# --- Production (G14) -------------------------------------------------------------------------------------

PRODUCTION_FAULTS = {
    "BFF_CERT__CLIENT_ID: test": {"BFF_CERT__CLIENT_ID": "test_a8e23336d673ca70922b485fe806eb2d"},
    "BFF_CERT__CLIENT_SECRET: test": {"BFF_CERT__CLIENT_SECRET": "test_418087247d66da09fda1964dc4734e453c7cf6"},
    "BFF_CERT__TOKEN_URL: not a host of toss.im": {"BFF_CERT__TOKEN_URL": "https://localhost:8443/token"},
    "BFF_CERT__API_URL: not a host of toss.im": {"BFF_CERT__API_URL": "https://127.0.0.1:8443"},
    "BFF_VAULT__KEYS[k1]: a placeholder": {"BFF_VAULT__KEYS": json.dumps({"k1": "A" * 43 + "="})},
    "BFF_VAULT__HASH_KEY: a placeholder": {
        "BFF_VAULT__HASH_KEY": base64.b64encode(b"changemechangemechangemechangeme").decode()
    },
    "BFF_CERT__PUBLIC_KEY: not Toss's": {"BFF_CERT__PUBLIC_KEY": OTHER_PUBLIC_KEY},
    "BFF_DATABASE__URL: SQLite cannot serve": {
        "BFF_SERVER__WORKERS": "2",
        "BFF_REDIS__URL": "redis://redis.example",
    },
    "BFF_REDIS__URL: several workers": {
        "BFF_SERVER__WORKERS": "2",
        "BFF_DATABASE__URL": "postgresql+asyncpg://db.example/bff",
    },
    "BFF_NETWORK__ALLOWED_ORIGINS: holds more than https": {
        "BFF_NETWORK__ALLOWED_ORIGINS": '["https://a.example", "*"]'
    },
    "BFF_NETWORK__CALLBACK_EXCEPTIONS: lasts longer": {
        "BFF_NETWORK__CALLBACK_EXCEPTIONS": json.dumps({"login-unlink": LATE})
    },
    "BFF_NETWORK__METRICS_ALLOWLIST: admits everybody": {"BFF_NETWORK__METRICS_ALLOWLIST": '["::/0"]'},
    "BFF_CALLBACKS__LOGIN_UNLINK_AUTH: shorter than 16": {"BFF_CALLBACKS__LOGIN_UNLINK_AUTH": "fifteen-letters"},
    "BFF_CALLBACKS__CONSENT_WITHDRAWAL_AUTH: shorter": {
        "BFF_CALLBACKS__CONSENT_WITHDRAWAL_AUTH": "fifteen:letters"
    },
    "BFF_SENTRY__DSN: must be https": {"BFF_SENTRY__DSN": "http://key@sentry.example/7"},
    "BFF_FAULT__PAUSE_AT: for tests": {"BFF_FAULT__PAUSE_AT": "answer_kept"},
    "BFF_VAULT: the same key": {"BFF_VAULT__HASH_KEY": KEY},
}


@pytest.mark.parametrize("fault", PRODUCTION_FAULTS)
def test_production_refuses_what_is_unfit_for_it_and_development_does_not(environment, fault):
    changes = PRODUCTION_FAULTS[fault]
    found = faults_of(environment, **changes)
    assert [text.startswith(fault) for text in found] == [True]
    environment(**changes, BFF_ENVIRONMENT="development")
    assert Settings.from_environment().faults() == []


@pytest.mark.parametrize("group", ["CALLBACK", "METRICS"])
@pytest.mark.parametrize("everybody", [["0.0.0.0/0"], ["::/0"], ["10.0.0.0/8", "0.0.0.0/1", "::/1", "128.0.0.0/1"]])
def test_an_allowlist_of_everybody_is_refused_however_it_is_written(environment, group, everybody):
    variable = f"BFF_NETWORK__{group}_ALLOWLIST"
    assert faults_of(environment, **{variable: json.dumps(everybody)}) == [f"{variable}: admits everybody"]


def test_production_lists_all_its_faults_at_once(environment):
    together = {}
    for changes in PRODUCTION_FAULTS.values():
        together |= changes
    together |= {"BFF_DATABASE__URL": None, "BFF_REDIS__URL": None, "BFF_UNHEARD_OF": "1"}
    together["BFF_VAULT__KEYS"] = json.dumps({"k1": "A" * 43 + "=", "k2": KEY})
    together["BFF_VAULT__HASH_KEY"] = "A" * 43 + "="
    found = faults_of(environment, **together)
    for fault in [*PRODUCTION_FAULTS, "BFF_UNHEARD_OF: unknown variable"]:
        assert any(text.startswith(fault) for text in found), fault


@pytest.mark.parametrize("environment_name", ["development", "production"])
def test_what_contradicts_itself_is_refused_everywhere(environment, environment_name):
    assert faults_of(environment, BFF_ENVIRONMENT=environment_name, BFF_VAULT__ACTIVE_KEY="k9") == [
        "BFF_VAULT__ACTIVE_KEY: names no key of BFF_VAULT__KEYS"
    ]
    assert faults_of(environment, BFF_VAULT__ACTIVE_KEY="k1", BFF_CERT__CALL_DEADLINE="20.1") == [
        "BFF_CERT__RESULT_LEASE: must be at least 1.5 times BFF_CERT__CALL_DEADLINE"
    ]


@pytest.mark.parametrize("form", ["der", "der in lines", "pem"])
def test_tosss_published_key_needs_no_confirmation(environment, form):
    lines = "\n".join(TOSS_PUBLIC_KEY[at : at + 64] for at in range(0, len(TOSS_PUBLIC_KEY), 64))
    texts = {
        "der": TOSS_PUBLIC_KEY,
        "der in lines": lines,
        "pem": f"-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n",
    }
    environment(BFF_CERT__PUBLIC_KEY=texts[form])
    assert Settings.from_environment().faults() == []


def test_another_key_needs_its_own_fingerprint_as_confirmation(environment):
    fingerprint = hashlib.sha256(base64.b64decode(OTHER_PUBLIC_KEY)).hexdigest()
    environment(BFF_CERT__PUBLIC_KEY=OTHER_PUBLIC_KEY, BFF_CERT__ACCEPT_PUBLIC_KEY_SHA256=fingerprint.upper())
    assert Settings.from_environment().faults() == []
    assert faults_of(environment, BFF_CERT__ACCEPT_PUBLIC_KEY_SHA256=fingerprint[:-1] + "0")
    assert faults_of(environment, BFF_CERT__PUBLIC_KEY="no Base64 at all", BFF_CERT__ACCEPT_PUBLIC_KEY_SHA256="")


def test_two_vault_keys_are_fine_and_every_one_is_looked_at(environment):
    environment(BFF_VAULT__KEYS=json.dumps({"k1": KEY, "k2": KEY_2}))
    assert Settings.from_environment().faults() == []
    found = faults_of(environment, BFF_VAULT__KEYS=json.dumps({"k1": KEY, "k2": "A" * 43 + "="}))
    assert [fault.partition(":")[0] for fault in found] == ["BFF_VAULT__KEYS[k2]"]


def test_the_application_refuses_settings_with_faults_however_they_were_made(environment):
    environment()
    settings = Settings.from_environment()
    open_to_all = settings.network.model_copy(update={"allowed_origins": ("*",)})
    with pytest.raises(SettingsError, match="BFF_NETWORK__ALLOWED_ORIGINS"):
        create_app(settings.model_copy(update={"network": open_to_all}))
