r"""Numeric comparison of LaTeX expressions: two are equal if they agree at a few values of their letters.

Supports sums, products, powers, roots, fractions, absolute values, whole parts, logarithms, trigonometric functions and
factorials of numbers (0.\overline{3} is 1/3) and letters. Rational values are exact, so that 2^{99} is not 2^{99}-1. A
comparison takes microseconds. Other expressions (sets, intervals, relations, indexed sums) are not decided.
"""

import cmath
import math
import re
import zlib
from fractions import Fraction

_NAMED = (
    "frac sqrt binom pi sinh cosh sin cos tan cot sec csc ln log exp arctan arcsin arccos alpha beta gamma delta theta "
    "lambda mu rho sigma phi varphi omega epsilon tau cdot times div lfloor rfloor lceil rceil"
).split()
_REPEATING = r"\d*\.\d*\\(?:overline|bar|dot)\{?\d+\}?(?:\d*\\dot\{?\d\}?)?"
_TOKEN = re.compile(rf"\\(?:{'|'.join(_NAMED)})|{_REPEATING}|" r"\d+\.?\d*|\.\d+|[A-Za-zα-ωΑ-Ω]|[-+*/^!_(){}\[\]|]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTIONS = {
    "\\sin": cmath.sin, "\\cos": cmath.cos, "\\tan": cmath.tan, "\\ln": cmath.log, "\\log": cmath.log,
    "\\exp": cmath.exp, "\\arctan": cmath.atan, "\\arcsin": cmath.asin, "\\arccos": cmath.acos,
    "\\sec": lambda x: 1 / cmath.cos(x), "\\csc": lambda x: 1 / cmath.sin(x), "\\cot": lambda x: 1 / cmath.tan(x),
    "\\sinh": cmath.sinh, "\\cosh": cmath.cosh,
}  # fmt: skip
_INVERSES = {"\\sin": cmath.asin, "\\cos": cmath.acos, "\\tan": cmath.atan}
"""The functions that a power of -1 stands for."""
_CONSTANTS = {"\\pi": math.pi, "e": math.e, "i": 1j}
_LETTERS = frozenset(
    "\\alpha \\beta \\gamma \\delta \\theta \\lambda \\mu \\rho \\sigma \\phi \\varphi \\omega \\epsilon \\tau".split()
)
_TIMES = ("*", "\\cdot", "\\times")
_CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_ENDS = frozenset(["+", "-", *_CLOSING.values()])
POINTS = 3
LONGEST, DEEPEST = 400, 40
"""Largest number of characters and depth of brackets; larger expressions are not decided."""
LARGEST_EXPONENT = 300.0
"""Powers are computed up to exp(LARGEST_EXPONENT)."""
MOST_BITS = 20_000
"""Powers with more bits are not computed exactly."""
Number = Fraction | complex


class _Undecided(Exception):
    """The text is not an expression of this grammar, or too large."""


def equal_expressions(a: str, b: str) -> bool | None:
    """Whether two LaTeX texts without spaces are equal at POINTS points; None if that cannot be decided."""
    if max(len(a), len(b)) > LONGEST or _WORD.search(a) or _WORD.search(b):
        return None
    tolerance = 1e-6 if "." in a + b else 1e-9
    try:
        for point in range(POINTS):
            x, y = (_Parser(text, point).whole() for text in (a, b))
            if isinstance(x, Fraction) and isinstance(y, Fraction) and "." not in a + b:
                if x != y:
                    return False
            elif abs(complex(x) - complex(y)) > tolerance * max(abs(complex(x)), abs(complex(y))):
                return False
    except (_Undecided, ArithmeticError, ValueError):
        return None
    return True


def equal_equations(a: str, b: str) -> bool | None:
    """Whether the sides of two equations without spaces differ by the same amount, up to a factor, at POINTS points:
    2y=4x and y-2x=0. None if that cannot be decided."""
    sides = [*a.split("="), *b.split("=")]
    if len(sides) != 4 or max(map(len, sides)) > LONGEST or any(map(_WORD.search, sides)):
        return None
    ratios: list[Number] = []
    try:
        for point in range(POINTS):
            left, right, other_left, other_right = (_Parser(side, point).whole() for side in sides)
            ratios.append((left - right) / (other_left - other_right))
    except (_Undecided, ArithmeticError, ValueError):
        return None
    return ratios[0] != 0 and all(abs(complex(ratio / ratios[0] - 1)) < 1e-9 for ratio in ratios)


def exact_value(text: str) -> Fraction | None:
    """The value of an expression of rational numbers; None of any other."""
    try:
        value = _Parser(text, 0).whole()
    except (_Undecided, ArithmeticError, ValueError):
        return None
    return value if isinstance(value, Fraction) else None


class _Parser:
    """A recursive descent parser of one expression, which computes its value at one point."""

    def __init__(self, text: str, point: int):
        self.tokens = _TOKEN.findall(text)
        if not self.tokens or sum(map(len, self.tokens)) != len(text):
            raise _Undecided
        self.place, self.depth, self.unknowns, self.point = 0, 0, 0, point

    @property
    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next
        self.place += 1
        return token

    def whole(self) -> Number:
        value = self.sum()
        if self.next:
            raise _Undecided
        return value

    def sum(self) -> Number:
        value = self.product()
        while self.next in ("+", "-") and self.next:
            value += self.product() if self.take() == "+" else -self.product()
        return _finite(value)

    def product(self, of_function: bool = False) -> Number:
        sign = 1
        while self.next in ("+", "-") and self.next:
            sign = -sign if self.take() == "-" else sign
        value = self.power()
        while self.next and self.next not in _ENDS:
            if self.next in ("/", "\\div"):
                self.take()
                value /= self.power()
            elif of_function and (self.next in _FUNCTIONS or self.next in _TIMES or self.next in "(["):
                break
            else:
                if self.next in _TIMES:
                    self.take()
                value *= self.power()
        return _finite(sign * value)

    def power(self) -> Number:
        if self.next == "-":
            self.take()
            return -self.power()
        value = self.atom()
        while self.next in ("^", "!") and self.next:
            value = _to_power(value, self.argument()) if self.take() == "^" else _factorial(value)
        return value

    def argument(self) -> Number:
        if self.next and self.next[0].isdigit() and len(self.next) > 1:
            # In x^12 and \frac12 the argument is one digit.
            first, self.tokens[self.place] = self.next[0], self.next[1:]
            return Fraction(first)
        return -self.argument() if self.next == "-" and self.take() else self.atom()

    def group(self) -> Number:
        opening, unknowns = self.take(), self.unknowns
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Undecided
        value = self.sum()
        if self.take() != _CLOSING[opening]:
            raise _Undecided
        self.depth -= 1
        if opening in "({[":
            return value
        if self.unknowns > unknowns:
            raise _Undecided  # letters have positive values near each other
        if opening == "|":
            return abs(value) if isinstance(value, Fraction) else complex(abs(value))
        return _whole_part(value, up=opening == "\\lceil")

    def atom(self) -> Number:
        token = self.next
        if token in _CLOSING:
            return self.group()
        self.take()
        if token and (token[0].isdigit() or token[0] == "."):
            return _repeating(token) if "\\" in token else Fraction(token)
        if token == "\\frac":
            return self.argument() / self.argument()
        if token == "\\binom":
            n, k = self.argument(), self.argument()
            return _factorial(n) / (_factorial(k) * _factorial(n - k))
        if token == "\\sqrt":
            degree = self.group() if self.next == "[" else Fraction(2)
            inside = self.argument()
            if isinstance(inside, Fraction) and inside < 0 and degree.imag == 0 and degree.real % 2 == 1:
                return -_to_power(-inside, 1 / degree)  # the real root
            return _to_power(inside, 1 / degree)
        if token in _FUNCTIONS:
            return self.function(token)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token and (token in _LETTERS or (token[-1].isalpha() and len(token) == 1)):
            return self.letter(token)
        raise _Undecided

    def function(self, name: str) -> Number:
        base = power = None
        while self.next in ("_", "^") and self.next:
            if self.take() == "_":
                base = self.argument()
            else:
                power = self.argument()
        inside = self.group() if self.next and self.next in "({" else self.product(of_function=True)
        if power == -1 and base is None and name in _INVERSES:
            return _INVERSES[name](inside)
        value = _FUNCTIONS[name](inside)
        value = value / cmath.log(base) if base is not None else value
        return value if power is None else _to_power(value, power)

    def letter(self, name: str) -> Number:
        self.unknowns += 1
        while self.next == "_":
            self.take()
            name += "_" + "".join(self.subscript())
        return Fraction(6, 5) + Fraction(zlib.crc32(f"{name} {self.point}".encode()) % 10007, 10007)

    def subscript(self) -> list[str]:
        start = self.place
        self.group() if self.next == "{" else self.argument()
        return self.tokens[start : self.place]


def _repeating(token: str) -> Fraction:
    """The number that 0.1\\overline{6} or 0.\\dot{1}4\\dot{2} writes."""
    digits = re.sub(r"\\(?:overline|bar|dot)|[{}]", "", token)
    places = len(digits) - digits.index(".") - 1
    before = digits[: len(token[: token.index("\\")])]
    period = len(digits) - len(before)
    shifted = int(digits.replace(".", "")) - int(before.replace(".", "") or "0")
    return Fraction(shifted, 10**places - 10 ** (places - period))


def _whole_part(value: Number, up: bool) -> Fraction:
    """The integer below or above a real number; undecided where rounding may have crossed one."""
    if isinstance(value, complex) and (value.imag or abs(value.real - round(value.real)) < 1e-9):
        raise _Undecided
    real = value if isinstance(value, Fraction) else value.real
    return Fraction(math.ceil(real) if up else math.floor(real))


def _finite(value: Number) -> Number:
    if not cmath.isfinite(value):
        raise _Undecided  # too large to compute: infinity is near every number
    return value


def _to_power(base: Number, exponent: Number) -> Number:
    if base == 0:
        return base if exponent.real > 0 else base**-1
    if abs(exponent * cmath.log(base)) > LARGEST_EXPONENT:
        raise _Undecided
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if abs(exponent) * (base.numerator.bit_length() + base.denominator.bit_length()) < MOST_BITS:
            return base ** int(exponent)
    return complex(base) ** complex(exponent)


def _factorial(value: Number) -> Number:
    if (isinstance(value, complex) and value.imag) or not -0.5 < value.real < 150:
        raise _Undecided
    if isinstance(value, Fraction) and value.denominator == 1:
        return Fraction(math.factorial(int(value)))
    return complex(math.gamma(value.real + 1))
