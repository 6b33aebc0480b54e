"""Rendering of chat templates from unknown sources, with a budget that bounds time and memory.

A template is a program: its loops, recursive macros and string products can run for hours or fill the memory. So each
rendering has a budget, and each executed syntax node and each character of a value costs one unit. Units do not depend
on the speed of the machine, so every machine refuses the same templates. Only the filters, functions and methods that
chat templates use are available; none of them is random or reads the clock.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE_CHARACTERS = 65_536
BUDGET = 400_000
"""Budget of one rendering in units: executed nodes and characters of values. Usual templates need less than 20,000."""

MAX_ARGUMENT = 1_000
"""Maximum of a number given to a filter or function, such as a width or the end of a range."""

MAX_PRODUCT = 100_000
"""Maximum length of the result that an operator or filter may compute from its operands."""

FIXED_DATE = "26 Jul 2024"
"""Result of `strftime_now` for every format: the date that Llama's templates use when they are given no clock."""

METHODS = (
    *("capitalize", "count", "endswith", "find", "get", "index", "isalpha", "isdigit", "islower"),
    *("isspace", "isupper", "items", "join", "keys", "lower", "lstrip", "partition", "removeprefix"),
    *("removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
    *("startswith", "strip", "title", "upper", "values"),
)
"""Methods of strings, lists and dictionaries that a template may call."""

ALLOWED_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "indent"),
    *("int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"),
    *("rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum"),
    *("title", "trim", "unique", "upper"),
)
_COMPARED = 16
_SPEND, _CHARGE, _ITERATED = "spend_units", "charge_value", "charge_items"  # filters that `_Counting` inserts


class Budget:
    """Units that a rendering may still use."""

    def __init__(self, units: int = BUDGET):
        self.left = units

    def spend(self, units: int) -> None:
        """Use up units.

        Raises:
            JinjaError: Too few units are left.
        """
        self.left -= max(units, 0)  # a template can call this filter itself, with any number
        if self.left < 0:
            raise JinjaError(f"it needs more than {BUDGET:,} steps")

    def charge(self, value: Any) -> Any:
        """Spend units of the budget for the size of a value and its items, and return the value.

        Raises:
            JinjaError: The budget is used up, or the value is not plain data.
        """
        self.spend(1)
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.charge(item)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.charge(key)
                self.charge(item)
        elif isinstance(value, range):
            self.spend(len(value))
        elif isinstance(value, int):
            if value.bit_length() > 64:
                raise JinjaError("a number is too large")
        elif not (value is None or isinstance(value, (float, Undefined))):
            raise JinjaError(f"a value of type {type(value).__name__} is not text")
        return value

    def charge_operation(self, operands: tuple[Any, ...]) -> None:
        """Charge an operator, filter or function for its operands, and make sure that its result cannot be too large.

        An operation may compare each item of the first operand with all items of the others, so every `_COMPARED` pairs
        of items cost one more unit.

        Raises:
            JinjaError: The budget is used up, or the product of the sizes is too large.
        """
        product, sizes = 1, []
        for value in operands:
            before = self.left
            self.charge(value)
            sizes.append(before - self.left)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not abs(value) <= MAX_ARGUMENT:
                    raise JinjaError(f"the number {value} is too large")
                product *= 1 + int(abs(value))
            elif hasattr(value, "__len__"):
                product *= 1 + len(value)
            if product > MAX_PRODUCT:
                raise JinjaError(f"a value could become longer than {MAX_PRODUCT:,} characters")
        self.spend(sum(sizes[:1]) * sum(sizes[1:]) // _COMPARED)


class _Generation(Extension):
    """The tag `generation`, which marks the text of the assistant for transformers; it is rendered as its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.If(nodes.Const(True), body, [], []).set_lineno(line)


class _Counting(NodeTransformer):
    """Inserts calls that charge the budget: for each run of a loop or macro body, for each literal text that is written,
    and for operations that make longer values."""

    def _filter(self, node: Any, name: str, *arguments: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)

    def _count_runs(self, node: Any) -> Any:
        weight = nodes.Const(1 + sum(1 for _ in node.find_all(nodes.Node)), lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._filter(weight, _SPEND), lineno=node.lineno))
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:
        tested = 1 if node.test is None else 1 + sum(1 for _ in node.test.find_all(nodes.Node))
        self._count_runs(node)
        node.iter = self._filter(node.iter, _ITERATED, nodes.Const(tested, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = _count_runs

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Const:
        return nodes.Const(node.data, lineno=node.lineno)  # so that `finalize` sees it

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def _charged(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else self._filter(node, _CHARGE)

    visit_List = visit_Dict = visit_Tuple = _charged

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = self._filter(node.expr, _CHARGE)
        for operand in node.ops:
            operand.expr = self._filter(operand.expr, _CHARGE)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Test:
        self.generic_visit(node)
        node.args = [self._filter(argument, _CHARGE) for argument in node.args]
        if node.args:
            node.node = self._filter(node.node, _CHARGE)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        return self._charged(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Environment of one rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            cache_size=0,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=self._finalize,
        )
        self.budget = Budget()
        known: dict[str, Callable[..., Any]] = {name: FILTERS[name] for name in ALLOWED_FILTERS}
        self.filters = {name: self._bounded(function) for name, function in {**known, "tojson": _to_json}.items()}
        self.filters |= {_SPEND: self.budget.spend, _CHARGE: self.budget.charge, _ITERATED: self._iterated}
        self.globals = {
            "range": range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = tuple(self.globals.values())

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if next(tree.find_all((nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)), None):
            raise JinjaError("it refers to other templates")
        return _Counting().visit(tree)

    def _finalize(self, context: Any, value: Any) -> Any:
        return self.budget.charge(value)

    _finalize = pass_context(_finalize)

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that spends units of the budget for its operands and its result."""
        passed = getattr(function, "jinja_pass_arg", None)
        skipped = 0 if passed is None else 1  # the context or environment, which jinja passes first

        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.charge_operation((*args[skipped:], *kwargs.values()))
            result = function(*args, **kwargs)
            return self.budget.charge(list(result) if hasattr(result, "__next__") else result)

        if passed is not None:
            vars(bounded)["jinja_pass_arg"] = passed
        return bounded

    def _iterated(self, value: Any, weight: int) -> Any:
        """Spend units for the items of a loop, even for those that its condition skips, and return them."""
        if hasattr(value, "__len__"):
            self.budget.spend(len(value) * weight)
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise JinjaError(f"the operator {operator} is not supported here")
        if operator == "*" and not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            self.budget.charge_operation((left, right))
        else:
            self.budget.charge(left)
            self.budget.charge(right)
        return self.budget.charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __object: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__object, "__self__", None), getattr(__object, "__name__", "")
        is_method = isinstance(owner, (str, list, tuple, dict)) and name in METHODS
        is_known = any(__object is function for function in __self._functions)
        if not (is_method or is_known or isinstance(__object, (Macro, Undefined)) or isinstance(owner, LoopContext)):
            raise JinjaError(f"the function {name or type(__object).__name__} is not supported here")
        if isinstance(__object, Macro):
            for value in (*args, *kwargs.values()):
                if not isinstance(value, (Macro, LoopContext, Namespace)):
                    __self.budget.charge(value)
        else:
            __self.budget.charge_operation((*([owner] if is_method else ()), *args, *kwargs.values()))
        result = super().call(__context, __object, *args, **kwargs)
        return (
            result if isinstance(result, Namespace) or (is_method and name in _VIEWS) else __self.budget.charge(result)
        )


_VIEWS = ("items", "keys", "values")  # of a dictionary that was charged before


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False
) -> str:
    """Return a value as JSON, as transformers' filter does: without jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise JinjaError(message)


def _strftime_now(form: str) -> str:
    return FIXED_DATE


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Return the text that a template writes.

    Args:
        template: Source of the template.
        variables: Plain data, with the types of JSON.

    Raises:
        Exception: The template is too long, needs too many steps, uses an unsupported function, or fails; jinja and
            Python raise many types.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise JinjaError(f"it has more than {MAX_TEMPLATE_CHARACTERS:,} characters")
    return _Sandbox().from_string(template).render(variables)
