"""What type checkers are to make of decorated functions; nothing here is ever called."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

from atomcache import AsyncMemoized, Cache, CallKey, InputKey, Memoized

cache = Cache("cache")


@cache.memoize
def bare(number: int, *, text: str = "") -> list[str]:
    return [text] * number


@cache.memoize(max_age=60, ignore=("text",), version="source")
def called(number: int, *, text: str = "") -> list[str]:
    return [text] * number


@cache.memoize
async def abare(number: int) -> str:
    return str(number)


@cache.memoize(key=lambda number: number, tags=["a"])
async def acalled(number: int) -> str:
    return str(number)


@cache.builder
def page(target: Path, number: int, *, dark: bool = False) -> None:
    target.write_text(f"{number} {dark}")


@cache.builder(name="page.html", inputs=lambda number: [f"{number}.txt"])
def named_page(target: Path, number: int) -> None:
    target.write_text(str(number))


@cache.builder
async def apage(target: Path, number: int) -> None:
    target.write_text(str(number))


@cache.builder(name="page.html")
async def named_apage(target: Path, number: int) -> None:
    target.write_text(str(number))


@dataclass(frozen=True)
class Shop:
    name: str

    @cache.memoize
    def price(self, article: str, count: int = 1) -> float:
        return float(count)

    @cache.memoize(max_age=60)
    def called_price(self, article: str) -> float:
        return 1.0

    @cache.memoize
    async def order(self, article: str) -> bytes:
        return article.encode()

    @staticmethod
    @cache.memoize
    def parse(text: str) -> int:
        return int(text)


def functions() -> None:
    assert_type(bare(1, text="a"), list[str])
    assert_type(called(1), list[str])
    assert_type(bare.refresh(1), list[str])
    assert_type(bare.cached(1), bool)
    assert_type(bare.forget(1, text="a"), bool)
    assert_type(bare.forget_all(), int)
    assert_type(bare.key(1), CallKey | InputKey)
    cache.get(bare.key(1))
    bare.peek(1, default=None)
    bare("1")  # type: ignore[arg-type]
    bare(1, text=2)  # type: ignore[arg-type]
    bare(1, "a")  # type: ignore[call-arg]
    bare()  # type: ignore[call-arg]
    called("1")  # type: ignore[arg-type]
    called(1, other="a")  # type: ignore[call-arg]
    bare.key("1")  # type: ignore[arg-type]
    bare.cached("1")  # type: ignore[arg-type]
    bare.refresh("1")  # type: ignore[arg-type]
    called.forget("1")  # type: ignore[arg-type]


async def coroutine_functions() -> None:
    assert_type(await abare(1), str)
    assert_type(await acalled(1), str)
    await assert_type(abare(1), Coroutine[Any, Any, str])
    assert_type(await abare.refresh(1), str)
    assert_type(abare.cached(1), bool)
    await abare("1")  # type: ignore[arg-type]
    await acalled("1")  # type: ignore[arg-type]
    await abare.refresh("1")  # type: ignore[arg-type]


async def asked_from_a_loop() -> None:
    async def fetch() -> str:
        return "page"

    def read() -> bytes:
        return b"page"

    page = await cache.aget_or_create("page", fetch)
    assert_type(page, str)
    assert_type(await cache.aget_or_create("page", read, max_age=60), bytes)
    assert_type(await cache.aget_or_create("page", lambda: fetch()), str)
    await cache.aget_or_create("page", 5)  # type: ignore[call-overload]


async def builders() -> None:
    assert_type(page(1, dark=True), Path)
    assert_type(named_page(1), Path)
    assert_type(page.refresh(1), Path)
    assert_type(await apage(1), Path)
    assert_type(await named_apage(1), Path)
    page(Path("target"), 1)  # type: ignore[call-arg, arg-type]
    page("1")  # type: ignore[arg-type]
    page(1, dark="no")  # type: ignore[arg-type]
    named_page("1")  # type: ignore[arg-type]
    await apage("1")  # type: ignore[arg-type]
    await named_apage(Path("target"), 1)  # type: ignore[call-arg, arg-type]
    page.key("1")  # type: ignore[arg-type]


async def methods(shop: Shop) -> None:
    assert_type(shop.price("pear", count=2), float)
    assert_type(shop.called_price("pear"), float)
    assert_type(Shop.price(shop, "pear"), float)
    assert_type(await shop.order("pear"), bytes)
    assert_type(shop.price.refresh("pear"), float)
    assert_type(shop.price.cached("pear"), bool)
    assert_type(Shop.parse("1"), int)
    shop.price(1)  # type: ignore[arg-type]
    shop.price(shop, "pear")  # type: ignore[arg-type]
    shop.called_price(1)  # type: ignore[arg-type]
    Shop.price("pear")  # type: ignore[call-arg, arg-type]
    await shop.order(1)  # type: ignore[arg-type]
    shop.price.key(1)  # type: ignore[arg-type]
    Shop.parse(1)  # type: ignore[arg-type]


def wrong_decorators() -> None:
    cache.memoize(maxage=60)  # type: ignore[call-overload]
    cache.memoize(version=1.5)  # type: ignore[call-overload]
    cache.builder(ignore=5)  # type: ignore[call-overload]

    @cache.builder  # type: ignore[arg-type]
    def textual(target: str) -> None: ...


def kinds() -> tuple[Memoized[[int], Path], AsyncMemoized[[int], str]]:
    return named_page, abare


def wrong_kind() -> Memoized[[str], Path]:
    return named_page  # type: ignore[return-value]


async def questions() -> None:
    assert_type(cache.refresh("key", lambda: 1), int)
    assert_type(cache.refresh_path("key", lambda target: target.touch(), name="a"), Path)
    cache.refresh("key", 1)  # type: ignore[arg-type]
    cache.get("key", inputs=["a", Path("b")])
    cache.get("key", inputs=5)  # type: ignore[arg-type]
