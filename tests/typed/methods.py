"""What type checkers are to make of builders that are methods; nothing here is ever called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import assert_type

from atomcache import Cache

cache = Cache("cache")


@dataclass(frozen=True)
class Shop:
    name: str

    @cache.builder
    def receipt(self, target: Path, number: int) -> None:
        target.write_text(str(number))

    @cache.builder(name="receipt.txt")
    def named_receipt(self, target: Path, number: int) -> None:
        target.write_text(str(number))

    @cache.builder
    async def bill(self, target: Path, number: int) -> None:
        target.write_text(str(number))

    @cache.builder(name="bill.txt")
    async def named_bill(self, target: Path, number: int) -> None:
        target.write_text(str(number))


async def methods(shop: Shop) -> None:
    assert_type(shop.receipt(1), Path)
    assert_type(shop.named_receipt(number=1), Path)
    assert_type(await shop.bill(1), Path)
    assert_type(await shop.named_bill(number=1), Path)
    assert_type(Shop.receipt(shop, 1), Path)
    shop.receipt("1")  # type: ignore[arg-type]
    shop.named_receipt("1")  # type: ignore[arg-type]
    await shop.bill("1")  # type: ignore[arg-type]
