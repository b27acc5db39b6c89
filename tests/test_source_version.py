"""With ``version="source"`` a key changes with what the code does, and with nothing else."""

import ast
import os
import subprocess
import sys

import pytest

from atomcache import OptionError, _source

SHOP = {
    "other.py": """
def fee(net):
    return 1
""",
    "shop/__init__.py": "",
    "shop/prices.py": '''
"""What things cost."""

import functools

from atomcache import Cache

import other

from . import taxes
from .paper import Receipt
from .rounding import to_cents

cache = Cache("cache")


def scaled(factor):
    """Decorate a function, so that it returns more."""

    def decorate(function):
        @functools.wraps(function)
        def scale(*args):
            return factor * function(*args)

        return scale

    return decorate


@scaled(2)
def postage(net):
    return 3


@cache.memoize(version="source")
def price(net, discount=0):
    """Return what an article costs."""
    # the tax comes first
    taxed = net + taxes.tax(net) - discount
    if taxed > 100:
        taxed -= 1
    return to_cents(taxed) + other.fee(net) + Receipt(net).cost() + postage(net)


def unused(net):
    return 4
''',
    "shop/taxes.py": """
def tax(net):
    return base(net) * 2


def base(net):
    return net // 5
""",
    "shop/rounding.py": '''
def to_cents(amount):
    """Return cents."""
    return round(amount * 100)
''',
    "shop/paper.py": '''
class Receipt:
    """A piece of paper."""

    def __init__(self, net):
        self.net = net

    def cost(self):
        """Return what the paper costs."""
        return 1
''',
}

PRINT_KEY = """
from atomcache._keys import digest
from shop.prices import price

print(digest(b"v", price.key(1)).hex())
"""


def write(folder, files):
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)


def run(folder, code):
    """Run code in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        # Bytecode is matched to its source by whole seconds and size.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def key_after(folder, name, old, new):
    """Return the key of a call after a part of one file was replaced."""
    assert SHOP[name].count(old) == 1
    write(folder, {**SHOP, name: SHOP[name].replace(old, new)})
    return run(folder, PRINT_KEY)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """Return the key of a call of the code as it is above."""
    folder = tmp_path_factory.mktemp("shop")
    write(folder, SHOP)
    return run(folder, PRINT_KEY)


def test_the_key_is_the_same_in_every_process_and_place(tmp_path, key):
    write(tmp_path, SHOP)
    assert run(tmp_path, PRINT_KEY) == key


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/prices.py", "taxed > 100", "taxed > 200"),
        ("shop/prices.py", "taxed > 100", "taxed >= 100"),
        ("shop/prices.py", "        taxed -= 1\n    return", "        taxed -= 1\n        return"),
        ("shop/prices.py", "- discount", "+ discount"),
        ("shop/prices.py", "discount=0", "discount=1"),
        ("shop/rounding.py", "* 100", "* 1000"),
        ("shop/taxes.py", "* 2", "* 3"),
        ("shop/taxes.py", "// 5", "/ 5"),
        ("shop/paper.py", "return 1", "return 2"),
        ("shop/prices.py", "return 3", "return 4"),
        ("shop/prices.py", "scaled(2)", "scaled(3)"),
        ("shop/prices.py", "factor * function(*args)", "factor + function(*args)"),
    ],
    ids=[
        "constant",
        "operator",
        "indentation",
        "sign",
        "default",
        "helper",
        "helper of a module",
        "helper of a helper",
        "method of a class",
        "decorated helper",
        "options of a helper's decorator",
        "decorator of a helper",
    ],
)
def test_an_edit_of_what_the_code_does_changes_the_key(tmp_path, key, name, old, new):
    assert key_after(tmp_path, name, old, new) != key


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/prices.py", "    # the tax comes first\n", ""),
        ("shop/prices.py", "# the tax comes first", "# and so on"),
        ("shop/prices.py", "    if taxed", "\n\n    if taxed"),
        ("shop/prices.py", "if taxed > 100:", "if (taxed >\n 100):"),
        ("shop/prices.py", '    """Return what an article costs."""\n', ""),
        ("shop/prices.py", "Return what an article costs.", "Return the price."),
        ("shop/prices.py", "What things cost.", "All prices."),
        ("shop/prices.py", '(version="source")', '(version="source", tags=["price"])'),
        ("shop/rounding.py", "Return cents.", "Round."),
        ("shop/rounding.py", "return round", "# half to even\n    return round"),
        ("shop/paper.py", "A piece of paper.", "A slip."),
        ("shop/paper.py", "Return what the paper costs.", "Return a price."),
        ("shop/prices.py", "return 4", "return 5"),
        ("other.py", "return 1", "return 2"),
    ],
    ids=[
        "comment removed",
        "comment",
        "empty lines",
        "layout",
        "docstring removed",
        "docstring",
        "docstring of the module",
        "its own decorator",
        "docstring of a helper",
        "comment in a helper",
        "docstring of a class",
        "docstring of a method",
        "function that is not called",
        "another package",
    ],
)
def test_an_edit_of_anything_else_leaves_the_key(tmp_path, key, name, old, new):
    assert key_after(tmp_path, name, old, new) == key


def test_empty_parts_of_f_strings_which_some_pythons_add_do_not_count():
    """Python 3.12.1 has an empty constant behind the width of ``{x:>{w}}``."""
    tree = ast.parse("f'{x:>{w}}!'")
    other = ast.parse("f'{x:>{w}}!'")
    for node in ast.walk(other):
        if isinstance(node, ast.JoinedStr):
            node.values.append(ast.Constant(""))
    assert _source._write(other) == _source._write(tree)
    assert _source._write(ast.parse("f'{x:>{w}}?'")) != _source._write(tree)


BEHIND = {
    "shop/__init__.py": "",
    "shop/prices.py": """
import functools
from collections import namedtuple
from math import pi

from atomcache import Cache

from . import rates
from .rates import FEE as fee, UNUSED
from .rates import *

cache = Cache("cache", max_age=60)
STEP = 10
WIDTH: int = 4
WIDTH += 0
ELSE = 1
Size = namedtuple("Size", "width")


def scale(factor, net):
    return net * factor


def add(net):
    return net + 20


def take(net):
    return net - 30


def half_off(net):
    return net / 2


double = functools.partial(scale, 2)
KINDS = {"plain": [add], "sale": (take,)}


def lift(net):
    return net + 90


KINDS["plain"].append(lift)


def handle(net):
    return 40


HANDLERS = {}


def register(name):
    return functools.partial(HANDLERS.setdefault, name)


register("late")(half_off)


def bound(factor):
    return lambda function: functools.partial(function, factor)


@bound(2)
def raised(factor, net):
    return net ** factor


@functools.singledispatch
def stamp(net):
    return 50


@stamp.register
def _(net: int):
    return 60


@cache.memoize(version="source")
def price(net):
    cached = handle = cache.get("none", 0)
    net = double(net) + KINDS["plain"][0](net) + HANDLERS["late"](net) + stamp(net) + cached
    net += raised(net)
    return net * STEP * fee * rates.TAX * EXTRA * pi * WIDTH * Size(1).width
""",
    "shop/rates.py": """
__all__ = ["EXTRA"]
FEE = 1
UNUSED = 2
BASE = 70
try:
    TAX = BASE + 3
except ValueError:
    TAX = 4
EXTRA = 5
""",
}


def key_behind(folder, name, old, new):
    assert BEHIND[name].count(old) == 1
    write(folder, {**BEHIND, name: BEHIND[name].replace(old, new)})
    return run(folder, PRINT_KEY)


@pytest.fixture(scope="module")
def key_of_behind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("behind")
    write(folder, BEHIND)
    return run(folder, PRINT_KEY)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/prices.py", "net * factor", "net + factor"),
        ("shop/prices.py", "net ** factor", "net - factor"),
        ("shop/prices.py", "partial(scale, 2)", "partial(scale, 3)"),
        ("shop/prices.py", "net + 20", "net + 21"),
        ("shop/prices.py", "net - 30", "net - 31"),
        ("shop/prices.py", "net + 90", "net + 91"),
        ("shop/prices.py", "net / 2", "net / 3"),
        ("shop/prices.py", "return 50", "return 51"),
        ("shop/prices.py", "return 60", "return 61"),
        ("shop/prices.py", "net: int", "net: float"),
        ("shop/prices.py", "STEP = 10", "STEP = 11"),
        ("shop/prices.py", "WIDTH += 0", "WIDTH += 1"),
        ("shop/prices.py", '"width")', '"width height", defaults=[1])'),
        ("shop/rates.py", "FEE = 1", "FEE = 2"),
        ("shop/rates.py", "TAX = 4", "TAX = 5"),
        ("shop/rates.py", "BASE = 70", "BASE = 71"),
        ("shop/rates.py", "EXTRA = 5", "EXTRA = 6"),
    ],
    ids=[
        "partial",
        "partial that a decorator makes",
        "argument of a partial",
        "in a list in a dict",
        "in a tuple in a dict",
        "put in a list later",
        "put in a dict later",
        "dispatching",
        "dispatched to",
        "type that is dispatched on",
        "constant",
        "constant that is added to",
        "named tuple",
        "constant under another name",
        "constant behind a module",
        "constant of a constant",
        "constant imported by a star",
    ],
)
def test_what_is_reached_by_a_value_of_the_module_counts(tmp_path, key_of_behind, name, old, new):
    assert key_behind(tmp_path, name, old, new) != key_of_behind


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/prices.py", "ELSE = 1", "ELSE = 2"),
        ("shop/prices.py", "STEP = 10", "STEP = 10  # per piece"),
        ("shop/prices.py", "return 40", "return 41"),
        ("shop/prices.py", "max_age=60", "max_age=70"),
        ("shop/prices.py", "fee, UNUSED", "fee"),
        ("shop/rates.py", "UNUSED = 2", "UNUSED = 3"),
        ("shop/rates.py", "FEE = 1", "SOME = 7\nFEE = 1"),
    ],
    ids=[
        "constant that is not named",
        "comment",
        "function that is not named",
        "options of a cache",
        "import of something else",
        "imported constant that is not named",
        "new constant",
    ],
)
def test_values_of_the_module_that_are_not_reached_leave_the_key(
    tmp_path, key_of_behind, name, old, new
):
    assert key_behind(tmp_path, name, old, new) == key_of_behind


def test_code_can_move_within_its_file(tmp_path, key):
    moved = SHOP["shop/prices.py"].replace("cache = Cache", "\n\nelse_where = 1\ncache = Cache")
    write(tmp_path, {**SHOP, "shop/prices.py": moved})
    assert run(tmp_path, PRINT_KEY) == key


def test_an_edited_function_is_called_anew_and_an_old_one_finds_its_old_results(tmp_path):
    ask = "from shop.prices import price; print(price.cached(1), price(1))"
    write(tmp_path, SHOP)
    assert run(tmp_path, ask) == "False 108"
    assert run(tmp_path, ask) == "True 108"
    edited = SHOP["shop/rounding.py"].replace("* 100", "* 1000")
    write(tmp_path, {"shop/rounding.py": edited})
    assert run(tmp_path, ask) == "False 1008"
    write(tmp_path, {"shop/rounding.py": SHOP["shop/rounding.py"]})
    assert run(tmp_path, ask) == "True 108"


TWINS = """
from atomcache import Cache

cache = Cache("cache")


def plain(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


@plain
def first(a):
    return a + 1


@plain
def second(a):
    return a + 2


@cache.memoize(version="source")
def price(a):
    return first(a) * second(a)
"""


@pytest.mark.parametrize(("old", "new"), [("a + 1", "a + 3"), ("a + 2", "a + 3")])
def test_helpers_behind_one_decorator_that_hides_their_names_all_count(tmp_path, old, new):
    write(tmp_path, {"shop/__init__.py": "", "shop/prices.py": TWINS})
    before = run(tmp_path, PRINT_KEY)
    write(tmp_path, {"shop/prices.py": TWINS.replace(old, new)})
    assert run(tmp_path, PRINT_KEY) != before


LOOP = """
from atomcache import Cache

cache = Cache("cache")


def odd(n):
    return n != 0 and even(n - 1)


def even(n):
    return n == 0 or odd(n - 1)


class Shop:
    @cache.memoize(version="source", ignore=("self",))
    def price(self, n):
        return odd(n)

    @cache.memoize(version="source")
    @staticmethod
    def at(n):
        return odd(n)

    @cache.memoize(version="source")
    @classmethod
    async def later(cls, n):
        return odd(n)

    @cache.builder(version="source", ignore=("self",))
    def page(self, target, n):
        target.write_text(str(odd(n)))

"""


def test_helpers_that_call_each_other_count_once_and_for_all_kinds_of_methods(tmp_path):
    ask = """
from atomcache._keys import digest
from shop.prices import Shop

shop = Shop()
for method in (shop.price, shop.at, shop.later, shop.page):
    print(digest(b"v", method.key(1)).hex())
"""
    write(tmp_path, {"shop/__init__.py": "", "shop/prices.py": LOOP})
    before = run(tmp_path, ask).split()
    assert run(tmp_path, ask).split() == before
    assert len(set(before)) == 4
    write(tmp_path, {"shop/prices.py": LOOP.replace("n == 0", "n == 2")})
    after = run(tmp_path, ask).split()
    assert all(old != new for old, new in zip(before, after, strict=True))


SCRIPT = """
from atomcache import Cache

cache = Cache("cache")


def tax(net):
    return net * 2


@cache.memoize(version="source")
def price(net):
    return tax(net)


print(price.cached(1), price(1))
"""


def test_the_helpers_of_a_script_count_too(tmp_path):
    def start_script(content):
        script = tmp_path / "script.py"
        script.write_text(content)
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout.strip()

    assert start_script(SCRIPT) == "False 2"
    assert start_script(SCRIPT) == "True 2"
    assert start_script(SCRIPT.replace("net * 2", "net * 3")) == "False 3"


def deploy(folder, name, content):
    """Edit a file of a process that runs, and return what it says of a call then."""
    return run(
        folder,
        f"""
from pathlib import Path
from atomcache import OptionError
from atomcache._keys import digest
from shop.prices import price

Path({name!r}).write_text({content!r})
try:
    print(digest(b"v", price.key(1)).hex())
except OptionError as error:
    print(error)
""",
    )


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/prices.py", "- discount", "+ discount"),
        ("shop/prices.py", "- discount", "- discount.real"),
        ("shop/prices.py", "return factor *", "return factor +"),
        ("shop/rounding.py", "* 100", "* 1000"),
        ("shop/rounding.py", "def to_cents", "def cents"),
        ("shop/paper.py", "return 1", "return 2"),
        ("shop/paper.py", "self.net = net", "self.net = -net"),
        ("shop/paper.py", "class Receipt", "class Paper"),
        ("shop/taxes.py", "return base(net) * 2", "return ("),
    ],
    ids=[
        "function",
        "names",
        "wrapper",
        "helper",
        "name of a helper",
        "method",
        "special method",
        "name of a class",
        "half an edit",
    ],
)
def test_a_process_that_runs_old_code_stores_nothing_under_the_new_codes_key(
    tmp_path, name, old, new
):
    write(tmp_path, SHOP)
    assert SHOP[name].count(old) == 1
    said = deploy(tmp_path, name, SHOP[name].replace(old, new))
    assert name in said
    assert "version of your own" in said


CHECKED = """
from atomcache import Cache
from atomcache._keys import digest

cache = Cache("cache")


def checked(net):
    def check(each):
        assert each > 0
        return each

    return check(net)


class Receipt:
    def cost(self):
        assert self
        return 1


@cache.memoize(version="source")
def price(net):
    assert net, "free"
    return checked(net) + Receipt().cost()


def test_price():
    print("key", digest(b"v", price.key(1)).hex())
"""


def test_assertions_that_pytest_rewrites_leave_the_key(tmp_path):
    write(tmp_path, {"test_prices.py": CHECKED})
    plain = run(tmp_path, "import test_prices; test_prices.test_price()")
    said = run(tmp_path, "import pytest; print(pytest.main(['-sq', '-p', 'no:cacheprovider']))")
    assert plain in said.splitlines()


def test_a_file_that_is_gone_has_no_source(tmp_path):
    write(tmp_path, SHOP)
    said = run(
        tmp_path,
        """
import os
from atomcache import OptionError
from shop.prices import price

os.remove("shop/taxes.py")
try:
    price(1)
except OptionError as error:
    print(error)
""",
    )
    assert "taxes.py" in said


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/prices.py", "cache = Cache", "\n\nelse_where = 1\ncache = Cache"),
        ("shop/prices.py", "    # the tax comes first\n", ""),
        ("shop/prices.py", "return 4", "return 5"),
        ("shop/paper.py", "class Receipt", "# paper\nclass Receipt"),
        ("shop/rounding.py", "return round", "# half to even\n    return round"),
    ],
    ids=["moved", "comment", "function that is not called", "class moved", "comment in a helper"],
)
def test_a_process_finds_its_code_in_a_file_whose_edit_does_not_count(
    tmp_path, key, name, old, new
):
    write(tmp_path, SHOP)
    assert SHOP[name].count(old) == 1
    assert deploy(tmp_path, name, SHOP[name].replace(old, new)) == key


def test_who_knows_its_key_already_is_not_stopped_by_an_edit(tmp_path):
    write(tmp_path, SHOP)
    code = """
from pathlib import Path
from shop.prices import price

print(price(1))
Path("shop/rounding.py").write_text("")
print(price(2), price.cached(1))
"""
    assert run(tmp_path, code).split()[::2] == ["108", "True"]


WRAPPED = """
import functools

from atomcache import Cache
from other import traced

cache = Cache("cache")
half = lambda a: a / 2


def doubled(function):
    @functools.wraps(function)
    def double(*args):
        return 2 * function(*args)

    return double


@cache.memoize(version="source", max_age=60)
@doubled
@traced
def price(a):
    return half(a) + 1
"""

TRACED = """
import functools


def traced(function):
    @functools.wraps(function)
    def trace(*args):
        return function(*args)

    return trace
"""


@pytest.mark.parametrize(
    ("name", "old", "new", "counts"),
    [
        ("shop/prices.py", "2 * function", "3 * function", True),
        ("shop/prices.py", "half(a) + 1", "half(a) + 2", True),
        ("shop/prices.py", "a / 2", "a / 3", True),
        ("shop/prices.py", "max_age=60", "max_age=90", False),
        ("other.py", "return function(*args)", "return function(*args) + 1", False),
    ],
    ids=["wrapper", "function", "lambda", "options", "wrapper of another package"],
)
def test_of_the_functions_wrappers_those_of_its_package_count(tmp_path, name, old, new, counts):
    files = {"shop/__init__.py": "", "shop/prices.py": WRAPPED, "other.py": TRACED}
    write(tmp_path, files)
    before = run(tmp_path, PRINT_KEY)
    assert files[name].count(old) == 1
    write(tmp_path, {name: files[name].replace(old, new)})
    assert (run(tmp_path, PRINT_KEY) != before) == counts


def test_classes_of_many_kinds_are_found_in_their_file(tmp_path):
    shop = """
import abc
import dataclasses
import enum
import functools

from atomcache import Cache

cache = Cache("cache")


class Base(abc.ABC):
    @abc.abstractmethod
    def cost(self): ...


@dataclasses.dataclass(frozen=True, order=True)
class Receipt(Base):
    net: int

    @property
    def tax(self):
        return 1

    @functools.cached_property
    def fee(self):
        return 2

    @staticmethod
    def of(net):
        return Receipt(net)

    @classmethod
    def none(cls):
        return cls(0)

    @functools.lru_cache
    def cost(self):
        return [n for n in range(3)]

    @cache.memoize
    def __private(self):
        return lambda: self

    cost_too = cost


class Colour(enum.Enum):
    RED = 1

    def __str__(self):
        return "red"


def outer():
    class Local:
        def cost(self):
            return super().__init__()

    return Local


Local = outer()


@cache.memoize(version="source")
def price(a):
    return Receipt, Colour, Local
"""
    write(tmp_path, {"shop/__init__.py": "", "shop/prices.py": shop})
    before = run(tmp_path, PRINT_KEY)
    for old in ["return 1", "return 2", "Receipt(net)", "cls(0)", "range(3)]", ": self", '"red"']:
        assert shop.count(old) == 1
        said = deploy(tmp_path, "shop/prices.py", shop.replace(old, f"{old}, 5"))
        assert "Restart the process" in said
        assert run(tmp_path, PRINT_KEY) != before
        write(tmp_path, {"shop/prices.py": shop})


def test_code_without_a_source_needs_a_version_of_its_own(cache):
    names = {"__name__": "typed_at_a_prompt"}
    exec("def price(net):\n    return net", names)
    price = names["price"]
    with pytest.raises(OptionError, match=r"typed_at_a_prompt\.price.*version of your own"):
        cache.memoize(version="source")(price)(1)
    assert cache.memoize(version="1")(price)(1) == 1


def test_a_builtin_function_has_no_source(cache):
    with pytest.raises(OptionError, match="len"):
        cache.memoize(version="source")(len)("four")
