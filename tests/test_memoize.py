"""A decorated function is the function, called once per call for all processes."""

import asyncio
import copy
import dataclasses
import functools
import gc
import inspect
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from atomcache import (
    BuildTimeout,
    Cache,
    DontStore,
    EntryNameError,
    KeyTypeError,
    Memoized,
    OptionError,
)
from atomcache._flight import Flight

from .crew import leftovers, sleepers, until

counts_sleepers = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)
# Python 3.13 no longer tells what is below @classmethod to which class it belongs.
unbound_below = sys.version_info >= (3, 13)


def added(cache, **options):
    """Return a decorated function and the list of its calls."""
    calls = []

    @cache.memoize(**options)
    def add(a, b=2):
        calls.append((a, b))
        return a + b

    return add, calls


# -- values --------------------------------------------------------------------------


def test_a_second_call_gets_the_first_ones_value(cache):
    calls = []

    @cache.memoize
    def add(a, b):
        calls.append((a, b))
        return a + b

    assert [add(1, 2), add(1, 2), add(2, 2)] == [3, 3, 4]
    assert calls == [(1, 2), (2, 2)]


def test_called_and_bare_decorators_do_the_same(cache):
    add, calls = added(cache)
    assert [add(1), add(1)] == [3, 3]
    assert calls == [(1, 2)]


@pytest.mark.parametrize("sign", ["positions", "names", "default"])
def test_one_call_is_one_key_however_its_arguments_are_given(cache, sign):
    add, calls = added(cache)
    add(1, 2)
    ways = {"positions": ((1, 2), {}), "names": ((), {"b": 2, "a": 1}), "default": ((1,), {})}
    args, kwargs = ways[sign]
    assert add(*args, **kwargs) == 3
    assert add.key(*args, **kwargs) == add.key(1, b=2)
    assert hash(add.key(*args, **kwargs)) == hash(add.key(1, b=2))
    assert calls == [(1, 2)]


def test_arguments_that_are_equal_and_of_other_types_are_other_calls(cache):
    @cache.memoize
    def kind(a):
        return type(a).__name__

    given = [1, 1.0, True, "1", b"1", (1,), [1], None]
    assert [kind(a) for a in given] == [type(a).__name__ for a in given]
    assert [kind(a=a) for a in given] == [type(a).__name__ for a in given]
    assert str(cache.get(kind.key(True))) == "bool"


def test_zeros_of_both_signs_are_two_calls(cache):
    @cache.memoize
    def sign(a):
        return str(a)

    assert [sign(0.0), sign(-0.0), sign(0.0)] == ["0.0", "-0.0", "0.0"]


def test_any_number_of_arguments_and_names_can_be_taken(cache):
    calls = []

    @cache.memoize
    def everything(first, *others, flag=False, **named):
        calls.append(first)
        return first, others, flag, named

    assert everything(1, 2, 3, flag=True, x=4, y=5) == (1, (2, 3), True, {"x": 4, "y": 5})
    assert everything(1, 2, 3, y=5, x=4, flag=True) == (1, (2, 3), True, {"x": 4, "y": 5})
    assert calls == [1]
    keys = {everything.key(1), everything.key(1, 2), everything.key(1, x=2), everything.key((1,))}
    assert len(keys) == 4


def test_a_positional_parameter_and_a_name_alike_are_told_apart(cache):
    @cache.memoize
    def both(a, /, **named):
        return a, named

    assert both(1, a=2) == (1, {"a": 2})
    assert both(2, a=1) == (2, {"a": 1})


@pytest.mark.parametrize("options", [{}, {"key": lambda *args, **kwargs: 1}], ids=["", "key"])
@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"c": 3}), ((1,), {"a": 3})]
)
def test_arguments_that_the_function_does_not_take_are_a_type_error(cache, options, args, kwargs):
    add, calls = added(cache, **options)
    for ask in (add, add.key, add.cached, add.refresh, add.forget):
        with pytest.raises(TypeError, match="add") as caught:
            ask(*args, **kwargs)
        assert not isinstance(caught.value, KeyTypeError)
    assert calls == []


def test_an_argument_that_is_no_plain_data_is_refused_by_its_name(cache):
    add, calls = added(cache)
    with pytest.raises(KeyTypeError) as caught:
        add(1, b=object())
    for part in ("'b'", "add", "object", "key=", "ignore=('b',)", "__atomcache_key__"):
        assert part in str(caught.value)
    assert calls == []


def test_an_error_is_not_stored(cache):
    calls = []

    @cache.memoize
    def fails_once(a):
        calls.append(a)
        if len(calls) == 1:
            raise LookupError("not yet")
        return a

    with pytest.raises(LookupError, match="not yet"):
        fails_once(1)
    assert fails_once(1) == 1


# -- the questions -------------------------------------------------------------------


def test_a_calls_key_is_one_of_the_caches_keys(cache):
    add, calls = added(cache)
    assert cache.get(add.key(1)) is None
    add(1)
    assert cache.get(add.key(1)) == 3
    assert add.key(1) in cache
    cache.set(add.key(1), "set")
    assert add(1) == "set"
    assert cache.remove(add.key(1))
    assert not add.cached(1)


def test_a_key_shows_its_call(cache):
    add, _ = added(cache)
    assert repr(add.key(1)).endswith("add(a=1, b=2)")
    add(1)
    [entry] = cache.entries()
    assert entry.key == repr(add.key(1))
    assert entry.function == f"{__name__}.{add.__qualname__}"


def test_a_key_can_be_pickled(cache):
    add, _ = added(cache)
    add(1)
    assert pickle.loads(pickle.dumps(add.key(1))) == add.key(1)
    assert cache.get(pickle.loads(pickle.dumps(add.key(1)))) == 3


def test_looking_never_calls_the_function(cache):
    add, calls = added(cache)
    assert not add.cached(1)
    assert add.peek(1) is None
    assert add.peek(1, default="nothing") == "nothing"
    assert not add.forget(1)
    assert calls == []
    add(1)
    assert add.cached(1, b=2)
    assert add.peek(1, 2) == add.peek(1, default="nothing") == 3
    assert calls == [(1, 2)]


def test_none_is_a_result_like_any_other(cache):
    calls = []

    @cache.memoize
    def nothing(a):
        calls.append(a)

    nothing(1)
    nothing(1)
    assert calls == [1]
    assert nothing.cached(1)
    assert nothing.peek(1, default="nothing") is None


def test_forget_removes_the_result_of_one_call(cache):
    add, calls = added(cache)
    add(1), add(5)
    assert add.forget(a=1)
    assert not add.forget(1)
    assert not add.cached(1)
    assert add.cached(5)
    assert add(1) == 3
    assert calls == [(1, 2), (5, 2), (1, 2)]


def test_forget_all_removes_all_of_one_function_and_nothing_else(cache):
    old, _ = added(cache, version=1)
    new, _ = added(cache, version=2)

    @cache.memoize
    def adds(a):
        return a

    @cache.builder
    def add_to_file(target, a):
        target.write_text(str(a))

    old(1), old(2), new(1), adds(1), add_to_file(1), cache.set("add", 1)
    assert new.forget_all() == 3
    assert not old.cached(1)
    assert not new.cached(1)
    assert adds.cached(1)
    assert add_to_file.cached(1)
    assert "add" in cache
    assert add_to_file.forget_all() == 1
    assert not add_to_file.cached(1)
    assert new.forget_all() == 0


def test_forget_all_leaves_functions_alone_whose_names_begin_alike(cache):
    @cache.memoize
    def add(a):
        return a

    @cache.memoize
    def add_all(a):
        return a

    @cache.memoize
    def ad(a):
        return a

    class add_up:  # noqa: N801
        @staticmethod
        @cache.memoize
        def add(a):
            return a

    others = add_all, ad, add_up.add
    for function in (add, *others):
        function(1)
    assert add.forget_all() == 1
    assert not add.cached(1)
    assert all(other.cached(1) for other in others)


def test_versions_are_kept_apart(cache):
    old, _ = added(cache, version="old")
    new, calls = added(cache, version="new")
    bare, _ = added(cache)
    number, _ = added(cache, version=1)
    text, _ = added(cache, version="1")
    assert len({f.key(1) for f in (old, new, bare, number, text)}) == 5
    old(1)
    assert not new.cached(1)
    assert new(1) == 3
    assert calls == [(1, 2)]


def test_wrapped_is_the_function_itself(cache):
    add, calls = added(cache)
    assert add.__wrapped__(1, 2) == 3
    assert not add.cached(1)
    assert inspect.isfunction(add.__wrapped__)
    assert inspect.unwrap(add) is add.__wrapped__


def test_options_of_the_decorator_are_those_of_the_call(cache):
    add, calls = added(cache, max_age=0, tags=["sum"])
    add(1)
    [entry] = cache.entries()
    assert entry.tags == ("sum",)
    assert not add.cached(1)
    add(1)
    assert calls == [(1, 2), (1, 2)]


# -- key= and ignore= ----------------------------------------------------------------


def test_key_says_what_identifies_a_call(cache):
    add, calls = added(cache, key=lambda a, b: a % 10)
    assert [add(1), add(11), add(2)] == [3, 3, 4]
    assert calls == [(1, 2), (2, 2)]
    assert cache.get(add.key(21)) == 3


def test_key_is_asked_at_each_call(cache):
    day = ["monday"]
    add, calls = added(cache, key=lambda a, b: (a, day[0]))
    add(1)
    day[0] = "tuesday"
    assert not add.cached(1)
    add(1)
    assert calls == [(1, 2), (1, 2)]


def test_key_and_inputs_get_the_arguments_bound_and_checked(cache):
    asked = []

    def key(*args, **kwargs):
        asked.append(("key", args, kwargs))
        return args

    def inputs(*args, **kwargs):
        asked.append(("inputs", args, kwargs))
        return [__file__]

    @cache.memoize(key=key, inputs=inputs)
    def add(a, b=2, *, c=3):
        return a + b + c

    for ask in (add, add.key, add.cached, add.refresh, add.forget):
        for args, kwargs in (((1,), {}), ((1, 2), {}), ((1,), {"c": 3}), ((), {"b": 2, "a": 1})):
            ask(*args, **kwargs)
            assert sorted(name for name, *_ in asked) == ["inputs", "key"]
            assert [given for _, *given in asked] == [[(1, 2), {"c": 3}]] * 2
            asked.clear()
        with pytest.raises(TypeError, match=r"add\(\)"):
            ask(1, 2, 3)
        assert asked == []


@pytest.mark.parametrize("option", ["key", "inputs"])
def test_key_and_inputs_that_do_not_take_all_arguments_are_refused(cache, option):
    for function in (lambda a: [], lambda a, b, c: [], lambda *, a, b: []):
        with pytest.raises(OptionError, match=f"{option}= must take all arguments .*a, b=2"):
            added(cache, **{option: function})


def test_key_must_return_plain_data(cache):
    add, calls = added(cache, key=lambda a, b: object())
    with pytest.raises(KeyTypeError, match=r"key= returned .*add\(a=1.*plain"):
        add(1)
    assert calls == []


def test_ignored_parameters_do_not_identify_a_call(cache):
    calls = []

    @cache.memoize(ignore=("progress", "verbose"))
    def add(a, progress=None, **named):
        calls.append(a)
        return a

    assert add(1, print, verbose=object()) == add(1) == 1
    assert calls == [1]
    assert add.key(1, x=1) != add.key(1, x=2)


@pytest.mark.parametrize(
    "options",
    [
        {"key": "a"},
        {"key": 5},
        {"ignore": "a"},
        {"ignore": ("c",)},
        {"ignore": (1,)},
        {"ignore": 5},
        {"ignore": None},
        {"ignore": iter(["b"])},
        {"key": lambda a: a, "ignore": ("a",)},
        {"version": True},
        {"version": 1.5},
        {"version": b"1"},
        {"version": ("1",)},
        {"maxage": 5},
        {"max_age": "5"},
        {"inputs": "file"},
    ],
    ids=repr,
)
def test_wrong_options_are_refused_at_decoration(cache, options):
    with pytest.raises(OptionError):
        added(cache, **options)
    with pytest.raises(OptionError):

        @cache.builder(**options)
        def make(target, a, b=2):
            pass


def test_names_to_ignore_may_be_a_list_or_a_set(cache):
    for names in (["b"], {"b"}, frozenset(["b"])):
        add, _ = added(cache, ignore=names)
        assert add.key(1, 1) == add.key(1, 2)


class Nameless:
    def __call__(self, a):
        return a


def numbers(a):
    yield a


async def anumbers(a):
    yield a


class Plain:
    def __init__(self, rate=1):
        self.rate = rate

    def times(self, a):
        return a * self.rate


@dataclasses.dataclass
class Bound:
    name: str

    @Cache("nowhere").memoize
    def method(self, a):
        return a

    @classmethod
    def class_method(cls, a):
        return a


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a,
        numbers,
        anumbers,
        Plain,
        Nameless(),
        functools.partial(numbers, 1),
        staticmethod(lambda a: a),
        max,
        Plain().times,
        Bound("here").method,
        Bound.class_method,
        5,
        "add",
    ],
    ids=repr,
)
def test_what_can_not_be_decorated_is_refused(cache, function):
    with pytest.raises(OptionError):
        cache.memoize(function)
    with pytest.raises(OptionError):
        cache.memoize()(function)
    with pytest.raises(OptionError):
        cache.builder(function)


# -- methods -------------------------------------------------------------------------


def shop_class(cache):
    """Return a class with methods of every kind, and the list of calls."""
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Shop:
        """A shop."""

        name: str

        @cache.memoize
        def price(self, article, count=1):
            """Return a price."""
            calls.append((self.name, article))
            return f"{article} x {count} at {self.name}"

        @cache.memoize
        @staticmethod
        def static_above(article):
            calls.append(article)
            return f"{article} anywhere"

        @staticmethod
        @cache.memoize
        def static_below(article):
            calls.append(article)
            return f"{article} anywhere"

        @cache.memoize
        @classmethod
        def class_above(cls, article):
            calls.append((cls.__name__, article))
            return f"{article} of {cls.__name__}"

        @classmethod
        @cache.memoize
        def class_below(cls, article):
            calls.append((cls.__name__, article))
            return f"{article} of {cls.__name__}"

        @cache.memoize
        async def order(self, article):
            calls.append((self.name, article))
            return f"{article} from {self.name}"

        @cache.builder
        def receipt(self, target, article):
            calls.append((self.name, article))
            target.write_text(f"{article} from {self.name}")

    return Shop, calls


def test_a_method_counts_its_object_among_the_arguments(cache):
    shop_kind, calls = shop_class(cache)
    here, there = shop_kind("here"), shop_kind("there")
    assert here.price("pear") == here.price(article="pear", count=1) == "pear x 1 at here"
    assert there.price("pear") == "pear x 1 at there"
    assert shop_kind.price(shop_kind("here"), "pear") == "pear x 1 at here"
    assert calls == [("here", "pear"), ("there", "pear")]


def test_bound_methods_answer_every_question(cache):
    shop_kind, calls = shop_class(cache)
    here, there = shop_kind("here"), shop_kind("there")
    assert not here.price.cached("pear")
    assert here.price.peek("pear", default="nothing") == "nothing"
    assert here.price("pear") == here.price.refresh("pear") == "pear x 1 at here"
    assert calls == [("here", "pear")] * 2
    assert here.price.cached("pear")
    assert not there.price.cached("pear")
    assert here.price.peek("pear") == cache.get(here.price.key("pear")) == "pear x 1 at here"
    assert here.price.key("pear") == shop_kind.price.key(here, "pear")
    assert here.price.__wrapped__("plum", 2) == "plum x 2 at here"
    assert not here.price.cached("plum", 2)
    assert here.price.forget("pear")
    assert not here.price.forget("pear")
    here.price("pear"), there.price("pear")
    assert here.price.forget_all() == 2


def test_a_bound_method_looks_like_one(cache):
    shop_kind, _ = shop_class(cache)
    here = shop_kind("here")
    assert str(inspect.signature(here.price)) == "(article, count=1)"
    assert str(inspect.signature(shop_kind.price)) == "(self, article, count=1)"
    assert here.price.__name__ == "price"
    assert here.price.__doc__ == "Return a price."
    assert here.price.__self__ is here
    assert here.price == here.price
    assert len({here.price, here.price, shop_kind("there").price}) == 2
    assert inspect.iscoroutinefunction(here.order)
    assert not inspect.iscoroutinefunction(here.price)


@pytest.mark.parametrize("way", ["static_above", "static_below"])
def test_static_methods_are_called_without_an_object(cache, way):
    shop_kind, calls = shop_class(cache)
    on_class, on_object = getattr(shop_kind, way), getattr(shop_kind("here"), way)
    assert on_class("pear") == on_object("pear") == "pear anywhere"
    assert calls == ["pear"]
    assert on_object.cached("pear")
    assert cache.get(on_class.key("pear")) == "pear anywhere"
    assert on_object.forget("pear")
    assert str(inspect.signature(on_object)) == "(article)"


@pytest.mark.parametrize("way", ["class_above", "class_below"])
def test_class_methods_count_their_class_among_the_arguments(cache, way):
    shop_kind, calls = shop_class(cache)

    class Branch(shop_kind):
        pass

    on_class, on_object = getattr(shop_kind, way), getattr(shop_kind("here"), way)
    assert on_class("pear") == on_object("pear") == "pear of Shop"
    assert getattr(Branch, way)("pear") == "pear of Branch"
    assert calls == [("Shop", "pear"), ("Branch", "pear")]
    assert str(inspect.signature(on_class)) == "(article)"
    if way == "class_below" and unbound_below:
        return
    assert on_object.cached("pear")
    assert cache.get(on_class.key("pear")) == "pear of Shop"
    assert on_class.refresh("pear") == "pear of Shop"
    assert on_class.peek("plum", default=0) == 0
    assert on_class.__wrapped__("fig") == "fig of Shop"
    assert on_class.forget("pear")
    assert getattr(Branch, way).cached("pear")


@pytest.mark.parametrize("ask", ["__call__", "key", "cached", "peek", "refresh", "forget"])
def test_a_class_method_that_is_not_told_its_class_is_refused_with_the_way_out(cache, ask):
    class Shop:
        @classmethod
        @cache.memoize
        def price(cls, article="pear"):
            return article

        @classmethod
        @cache.builder
        def page(cls, target, article="pear"):
            target.write_text(article)

    for name in ("price", "page"):
        unbound = getattr(vars(Shop)[name].__func__, ask)  # all that Python 3.13 hands on
        for args in ((), ("pear",), ("pear", "plum")):
            with pytest.raises(TypeError, match="above @classmethod"):
                unbound(*args)
        unbound(Shop, "pear"), unbound(Shop)
    assert [Shop.price(), Shop.page().read_text()] == ["pear", "pear"]


def test_an_object_that_is_no_plain_data_is_refused_with_the_ways_out(cache):
    class Shop:
        def __init__(self, name):
            self.name = name

        @cache.memoize
        def price(self, article):
            return article

    with pytest.raises(KeyTypeError) as caught:
        Shop("here").price("pear")
    for part in ("'self'", "Shop", "price", "key=", "ignore=('self',)", "__atomcache_key__"):
        assert part in str(caught.value)


def test_the_ways_out_for_objects_that_are_no_plain_data_work(cache):
    calls = []

    class Shop:
        def __init__(self, name):
            self.name = name

        @cache.memoize(key=lambda self, article: (self.name, article))
        def by_key(self, article):
            calls.append("key")
            return self.name

        @cache.memoize(ignore=("self",))
        def by_ignore(self, article):
            calls.append("ignore")
            return self.name

    class Known(Shop):
        def __atomcache_key__(self):
            return self.name

        @cache.memoize
        def by_method(self, article):
            calls.append("method")
            return self.name

    here, there = Known("here"), Known("there")
    assert [here.by_key(1), Known("here").by_key(1), there.by_key(1)] == ["here", "here", "there"]
    assert [here.by_ignore(1), there.by_ignore(1)] == ["here", "here"]
    assert [here.by_method(1), Known("here").by_method(1), there.by_method(1)] == [
        "here",
        "here",
        "there",
    ]
    assert calls == ["key", "key", "ignore", "method", "method"]


# -- builders ------------------------------------------------------------------------


def parameters(builder):
    """Return the parameters of what returns a path."""
    signature = inspect.signature(builder)
    assert signature.return_annotation is Path
    return str(signature.replace(return_annotation=inspect.Signature.empty))


def test_a_builder_says_that_it_returns_a_path_and_takes_no_target(cache):
    @cache.builder
    def page(target: Path, number: int = 1) -> None:
        target.write_text(str(number))

    class Shop:
        @cache.builder
        async def page(self, target: Path, number: int) -> None:
            target.write_text(str(number))

    assert parameters(page) == "(number: int = 1)"
    assert page.__annotations__ == {"number": int, "return": Path}
    assert inspect.get_annotations(page) == {"number": int, "return": Path}
    assert Shop.page.__annotations__ == {"number": int, "return": Path}
    assert parameters(Shop().page) == "(number: int)"


def test_a_builders_calls_leave_the_target_out(cache):
    calls = []

    @cache.builder(name="greeting.txt")
    def greet(target, who, mark="!"):
        """Write a greeting."""
        calls.append(who)
        target.write_text(f"hello {who}{mark}")

    made = greet("world")
    assert made.name == "greeting.txt"
    assert made.read_text() == "hello world!"
    assert greet(mark="!", who="world") == made
    assert calls == ["world"]
    assert parameters(greet) == "(who, mark='!')"
    assert greet.cached("world")
    assert greet.peek("world") == cache.get_path(greet.key("world")) == made
    assert greet.peek("moon", default=None) is None
    assert greet.forget("world")
    assert not made.exists()
    with pytest.raises(TypeError, match="greet"):
        greet()
    with pytest.raises(TypeError, match="greet"):
        greet("a", "b", "c")


def test_a_builder_is_named_after_its_function_and_may_make_a_folder(cache):
    @cache.builder
    def pages(target):
        target.mkdir()
        (target / "one").write_text("1")

    assert pages().name == "pages"
    assert (pages() / "one").read_text() == "1"
    assert parameters(pages) == "()"


def test_builders_that_could_not_work_are_refused_at_decoration(cache):
    with pytest.raises(OptionError, match="no parameter for the path"):

        @cache.builder
        def nothing():
            pass

    with pytest.raises(OptionError, match="no parameter for the path"):

        @cache.builder
        def named(*, target):
            pass

    with pytest.raises(EntryNameError):
        cache.builder(name="a/b")


def test_a_builder_of_any_number_of_arguments_gets_its_target_first(cache):
    @cache.builder
    def join(*parts):
        parts[0].write_text(" ".join(parts[1:]))

    assert join("a", "b").read_text() == "a b"


def test_a_builder_method_takes_its_target_after_self(cache):
    shop_kind, calls = shop_class(cache)
    here, there = shop_kind("here"), shop_kind("there")
    assert here.receipt("pear").read_text() == "pear from here"
    assert here.receipt(article="pear") == shop_kind.receipt(here, "pear")
    assert there.receipt("pear").read_text() == "pear from there"
    assert calls == [("here", "pear"), ("there", "pear")]
    assert parameters(here.receipt) == "(article)"
    assert parameters(shop_kind.receipt) == "(self, article)"
    assert here.receipt.refresh("pear").read_text() == "pear from here"
    assert here.receipt.peek("pear") == cache.get_path(here.receipt.key("pear"))


def passing_on(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def builder_method_class(cache):
    """Return a class whose builders are methods, though nobody tells them so."""

    class Shop(NamedTuple):
        name: str

        @cache.builder
        def plain(self, target):
            target.write_text(f"of {self.name}")

        @property
        @cache.builder
        def as_property(self, target):
            target.write_text(f"of {self.name}")

        @passing_on
        @cache.builder
        def wrapped(self, target):
            target.write_text(f"of {self.name}")

    @cache.builder
    def assigned(self, target):
        target.write_text(f"of {self.name}")

    @cache.builder
    def oddly_named(shop, target):
        target.write_text(f"of {shop.name}")

    @functools.partial(setattr, Shop, "assigned_property")
    @property
    @cache.builder
    def assigned_property(self, target):
        target.write_text(f"of {self.name}")

    Shop.assigned, Shop.oddly_named = assigned, oddly_named
    return Shop


@pytest.mark.parametrize("way", ["plain", "wrapped", "assigned", "oddly_named"])
def test_a_builder_that_nobody_tells_it_is_a_method_takes_its_target_after_self(cache, way):
    shop = builder_method_class(cache)
    for name in ("here", "there"):
        made = getattr(shop(name), way)()
        assert made.read_text() == f"of {name}"
        assert getattr(shop(name), way)() == made
    if way != "oddly_named":
        assert getattr(shop, way)(shop("there")) == made


@pytest.mark.parametrize("way", ["as_property", "assigned_property"])
def test_a_builder_may_be_a_property(cache, way):
    shop = builder_method_class(cache)
    assert getattr(shop("here"), way).read_text() == "of here"
    assert getattr(shop("there"), way).read_text() == "of there"


def test_a_builder_may_be_a_cached_property(cache):
    @dataclasses.dataclass
    class Shop:
        name: str

        @functools.cached_property
        @cache.builder
        def page(self, target):
            target.write_text(f"of {self.name}")

    here = Shop("here")
    assert here.page.read_text() == "of here"
    assert Shop("here").page == here.page
    assert Shop("there").page.read_text() == "of there"


def test_a_builder_that_is_a_function_and_a_method_is_both(cache):
    @cache.builder
    def page(shop, target=None):
        (target or shop).write_text(f"of {getattr(shop, 'name', 'nobody')}")

    @dataclasses.dataclass
    class Shop:
        name: str

    Shop.page = page
    assert Shop("here").page().read_text() == "of here"
    assert page().read_text() == f"of {page().name}"
    here = Shop("here")
    assert here.page == here.page
    assert here.page.cached()


@pytest.mark.parametrize("way", ["above", "below"])
def test_a_static_builder_takes_its_target_first(cache, way):
    class Shop:
        @cache.builder
        @staticmethod
        def above(target, article):
            target.write_text(article)

        @staticmethod
        @cache.builder
        def below(target, article):
            target.write_text(article)

    made = getattr(Shop, way)("pear")
    assert made.read_text() == "pear"
    assert getattr(Shop(), way)("pear") == made
    assert parameters(getattr(Shop, way)) == "(article)"


@pytest.mark.parametrize("way", ["above", "below"])
def test_a_class_builder_takes_its_target_after_the_class(cache, way):
    class Shop:
        @cache.builder
        @classmethod
        def above(kind, target, article):  # noqa: N804
            target.write_text(f"{article} of {kind.__name__}")

        @classmethod
        @cache.builder
        def below(cls, target, article):
            target.write_text(f"{article} of {cls.__name__}")

    made = getattr(Shop, way)("pear")
    assert made.read_text() == "pear of Shop"
    assert getattr(Shop(), way)("pear") == made
    assert parameters(getattr(Shop, way)) == "(article)"


def test_a_builder_of_a_module_is_the_same_after_a_class_took_it_in(cache):
    @cache.builder
    def write(target, text):
        target.write_text(text)

    class Uses:
        writer = write
        static_writer = staticmethod(write)

    assert write("text").read_text() == "text"
    assert parameters(write) == "(text)"
    assert Uses.writer("text") == Uses.static_writer("text") == write("text")


# -- coroutines ----------------------------------------------------------------------


def test_a_coroutine_function_stays_one(cache):
    calls = []

    @cache.memoize
    async def fetch(page, lang="en"):
        """Fetch a page."""
        calls.append(page)
        await asyncio.sleep(0)
        return f"{page} in {lang}"

    async def use():
        first = await fetch("index")
        assert first == await fetch(page="index", lang="en") == "index in en"
        assert calls == ["index"]
        assert await fetch.refresh("index") == "index in en"
        assert calls == ["index", "index"]
        assert await fetch.__wrapped__("index") == "index in en"
        assert await asyncio.gather(*[fetch("cold") for _ in range(20)]) == ["cold in en"] * 20
        assert calls == ["index"] * 3 + ["cold"]

    assert inspect.iscoroutinefunction(fetch)
    assert asyncio.iscoroutinefunction(fetch)
    assert inspect.iscoroutinefunction(fetch.__wrapped__)
    asyncio.run(use())
    assert fetch.cached("index")
    assert fetch.peek("index") == cache.get(fetch.key("index")) == "index in en"
    assert fetch.forget("index")
    assert fetch.forget_all() == 1
    assert str(inspect.signature(fetch)) == "(page, lang='en')"


def test_a_plain_function_does_not_look_like_a_coroutine_function(cache):
    add, _ = added(cache)
    assert not inspect.iscoroutinefunction(add)
    assert not asyncio.iscoroutinefunction(add)


def test_a_wrapper_is_what_it_is_and_not_what_it_wraps(cache):
    async def fetch(page):
        return f"page {page}"

    def several(page):
        yield from (page, page)

    def plain(page):
        return f"page {page}"

    @cache.memoize
    @functools.wraps(fetch)
    def finished(page):
        return asyncio.run(fetch(page))

    @cache.memoize
    @functools.wraps(several)
    def listed(page):
        return list(several(page))

    @cache.memoize
    @functools.wraps(plain)
    async def awaited(page):
        return plain(page)

    @cache.memoize
    @functools.wraps(fetch)
    async def passed_on(page):
        return await fetch(page)

    assert finished(1) == finished(1) == "page 1"
    assert listed(2) == listed(2) == [2, 2]
    assert asyncio.run(awaited(3)) == asyncio.run(awaited(3)) == "page 3"
    assert asyncio.run(passed_on(4)) == "page 4"
    kinds = [inspect.iscoroutinefunction(f) for f in (finished, listed, awaited, passed_on)]
    assert kinds == [False, False, True, True]
    with pytest.raises(OptionError, match="generator function"):

        @cache.memoize
        @functools.wraps(plain)
        def lazy(page):
            yield page


def test_a_wrapper_that_returns_a_coroutine_is_told_what_it_has_to_be(cache):
    @cache.memoize
    @passing_on
    async def fetch(page):
        return page

    with pytest.raises(OptionError, match="put one that is a coroutine function"):
        fetch(1)


@pytest.mark.parametrize("options", [{}, {"inputs": [__file__]}], ids=["", "inputs"])
def test_a_coroutine_function_is_refused_where_nobody_awaits(cache, options):
    async def fetch(*target):
        return "page"

    for ask in (cache.get_or_create, cache.refresh):
        for factory in (fetch, lambda: fetch()):
            with pytest.raises(OptionError, match=r"coroutine.* cache\.aget_or_create instead"):
                ask("page", factory, **options)
    for ask in (cache.get_or_create_path, cache.refresh_path):
        with pytest.raises(OptionError, match=r"cache\.aget_or_create_path instead"):
            ask("page", fetch, name="page", **options)
    gc.collect()  # a coroutine that nobody closed warns when it goes
    assert "page" not in cache


def test_coroutine_methods_are_awaited_like_others(cache):
    shop_kind, calls = shop_class(cache)
    here = shop_kind("here")

    async def use():
        assert await here.order("pear") == await here.order("pear") == "pear from here"
        assert await here.order.refresh("pear") == "pear from here"

    asyncio.run(use())
    assert calls == [("here", "pear")] * 2
    assert here.order.cached("pear")


@pytest.mark.parametrize("way", ["above", "below"])
def test_coroutine_class_methods_stay_coroutine_functions(cache, way):
    class Shop:
        @cache.memoize
        @classmethod
        async def above(cls, article):
            return f"{article} of {cls.__name__}"

        @classmethod
        @cache.memoize
        async def below(cls, article):
            return f"{article} of {cls.__name__}"

    method = getattr(Shop, way)
    assert inspect.iscoroutinefunction(method)
    assert asyncio.run(method("pear")) == "pear of Shop"
    if way == "above" or not unbound_below:
        assert method.cached("pear")


def test_a_coroutine_function_may_build_files(cache):
    @cache.builder(name="page.html")
    async def page(target, number):
        await asyncio.sleep(0)
        target.write_text(f"page {number}")

    async def use():
        made = await page(1)
        assert made.read_text() == "page 1"
        assert await page(number=1) == made
        assert (await page.refresh(1)).read_text() == "page 1"

    asyncio.run(use())
    assert inspect.iscoroutinefunction(page)
    assert page.peek(1).name == "page.html"


def test_wrong_arguments_of_a_coroutine_function_are_a_type_error(cache):
    @cache.memoize
    async def fetch(page):
        return page

    with pytest.raises(TypeError, match="fetch"):
        asyncio.run(fetch())


# -- what tools see ------------------------------------------------------------------

LIBRARY = '''
"""A library that decorates."""

import dataclasses

from atomcache import Cache

cache = Cache("cache")


@cache.memoize
def double(number: int, *, times: int = 2) -> int:
    """Return a number, doubled.

    >>> double(2)
    4
    """
    return number * times


@cache.builder
def page(target, number):
    """Write a page.

    >>> page(1).read_text()
    'page 1'
    """
    target.write_text(f"page {number}")


@cache.memoize
async def fetch(name):
    """Fetch something."""
    return name


@dataclasses.dataclass(frozen=True)
class Shop:
    """A shop."""

    name: str

    @cache.memoize
    def price(self, article):
        """Return a price.

        >>> Shop("here").price("pear")
        'pear at here'
        """
        return f"{article} at {self.name}"

    @cache.memoize
    @staticmethod
    def static_above(article):
        """Do so.

        >>> Shop.static_above(1)
        1
        """
        return article

    @staticmethod
    @cache.memoize
    def static_below(article):
        """Do so.

        >>> Shop.static_below(1)
        1
        """
        return article

    @cache.memoize
    @classmethod
    def class_above(cls, article):
        """Do so.

        >>> Shop.class_above(1)
        1
        """
        return article

    @classmethod
    @cache.memoize
    def class_below(cls, article):
        """Do so.

        >>> Shop.class_below(1)
        1
        """
        return article
'''


def run(folder, code, *arguments):
    """Run a script in a process of its own, and return what it printed."""
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Return a module with decorated functions at its top."""
    (tmp_path / "decorates.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import decorates

    yield decorates
    del sys.modules["decorates"]


def test_name_docstring_and_signature_are_the_functions(library):
    double = library.double
    assert double.__name__ == double.__qualname__ == "double"
    assert double.__module__ == "decorates"
    assert double.__doc__ == library.double.__wrapped__.__doc__
    assert inspect.getdoc(double).startswith("Return a number, doubled.")
    assert str(inspect.signature(double)) == "(number: int, *, times: int = 2) -> int"
    assert double.__annotations__ == {"number": int, "times": int, "return": int}
    assert parameters(library.page) == "(number)"
    assert "decorates.double" in repr(double)


def test_the_class_of_decorated_functions_has_a_signature_too():
    assert "options" in inspect.signature(Memoized).parameters
    assert "options" not in inspect.signature(Memoized.__call__).parameters


WAYS = ["static_above", "static_below", "class_above", "class_below"]


@pytest.mark.parametrize("way", WAYS)
def test_methods_keep_name_and_docstring(library, way):
    for found in (getattr(library.Shop, way), getattr(library.Shop("here"), way)):
        assert found.__name__ == way
        assert found.__qualname__ == f"Shop.{way}"
        assert inspect.getdoc(found).startswith("Do so.")


@pytest.mark.parametrize("name", ["double", "page", "fetch"])
def test_a_function_is_pickled_and_copied_by_its_name(library, name):
    function = getattr(library, name)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function
    assert copy.copy(function) is function
    assert copy.deepcopy([function])[0] is function


def test_bound_methods_can_be_pickled_and_copied(library):
    here = library.Shop("here")
    for made in (pickle.loads(pickle.dumps(here.price)), copy.copy(here.price)):
        assert made("pear") == "pear at here"
        assert made.cached("pear")
    assert pickle.loads(pickle.dumps(library.Shop.price)) is library.Shop.price


@pytest.mark.parametrize("way", WAYS)
def test_static_and_class_methods_can_be_pickled(library, way):
    method = getattr(library.Shop, way)
    assert pickle.loads(pickle.dumps(method)) == method
    assert pickle.loads(pickle.dumps(method))(5) == 5


def test_functions_can_be_sent_to_spawned_workers(tmp_path):
    (tmp_path / "decorates.py").write_text(LIBRARY)
    code = """
import multiprocessing
from decorates import Shop, double, page

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply_async(double, (3,)).get(60), double.cached(3))
        print(pool.apply_async(Shop("here").price, ("pear",)).get(60))
        print(pool.apply_async(page, (7,)).get(60) == page.peek(7))
"""
    assert run(tmp_path, code) == ["6", "True", "pear", "at", "here", "True"]


def test_doctests_are_found(library):
    import doctest

    tests = doctest.DocTestFinder(exclude_empty=True).find(library)
    found = {test.name.removeprefix("decorates.") for test in tests if test.examples}
    assert found == {"double", "page", "Shop.price", *(f"Shop.{way}" for way in WAYS)}
    runner = doctest.DocTestRunner()
    for test in tests:
        assert runner.run(test).failed == 0
    assert runner.tries == 7


def test_a_function_can_be_used_where_a_callable_is(library):
    assert list(map(library.double, [1, 2])) == [2, 4]
    assert functools.partial(library.double, times=3)(2) == 6
    assert {library.double: 1}[library.double] == 1


# -- processes -----------------------------------------------------------------------


def call_price(line, cache, **options):
    @cache.memoize(**options)
    def price(article, count=1):
        line.tell("building")
        line.hear("go on")
        return article, count, os.getpid()

    return price("pear", count=1)


def only_claim(cache):
    """Return the one claim in a cache folder."""
    [claim] = [path for path in leftovers(cache.directory) if path.endswith(".temp")]
    return claim


@counts_sleepers
def test_of_8_processes_that_call_one_function_one_runs_it(crew, cache):
    builder = crew.start(call_price, cache)
    builder.hear("building")
    for _ in range(7):
        crew.start(call_price, cache)
    until(lambda: sleepers(only_claim(cache)) == 7, "the others sleep")
    builder.tell("go on")
    assert crew.results() == [("pear", 1, builder.pid)] * 8
    assert leftovers(cache.directory) == []


def test_a_timeout_of_the_decorator_names_the_call(crew, cache):
    crew.start(call_price, cache).hear("building")
    with pytest.raises(BuildTimeout, match=r"price\(article='pear', count=1\)"):
        call_price(None, cache, timeout=0)


# -- refresh -------------------------------------------------------------------------


def ask(line, cache, how, word):
    def factory():
        line.tell("building")
        line.hear("go on")
        return word

    return getattr(cache, how)("key", factory)


def ask_path(line, cache, how, word, as_folder):
    def build(target):
        line.tell("building")
        if as_folder:
            target.mkdir()
        (target / "in" if as_folder else target).write_text(word)
        line.hear("go on")

    made = getattr(cache, how)("key", build, name="made")
    return (made / "in" if as_folder else made).read_text()


def test_until_a_refresh_is_done_others_see_the_old_value(crew, cache):
    cache.set("key", "old")
    refresher = crew.start(ask, cache, "refresh", "new")
    refresher.hear("building")
    assert cache.get("key") == "old"
    assert cache.get_or_create("key", lambda: "wrong", timeout=0) == "old"
    refresher.tell("go on")
    assert refresher.result() == "new"
    assert cache.get("key") == cache.get_or_create("key", lambda: "wrong") == "new"
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_until_a_path_is_refreshed_others_see_the_old_one(crew, cache, as_folder):
    def read():
        made = cache.get_path("key")
        return (made / "in" if as_folder else made).read_text()

    first = crew.start(ask_path, cache, "get_or_create_path", "old", as_folder)
    first.hear("building")
    first.tell("go on")
    assert first.result() == "old"
    refresher = crew.start(ask_path, cache, "refresh_path", "new", as_folder)
    refresher.hear("building")
    assert read() == "old"
    refresher.tell("go on")
    assert refresher.result() == "new"
    assert read() == "new"
    assert leftovers(cache.directory) == []


def test_a_refresh_of_nothing_makes_it(cache):
    assert cache.refresh("key", lambda: 1) == 1
    assert cache.get("key") == 1
    made = cache.refresh_path("key", lambda target: target.write_text("1"), name="made")
    assert cache.get_path("key") == made


def test_a_refresh_that_fails_leaves_the_old_value(cache):
    def fail(*_):
        raise LookupError("no")

    cache.set("key", "old")
    old = cache.get_or_create_path("key", lambda target: target.write_text("old"), name="made")
    with pytest.raises(LookupError):
        cache.refresh("key", fail)
    with pytest.raises(LookupError):
        cache.refresh_path("key", fail, name="made")
    assert cache.get("key") == "old"
    assert old.read_text() == "old"
    assert leftovers(cache.directory) == []


@counts_sleepers
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((ask, "get_or_create"), (ask, "refresh")),
        ((ask, "refresh"), (ask, "refresh")),
        ((ask_path, "get_or_create_path"), (ask_path, "refresh_path")),
        ((ask_path, "refresh_path"), (ask_path, "refresh_path")),
    ],
    ids=["value", "refreshed value", "path", "refreshed path"],
)
def test_a_refresher_takes_nothing_whose_build_began_before_it_asked(crew, cache, first, then):
    more = (False,) if first[0] is ask_path else ()
    early = crew.start(first[0], cache, first[1], "early", *more)
    early.hear("building")
    late = crew.start(then[0], cache, then[1], "late", *more)
    until(lambda: sleepers(only_claim(cache)) == 1, "the refresher sleeps")
    early.tell("go on")
    assert early.result() == "early"
    late.hear("building")
    late.tell("go on")
    assert late.result() == "late"
    assert leftovers(cache.directory) == []


@counts_sleepers
def test_those_who_refresh_during_a_build_share_the_next_one(crew, cache):
    cache.set("key", "old")
    early = crew.start(ask, cache, "refresh", "early")
    early.hear("building")
    late = [crew.start(ask, cache, "refresh", f"late {n}") for n in range(4)]
    until(lambda: sleepers(only_claim(cache)) == 4, "the refreshers sleep")
    early.tell("go on")
    assert early.result() == "early"
    builder = crew.first_to_speak(late)
    builder.hear("building")
    builder.tell("go on")
    made = builder.result()
    assert made == f"late {late.index(builder)}"
    late.remove(builder)
    assert [each.result() for each in late] == [made] * 3  # who built would wait for a word
    assert cache.get("key") == made


class SlowCodec:
    """A codec that takes its time to write a value down."""

    name = "slow"

    def __init__(self, line):
        self.line = line

    def encode(self, value):
        if self.line is not None:
            self.line.tell("storing")
            self.line.hear("go on")
        return value.encode()

    def decode(self, payload):
        return payload.decode()


def create_slowly(line, cache):
    return cache.get_or_create("key", lambda: "early", codec=SlowCodec(line))


def refresh_quickly(line, cache):
    return cache.refresh("key", lambda: "late", codec=SlowCodec(None))


@counts_sleepers
def test_a_refresher_takes_nothing_that_was_built_and_not_yet_stored_when_it_asked(crew, cache):
    early = crew.start(create_slowly, cache)
    early.hear("storing")
    late = crew.start(refresh_quickly, cache)
    until(lambda: sleepers(only_claim(cache)) == 1, "the refresher sleeps")
    early.tell("go on")
    assert early.result() == "early"
    assert late.result() == "late"


class Crowd:
    """Threads that ask one after another, and how many of them sleep."""

    def __init__(self, monkeypatch):
        self.asleep = 0
        self.threads = []
        self.answers = {}
        wait = Flight.wait

        def count(flight, timeout):
            self.asleep += 1
            try:
                return wait(flight, timeout)
            finally:
                self.asleep -= 1

        monkeypatch.setattr(Flight, "wait", count)

    def start(self, name, function, *given):
        def run():
            self.answers[name] = function(*given)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def join(self):
        for thread in self.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self.threads)
        return self.answers


def held(value, builds, may_end, unstored=False):
    """Return a factory that waits for the word."""

    def factory():
        builds.append(value)
        assert may_end.wait(60)
        if unstored:
            raise DontStore(value)
        return value

    return factory


@pytest.mark.parametrize("unstored", [False, True], ids=["stored", "not stored"])
def test_a_thread_that_refreshes_takes_nothing_whose_build_began_before(
    cache, monkeypatch, unstored
):
    crowd = Crowd(monkeypatch)
    builds = []
    may_end = threading.Event()
    crowd.start("early", cache.get_or_create, "key", held("early", builds, may_end, unstored))
    until(lambda: builds, "the first builds")
    crowd.start("late", cache.refresh, "key", held("late", builds, may_end))
    until(lambda: crowd.asleep == 1, "the refresher sleeps")
    may_end.set()
    assert crowd.join() == {"early": "early", "late": "late"}
    assert cache.get("key") == "late"


def test_refreshing_a_call_makes_it_anew(cache):
    add, calls = added(cache)
    assert add.refresh(1) == add.refresh(1, 2) == add(1) == 3
    assert calls == [(1, 2), (1, 2)]


# -- DontStore -----------------------------------------------------------------------


def test_what_is_not_to_be_stored_is_returned_and_not_stored(cache):
    calls = []

    @cache.memoize
    def look_up(name):
        calls.append(name)
        raise DontStore(["nothing yet"])

    assert look_up("a") == look_up("a") == ["nothing yet"]
    assert calls == ["a", "a"]
    assert not look_up.cached("a")
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []


def test_a_refresh_that_is_not_to_be_stored_leaves_the_old_value(cache):
    def look_up():
        raise DontStore("unsure")

    cache.set("key", "old")
    assert cache.refresh("key", look_up) == "unsure"
    assert cache.get("key") == "old"
    assert leftovers(cache.directory) == []


def test_what_no_codec_could_store_can_still_be_returned(cache):
    thing = object()

    def look_up():
        raise DontStore(thing)

    assert cache.get_or_create("key", look_up) is thing


def test_a_coroutine_may_ask_not_to_be_stored(cache):
    @cache.memoize
    async def look_up(name):
        raise DontStore(name)

    @cache.builder
    async def page(target):
        target.write_text("draft")
        raise DontStore

    assert asyncio.run(look_up("a")) == "a"
    assert not look_up.cached("a")
    assert asyncio.run(page()).read_text() == "draft"
    assert not page.cached()
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_a_path_that_is_not_to_be_stored_lies_outside_the_cache(cache, as_folder):
    @cache.builder(name="page.html")
    def page(target):
        if as_folder:
            target.mkdir()
        (target / "in" if as_folder else target).write_text("draft")
        raise DontStore

    made = page()
    assert made.name == "page.html"
    assert (made / "in" if as_folder else made).read_text() == "draft"
    assert not made.is_relative_to(cache.directory)
    assert page() != made
    assert not page.cached()
    assert leftovers(cache.directory) == []


def draft(line, cache):
    def build(target):
        target.write_text("draft")
        raise DontStore

    return str(cache.get_or_create_path("key", build, name="made"))


def test_a_path_that_is_not_stored_goes_with_its_process(crew, cache):
    member = crew.start(draft, cache)
    made = Path(member.result())
    member.process.join(60)
    assert made.name == "made"
    assert not made.parent.exists()


def test_threads_who_wait_for_what_is_not_stored_get_it_too(cache, monkeypatch):
    crowd = Crowd(monkeypatch)
    builds = []
    may_end = threading.Event()
    for n in range(4):
        crowd.start(n, cache.get_or_create, "key", held("unsure", builds, may_end, True))
    until(lambda: crowd.asleep == 3, "the others sleep")
    may_end.set()
    assert crowd.join() == dict.fromkeys(range(4), "unsure")
    assert builds == ["unsure"]


def ask_unstored(line, cache):
    def factory():
        line.tell("building")
        line.hear("go on")
        raise DontStore(os.getpid())

    return cache.get_or_create("key", factory)


@counts_sleepers
def test_other_processes_who_wait_for_what_is_not_stored_build_themselves(crew, cache):
    first = crew.start(ask_unstored, cache)
    first.hear("building")
    second = crew.start(ask_unstored, cache)
    until(lambda: sleepers(only_claim(cache)) == 1, "the other sleeps")
    first.tell("go on")
    assert first.result() == first.pid
    second.hear("building")
    second.tell("go on")
    assert second.result() == second.pid
    assert leftovers(cache.directory) == []


def test_keys_of_calls_are_found_where_inputs_are_a_default_of_the_cache(tmp_path):
    (tmp_path / "input").write_text("1")
    cache = Cache(tmp_path / "cache", inputs=[tmp_path / "input"])
    add, calls = added(cache)
    add(1)
    assert add(1) == add.peek(1) == cache.get(add.key(1)) == 3
    assert calls == [(1, 2)]
    assert add.key(1) in cache
    assert cache.remove(add.key(1))
    assert add.key(1) not in cache
    cache.set(add.key(1), "set")
    assert add(1) == "set"

    @cache.builder
    def page(target):
        target.touch()

    assert page() == cache.get_path(page.key())
    old = add.key(1)
    (tmp_path / "input").write_text("2")
    assert cache.get(old) == "set"
    assert cache.get(add.key(1)) is None


def test_what_a_key_of_old_inputs_asks_for_is_not_made_from_new_ones(tmp_path):
    (tmp_path / "input").write_text("1")
    cache = Cache(tmp_path / "cache", inputs=[tmp_path / "input"])
    add, _ = added(cache)
    old = add.key(1)
    (tmp_path / "input").write_text("2")
    assert cache.get_or_create(old, lambda: "new") == "new"
    (tmp_path / "input").write_text("1")
    assert not add.cached(1)
