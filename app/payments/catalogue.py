"""What a mini-app may buy by name: a file of the operator's, read again when it changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import structlog
from pydantic import AfterValidator, Field, ValidationError, model_validator
from typing_extensions import override

from app.toss.pay import Charge
from app.wire import Input

MAX_AMOUNT = 9_999_999
"""Seven digits (apps-in-toss reference 8.2)."""
FORBIDDEN_IN_DESCRIPTION = "\\\"'"
"""Plain Toss Pay refuses the single quote too."""
UNREADABLE: tuple[int, ...] = ()
"""The stamp of a file that cannot be read at all."""
MAX_FILE_BYTES = 5 * 1024 * 1024

ProductId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class CatalogueFault(Exception):
    """The file cannot be used. Says where, without the content."""


def _description(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    if not text.isprintable() or any(mark in text for mark in FORBIDDEN_IN_DESCRIPTION):
        raise ValueError("must be printable, without backslash and quotes")
    return text


Amount = Annotated[int, Field(strict=True, ge=0, le=MAX_AMOUNT)]
Description = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_description)]


class AmountFields(Input):
    """What is charged, under Toss's own names (apps-in-toss reference 8.2). Whole KRW."""

    description: Description
    amount: Annotated[int, Field(strict=True, ge=1, le=MAX_AMOUNT)]
    amount_tax_free: Amount = 0
    amount_taxable: Amount | None = None
    amount_vat: Amount | None = None
    amount_service_fee: Amount | None = None

    @model_validator(mode="after")
    def _is_split(self) -> Self:
        parts = (self.amount_tax_free, self.amount_taxable, self.amount_vat, self.amount_service_fee)
        if sum(part or 0 for part in parts) > self.amount:
            raise ValueError("the parts must not be more than the amount")
        return self

    def charge(self) -> Charge:
        return Charge(
            product_desc=self.description,
            amount=self.amount,
            amount_tax_free=self.amount_tax_free,
            amount_taxable=self.amount_taxable,
            amount_vat=self.amount_vat,
            amount_service_fee=self.amount_service_fee,
            options={name: value for name, value in self._options().items() if value is not None},
        )

    def _options(self) -> dict[str, Any]:
        return {}


class ChargeFields(AmountFields):
    """With how the user may pay it."""

    enable_pay_methods: Literal["TOSS_MONEY", "CARD"] | None = None
    cash_receipt: bool | None = None
    cash_receipt_trade_option: Literal["GENERAL", "CULTURE", "PUBLIC_TP"] | None = None
    installment: Literal["USE", "NOT_USE"] | None = None

    @override
    def _options(self) -> dict[str, Any]:
        return {
            "enablePayMethods": self.enable_pay_methods,
            "cashReceipt": self.cash_receipt,
            "cashReceiptTradeOption": self.cash_receipt_trade_option,
            "installment": self.installment,
        }


class _File(Input):
    products: dict[ProductId, ChargeFields]


class Catalogue:
    """Looks at the file with every question. A file that became unusable leaves the products as they were."""

    def __init__(self, path: Path | None, *, read: Callable[[Path], bytes] = Path.read_bytes) -> None:
        """Raises: CatalogueFault, OSError."""
        self._path = path
        self._read_bytes = read
        self._stamp: tuple[int, ...] | None = None
        self._products: dict[str, ChargeFields] = {}
        self._log = structlog.stdlib.get_logger("app.payments.catalogue")
        if path is not None:
            self._stamp = _stamp(path)
            self._products = self._parsed(path)

    def __len__(self) -> int:
        self._look()
        return len(self._products)

    def product(self, product_id: str) -> ChargeFields | None:
        self._look()
        return self._products.get(product_id)

    def _look(self) -> None:
        if self._path is None:
            return
        before = self._stamp
        try:
            stamp = _stamp(self._path)
            if stamp == before:
                return
            # Taken before reading: a file that changes meanwhile is read again at the next question.
            self._stamp = stamp
            self._products = self._parsed(self._path)
        except CatalogueFault as fault:
            self._log.error("catalogue_unusable", why=str(fault))
        except OSError as error:
            if before != UNREADABLE:  # said once, not at every question
                self._log.error("catalogue_unusable", why=type(error).__name__)
            self._stamp = UNREADABLE
        else:
            self._log.info("catalogue_read", products=len(self._products))

    def _parsed(self, path: Path) -> dict[str, ChargeFields]:
        content = self._read_bytes(path)
        if len(content) > MAX_FILE_BYTES:
            raise CatalogueFault("too large")
        try:
            return _File.model_validate(json.loads(content, object_pairs_hook=_once_each)).products
        except ValidationError as error:
            places = sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)})
            raise CatalogueFault(f"bad values at: {', '.join(places[:10])}") from None
        except (ValueError, RecursionError):
            raise CatalogueFault("is not JSON") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets the last of two win: a product would cost what nobody meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise CatalogueFault("a name comes twice")
    return fields


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
