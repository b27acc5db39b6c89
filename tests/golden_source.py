"""Functions whose source is hashed for golden_keys.json: to edit one is to change its hash.

They use what Python's versions have written down differently: f-strings, slices, constants,
decorators, comprehensions, patterns and annotations.
"""

import functools

FACTOR = 3


def alone(number):
    """Return a number, tripled."""
    return number * 3  # a comment


def calling(number, *rest: int, unit: "str" = "m", **more) -> str:
    total = alone(number) + sum(each**2 for each in rest if each)
    return f"{total:>{FACTOR}}{unit!r}" + str(Holder(total).half[1:2])


class Holder:
    scale: float = 0.5

    def __init__(self, number):
        self.number = number

    @property
    def half(self):
        match self.number:
            case 0 | None:
                return ""
            case _:
                return str(self.number * self.scale)


def doubled(function):
    @functools.wraps(function)
    def twice(*args):
        return function(*args) * 2

    return twice


@doubled
def decorated(number):
    with open(number) as file:
        return [line.strip() for line in file] or (lambda line: line)
