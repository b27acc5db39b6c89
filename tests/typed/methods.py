"""What type checkers are to make of methods of every kind; nothing here is ever called."""

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


class Market:
    @cache.memoize
    @classmethod
    def total(cls, article: int) -> str:
        return str(article)

    @cache.memoize(max_age=60)
    @classmethod
    async def late_total(cls, article: int) -> str:
        return str(article)

    @cache.builder
    @classmethod
    def page(cls, target: Path, article: int) -> None:
        target.write_text(str(article))

    @cache.memoize
    @staticmethod
    def parse(text: str, base: int = 10) -> int:
        return int(text, base)

    @cache.memoize(max_age=60)
    @staticmethod
    async def late_parse(text: str) -> int:
        return int(text)

    @cache.builder(name="note.txt")
    @staticmethod
    def note(target: Path, article: int) -> None:
        target.write_text(str(article))

    @staticmethod
    @cache.memoize
    def below(text: str) -> int:
        return int(text)

    @cache.memoize
    @staticmethod
    def nothing() -> int:
        return 0


class Fair(Market):
    pass


async def class_methods() -> None:
    assert_type(Market.total(1), str)
    assert_type(Market().total(article=1), str)
    assert_type(Fair.total(1), str)
    assert_type(Fair().total(1), str)
    assert_type(Market.total.cached(1), bool)
    assert_type(Market.total.refresh(1), str)
    assert_type(await Market.late_total(1), str)
    assert_type(await Market().late_total(1), str)
    assert_type(Market.page(1), Path)
    assert_type(Market().page(1), Path)
    Market.total("1")  # type: ignore[arg-type]
    Market().total("1")  # type: ignore[arg-type]
    Market.total(Market, 1)  # type: ignore[call-arg, arg-type]
    await Market.late_total("1")  # type: ignore[arg-type]


async def static_methods() -> None:
    assert_type(Market.parse("1"), int)
    assert_type(Market().parse("1", base=8), int)
    assert_type(Fair().parse("1"), int)
    assert_type(Market().parse.cached("1"), bool)
    assert_type(await Market.late_parse("1"), int)
    assert_type(await Market().late_parse("1"), int)
    assert_type(Market.note(1), Path)
    assert_type(Market().note(1), Path)
    assert_type(Market.below("1"), int)
    assert_type(Market().below("1"), int)
    assert_type(Market.nothing(), int)
    assert_type(Market().nothing(), int)
    Market.parse(1)  # type: ignore[arg-type]
    Market().parse(1)  # type: ignore[arg-type]
