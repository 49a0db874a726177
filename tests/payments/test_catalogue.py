"""The file of products: what it may say, and what becomes of one that goes bad while it is in use."""

import json
from pathlib import Path

import pytest

from app.payments.catalogue import MAX_FILE_BYTES, Catalogue, CatalogueFault
from app.resources import open_resources
from app.settings import SettingsError
from tests.conftest import CATALOGUE, settings_for
from tests.payments.shop import Shop
from tests.scenarios import Bff

TEA = {"description": "녹차", "amount": 3000, "amountTaxFree": 0}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "catalogue.json"


def write(path: Path, **products: object) -> None:
    """In one step, as a deployment does it."""
    write_text(path, json.dumps({"products": products}))


def write_text(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(path)


def fault_of(path: Path) -> str:
    with pytest.raises(CatalogueFault) as caught:
        Catalogue(path)
    return str(caught.value)


def complaints(caplog) -> list[str]:
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [each["why"] for each in said if each["event"] == "catalogue_unusable"]


# --- What it may say ---------------------------------------------------------------------------------------


def test_the_file_of_the_tests():
    catalogue = Catalogue(CATALOGUE)
    charge = catalogue.product("gift-card").charge()
    assert (charge.product_desc, charge.amount, charge.amount_taxable, charge.amount_vat) == (
        "선물세트",
        55000,
        50000,
        5000,
    )
    assert charge.options == {"enablePayMethods": "CARD", "cashReceipt": False, "installment": "NOT_USE"}
    assert catalogue.product("Americano") is None


def test_without_a_file_there_are_no_products():
    assert Catalogue(None).product("tea") is None


GOOD = [
    {},
    {"amount": 1},
    {"amount": 9_999_999},
    {"description": "d" * 255},
    {"amountTaxFree": 3000},
    {"amountTaxFree": 1000, "amountTaxable": 1500, "amountVat": 300, "amountServiceFee": 200},
    {"amountVat": None, "enablePayMethods": None},
    {"enablePayMethods": "TOSS_MONEY", "cashReceiptTradeOption": "CULTURE", "installment": "USE"},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_what_a_product_may_say(path, changes):
    write(path, tea=TEA | changes)
    wanted = TEA | changes
    charge = Catalogue(path).product("tea").charge()
    assert (charge.amount, charge.product_desc) == (wanted["amount"], wanted["description"])
    assert charge.amount_tax_free == wanted["amountTaxFree"]


BAD = [
    *({"amount": amount} for amount in (0, -1, 10_000_000, 2**63, True, 3000.0, 3000.5, "3000", None, [], {})),
    *({"amountTaxFree": amount} for amount in (-1, 3001, True, 0.0, "0", None)),
    *({name: amount} for name in ("amountTaxable", "amountVat", "amountServiceFee") for amount in (-1, True, 1.0)),
    {"amountTaxFree": 2000, "amountTaxable": 1000, "amountVat": 1},
    {"amountServiceFee": 3001},
    *({"description": text} for text in ("", " ", "\u3000", "d" * 256, 7, None)),
    *({"description": f"녹{mark}차"} for mark in "\\\"'\n\t\0\u200b\u2028"),
    {"enablePayMethods": "card"},
    {"installment": "NO"},
    {"cashReceiptTradeOption": "OTHER"},
    {"cashReceipt": "perhaps"},
    {"currency": "KRW"},
    {"amount_tax_free": 0},
    {"isTestPayment": False},
    {"orderNo": "1"},
]


@pytest.mark.parametrize("changes", BAD, ids=lambda each: json.dumps(each)[:60])
def test_what_a_product_may_not_say(path, changes):
    write(path, good=TEA, tea=TEA | changes)
    fault = fault_of(path)
    assert fault.startswith("bad values at: products.tea")
    assert "녹" not in fault


@pytest.mark.parametrize("missing", ["description", "amount"])
def test_what_a_product_must_say(path, missing):
    write(path, tea={name: value for name, value in TEA.items() if name != missing})
    assert fault_of(path) == f"bad values at: products.tea.{missing}"


@pytest.mark.parametrize("name", ["", " ", "-tea", "a b", "차", "a" * 65, "../tea", "tea\n"])
def test_what_no_product_is_called(path, name):
    write(path, **{name: TEA})
    assert fault_of(path).startswith("bad values at: products.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\ufeff{}",
        "[]",
        "null",
        "{}",
        '{"products": []}',
        '{"products": {"tea": null}}',
        "NaN",
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_catalogue(path, text):
    write_text(path, text)
    assert fault_of(path) in {
        "is not JSON",
        "bad values at: ",
        "bad values at: products",
        "bad values at: products.tea",
    }


@pytest.mark.parametrize(
    "text", ['{"products": {"t": %s, "t": %s}}', '{"products": {"t": %s}, "products": {"t": %s}}']
)
def test_a_name_that_comes_twice_is_a_mistake(path, text):
    dear = json.dumps(TEA | {"amount": 9000})
    write_text(path, text % (json.dumps(TEA), dear))
    assert fault_of(path) == "a name comes twice"


def test_an_amount_that_comes_twice_is_a_mistake(path):
    write_text(path, '{"products": {"t": {"description": "d", "amount": 1, "amount": 2}}}')
    assert fault_of(path) == "a name comes twice"


def test_a_file_that_is_too_large_is_not_looked_into(path):
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    assert fault_of(path) == "too large"


def test_an_empty_catalogue_is_one(path):
    write(path)
    assert Catalogue(path).product("tea") is None


# --- While it is in use ------------------------------------------------------------------------------------


def test_a_change_is_seen_at_the_next_question(path):
    write(path, tea=TEA)
    catalogue = Catalogue(path)
    assert catalogue.product("tea").amount == 3000
    write(path, tea=TEA | {"amount": 3500}, juice=TEA)
    assert catalogue.product("tea").amount == 3500
    assert catalogue.product("juice") is not None
    write(path, juice=TEA)
    assert catalogue.product("tea") is None


def test_it_is_read_only_when_it_has_changed(path):
    reads = []

    def read(file: Path) -> bytes:
        reads.append(file)
        return file.read_bytes()

    write(path, tea=TEA)
    catalogue = Catalogue(path, read=read)
    for _ in range(3):
        assert catalogue.product("tea") is not None
    assert len(reads) == 1
    write(path, tea=TEA)
    assert catalogue.product("tea") is not None
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_read_again(path):
    def read(file: Path) -> bytes:
        content = file.read_bytes()
        if b"3000" in content:
            write(path, tea=TEA | {"amount": 3500})
        return content

    write(path, tea=TEA)
    catalogue = Catalogue(path, read=read)
    assert catalogue.product("tea").amount == 3500


def test_what_becomes_unusable_leaves_the_products_as_they_were(path, caplog):
    write(path, tea=TEA)
    catalogue = Catalogue(path)
    for spoilt in (json.dumps({"products": {"tea": TEA | {"amount": 0}}}), "{", ""):
        write_text(path, spoilt)
        for _ in range(3):
            assert catalogue.product("tea").amount == 3000
    assert complaints(caplog) == ["bad values at: products.tea.amount", "is not JSON", "is not JSON"]
    write(path, tea=TEA | {"amount": 3500})
    assert catalogue.product("tea").amount == 3500


def make_missing(path: Path) -> None:
    path.unlink()


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("make_unreadable", [make_missing, make_a_folder])
def test_what_cannot_be_read_leaves_them_too_and_is_said_once(path, caplog, make_unreadable):
    write(path, tea=TEA)
    catalogue = Catalogue(path)
    make_unreadable(path)
    for _ in range(3):
        assert catalogue.product("tea").amount == 3000
    assert len(complaints(caplog)) == 1
    if path.is_dir():
        path.rmdir()
    write(path, tea=TEA | {"amount": 3500})
    assert catalogue.product("tea").amount == 3500


async def test_products_change_under_a_running_service(settings, sandbox, path):
    """An order keeps the price at which it was begun."""
    write(path, tea=TEA)
    pay = settings.pay.model_copy(update={"catalogue_file": path})
    async with Bff.running(settings.model_copy(update={"pay": pay}), sandbox) as bff:
        shop = await Shop.opened(bff)
        first = await shop.begun(productId="tea")
        write(path, tea=TEA | {"amount": 3500})
        second = await shop.begun(productId="tea")
        assert (first["amount"], second["amount"]) == (3000, 3500)
        shop.authenticate(first)
        assert (await shop.execute(first)).json()["amount"] == 3000
        assert shop.at_toss(first).amount == 3000


# --- At the start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "{", json.dumps({"products": {"tea": TEA | {"amount": 7.5}}})])
async def test_a_service_does_not_start_with_one_that_cannot_be_used(embedded, sandbox, path, text):
    if text is not None:
        write_text(path, text)
    settings = settings_for(embedded, sandbox)
    pay = settings.pay.model_copy(update={"catalogue_file": path})
    with pytest.raises(SettingsError) as refused:
        async with open_resources(settings.model_copy(update={"pay": pay})):
            pass
    (fault,) = refused.value.faults
    assert fault.startswith("BFF_PAY__CATALOGUE_FILE: ")
    assert "녹차" not in fault
