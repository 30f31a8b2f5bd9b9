"""Recipes: which tensor of a checkpoint gets which pattern."""

import difflib
import fnmatch
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import PACKABLE
from fastsparse.checkpoint._sections import (
    METHODS,
    SECTIONS,
    Allocation,
    Calibration,
    Method,
    check_keys,
    one_of,
    section,
    section_keys,
)
from fastsparse.checkpoint._selection import UNKNOWN, Layers, is_named, not_a_weight
from fastsparse.patterns import NM, Pattern, Unstructured, pattern, zeros_in_every
from fastsparse.quantized import check_bits

__all__ = ["Recipe", "Rule", "check_expression", "meant_pattern"]

_FLOATING = PACKABLE[:6]


def meant_pattern(given: Pattern | str) -> Pattern:
    """The pattern that is meant for a model. A short form that prunes every weight of a group is taken for a slip."""
    found = pattern(given)
    if isinstance(given, str) and isinstance(found, NM) and found.zeros == found.of:
        raise FastSparseError(
            f"pattern: {given!r} is {zeros_in_every(found.zeros, found.of)}: n:m is n zeros in every m; write 100% to "
            "prune everything"
        )
    return found


@dataclass(frozen=True)
class Rule:
    """What happens to the tensors whose name matches.

    Parameters
    ----------
    match : str
        A regular expression, searched for in the name of the tensor.
    pattern : Pattern or str, optional
        The pattern, or its short form.
    skip : bool
        Leave the tensors dense. A rule has a pattern or skips, one of the two.
    method : str, optional
        With calibration data: what prunes these tensors in the place of the recipe's method.

    Raises
    ------
    FastSparseError
        If `match` is no regular expression, `pattern` no pattern, or not exactly one of `pattern` and `skip` is given.
    """

    match: str
    pattern: Pattern | str | None = None
    skip: bool = False
    method: str | None = None

    def __post_init__(self) -> None:
        check_expression("match", self.match)
        if not isinstance(self.skip, bool):
            raise FastSparseError(f"skip: expected true or false, got {self.skip!r}")
        if (self.pattern is None) != self.skip:
            raise FastSparseError(f"rule {self.match!r}: expected a pattern or skip = true, one of the two")
        if self.pattern is not None:
            object.__setattr__(self, "pattern", meant_pattern(self.pattern))
        if self.method is not None:
            one_of("method", self.method, METHODS)
            if self.skip:
                raise FastSparseError(f"rule {self.match!r}: a rule that skips has no method")


@dataclass(frozen=True)
class Recipe:
    """Which tensor of a checkpoint gets which pattern.

    The first rule that matches a tensor's name decides. Where none does, tensors that `exclude` names stay dense, and
    `default` goes to those that `include` names and to the usual ones: floating, two or more dimensions, more than
    `min_size` elements, and weights by their names: `docs/checkpoints.md` lists what is none, from embeddings to masks.

    Rules and `include` reach what is no weight only if they name it: ``attn`` does not mean the mask ``attn.bias``, nor
    the ``weight_scale`` of a quantised layer, because it is found in ``attn.weight`` too; ``attn.bias`` does. Quantised
    weights that cannot be ranked without their scales stay dense whatever names them.

    Parameters
    ----------
    rules : iterable of Rule
        In the order in which they are tried. A rule may name any tensor whose dtype can be packed, an embedding too.
        An expression has to be found in the name of a tensor when the recipe is used, as those of the lists have to.
    default : Pattern or str, optional
        The pattern, or its short form, for tensors without a rule. None leaves them dense.
    include, exclude : iterable of str
        Regular expressions, searched for in the name of the tensor. `include` adds to the usual selection, it does not
        replace it.
    min_size : int
        Tensors of up to this many elements stay dense unless a rule or `include` names them.
    scope : str
        ``"tensor"``, or ``"global"``: the tensors that get the default, which has to be a share over the whole tensor
        such as ``50%``, then compete with each other, and exactly that share of all their elements is pruned. Those
        with a rule of their own are not counted. Ties are kept by name, then index.
    min_sparsity, max_sparsity : float, optional
        With the global scope, the least and the largest share of zeros in each tensor that competes, rounded to whole
        elements.
    bits : {None, 8}
        8 stores what is kept of float64, float32, float16 and bfloat16 tensors as int8 with a scale for each row, see
        `fastsparse.BitmaskArray.quantize`. Masks are those of the weights before. Other dtypes have eight bits already
        and are packed as they are.
    calibration, method, allocation : optional
        How `fastsparse prune` and `fastsparse.torch.prune_model` prune with calibration data. `compress`, which has
        none, refuses such a recipe.

    Raises
    ------
    FastSparseError
        If a parameter is not as described, or the bounds do not enclose the default.

    Examples
    --------
    >>> recipe = Recipe(rules=[Rule("attn", "2:4"), Rule("norm", skip=True)], default="50%")
    >>> recipe.choose("layer.0.attn.weight", "BF16", (64, 64))
    <NM 2:4: 2 zeros in every 4 (50 %)>
    >>> recipe.choose("embed_tokens.weight", "BF16", (64, 64))
    'an embedding'
    """

    rules: tuple[Rule, ...] = ()
    default: Pattern | str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 2048
    scope: str = "tensor"
    min_sparsity: float | None = None
    max_sparsity: float | None = None
    bits: int | None = None
    calibration: Calibration | None = None
    method: Method | None = None
    allocation: Allocation | None = None

    def __post_init__(self) -> None:
        for name, kind in (("calibration", Calibration), ("method", Method), ("allocation", Allocation)):
            if not isinstance(getattr(self, name), kind | None):
                raise FastSparseError(f"{name}: expected a {kind.__name__}, got {getattr(self, name)!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise FastSparseError(f"rules: expected rules, got {rule!r}")
        if self.default is not None:
            object.__setattr__(self, "default", meant_pattern(self.default))
        object.__setattr__(self, "include", _regexes("include", self.include))
        object.__setattr__(self, "exclude", _regexes("exclude", self.exclude))
        if not isinstance(self.min_size, int) or isinstance(self.min_size, bool) or self.min_size < 0:
            raise FastSparseError(f"min_size: expected an integer ≥ 0, got {self.min_size!r}")
        self._check_scope()
        if self.bits is not None:
            check_bits("bits", self.bits)

    def _check_scope(self) -> None:
        if self.scope not in ("tensor", "global"):
            raise FastSparseError(f"scope: expected 'tensor' or 'global', got {self.scope!r}")
        if self.scope == "tensor":
            for name in ("min_sparsity", "max_sparsity"):
                if getattr(self, name) is not None:
                    raise FastSparseError(f"{name}: it needs the global scope")
            return
        if not isinstance(self.default, Unstructured) or self.default.per != "tensor":
            raise FastSparseError(f"scope: 'global' needs a default like 50%, got {self.default}")
        least, most = _share("min_sparsity", self.min_sparsity, 0.0), _share("max_sparsity", self.max_sparsity, 1.0)
        if not least <= self.default.sparsity <= most:
            raise FastSparseError(
                f"min_sparsity, max_sparsity: {least} to {most} does not hold the default {self.default}"
            )

    def method_for(self, name: str) -> str | None:
        """The method of the rule that decides about a tensor, where it has one."""
        rule = next((rule for rule in self.rules if re.search(rule.match, name)), None)
        return None if rule is None else rule.method

    def is_default(self, name: str) -> bool:
        """Whether no rule decides about a tensor."""
        return not any(re.search(rule.match, name) for rule in self.rules)

    def calibrated(self) -> str | None:
        """What of the recipe needs calibration data, if anything does."""
        sections = (name for name in SECTIONS if getattr(self, name) is not None)
        rules = (f"the method of rule {rule.match!r}" for rule in self.rules if rule.method is not None)
        return next(chain((f"[{name}]" for name in sections), rules), None)

    def competes(self, name: str) -> bool:
        """Whether a tensor that is pruned takes part in global pruning."""
        return self.scope == "global" and self.is_default(name)

    @classmethod
    def of(cls, recipe: "Recipe | Pattern | str") -> "Recipe":
        """A recipe as it is; a pattern or its short form becomes the default of an otherwise empty recipe."""
        return recipe if isinstance(recipe, Recipe) else cls(default=meant_pattern(recipe))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Reads a TOML file: keys `default`, `include`, `exclude`, `min_size`, `scope`, `min_sparsity`, `max_sparsity`,
        `bits`, `[[rule]]` tables with `match` and `pattern` or `skip = true`, and the sections `[calibration]`,
        `[method]` and `[allocation]`.

        Raises
        ------
        FastSparseError
            If the file is not TOML, holds another key, or a value is not as described for the class.
        OSError
            If the file cannot be read.
        """
        try:
            with open(path, "rb") as file:
                table = tomllib.load(file)
            return cls._from_table(table)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, FastSparseError) as error:
            raise FastSparseError(f"{os.fspath(path)}: {error}") from None

    def to_toml(self) -> str:
        """The recipe as TOML, which `from_toml` reads.

        Examples
        --------
        >>> print(Recipe(rules=[Rule("attn", "2:4")], default="50%").to_toml())
        default = "50%"
        <BLANKLINE>
        [[rule]]
        match = "attn"
        pattern = "2:4"
        <BLANKLINE>
        """
        usual = Recipe()
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rules"}
        changed = {name: value for name, value in own.items() if value != getattr(usual, name)}
        lines = _toml_lines({name: value for name, value in changed.items() if name not in SECTIONS})
        for name in SECTIONS:
            if name in changed:
                lines += ["", f"[{name}]", *_toml_lines(section_keys(name, changed[name]))]
        for rule in self.rules:
            values = {"match": rule.match, "pattern": rule.pattern, "skip": rule.skip or None, "method": rule.method}
            lines += ["", "[[rule]]", *_toml_lines(values)]
        return "\n".join([*lines, ""]).lstrip("\n")

    @classmethod
    def _from_table(cls, table: Mapping[str, Any]) -> "Recipe":
        check_keys(table, ("rule", *(field.name for field in fields(cls) if field.name != "rules")))
        rules = table.get("rule", [])
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise FastSparseError("rule: expected [[rule]] tables")
        for rule in rules:
            check_keys(rule, ("match", "pattern", "skip", "method"), " of [[rule]]")
            if "match" not in rule:
                raise FastSparseError("rule: match is missing")
        options: dict[str, Any] = {
            key: section(key, value) if key in SECTIONS else value for key, value in table.items() if key != "rule"
        }
        return cls(rules=tuple(Rule(**rule) for rule in rules), **options)

    def choose(self, name: str, dtype: str, shape: tuple[int, ...]) -> Pattern | str:
        """The pattern for a tensor by itself, or the reason why it stays dense.

        Parameters
        ----------
        name : str
            Name of the tensor.
        dtype : str
            Its dtype, by the name that safetensors gives it, such as ``BF16``.
        shape : tuple of int
            Its shape.
        """
        return self._choose(name, dtype, shape, Layers({name: (dtype, shape)}))

    def choose_all(
        self, tensors: Mapping[str, tuple[str, tuple[int, ...]]], method: str | None = None
    ) -> dict[str, Pattern | str]:
        """For each tensor of a checkpoint the pattern, or the reason why it stays dense.

        Parameters
        ----------
        tensors : mapping
            From the names of all tensors to dtypes, as safetensors names them, and shapes.
        method : str, optional
            The method by which the model's config says that it is quantised, if it does.

        Raises
        ------
        FastSparseError
            If an expression of the recipe is found in no name.
        """
        self.check_names(tensors)
        layers = Layers(tensors, method)
        return {name: self._choose(name, dtype, shape, layers) for name, (dtype, shape) in tensors.items()}

    def check_names(self, names: Iterable[str]) -> None:
        """Refuses a recipe that has an expression which is found in none of these names.

        Raises
        ------
        FastSparseError
            With names that are near.
        """
        expressions = [("include", text) for text in self.include] + [("exclude", text) for text in self.exclude]
        expressions += [("rule", rule.match) for rule in self.rules]
        known = list(names) if expressions else []
        for where, text in expressions:
            search = re.compile(text).search
            if not any(search(name) for name in known):
                raise FastSparseError(f"{where}: {text!r} matches no tensor{_advice(text, known)}")

    def _choose(self, name: str, dtype: str, shape: tuple[int, ...], layers: Layers) -> Pattern | str:
        part = layers.part(name)
        other = part or not_a_weight(name, shape)
        chosen = self._named(name, other) or self._usual(dtype, shape, part, other)
        if isinstance(chosen, Pattern) and dtype not in PACKABLE:
            return f"dtype {dtype} is not pruned"
        if isinstance(chosen, Pattern):
            return layers.unsound(name, chosen, self.competes(name)) or chosen
        return chosen

    def _named(self, name: str, other: str | None) -> Pattern | str | None:
        """What the rules and the lists of names say, if anything. `other` is what the tensor is if it is no weight."""
        for rule in self.rules:
            if re.search(rule.match, name):
                if rule.pattern is None:
                    return f"skipped by rule {rule.match!r}"
                return rule.pattern if other in (None, UNKNOWN) or is_named(name, rule.match, other) else other
        for expression in self.exclude:
            if re.search(expression, name):
                return f"excluded by {expression!r}"
        if self.default is None:
            return "no rule matches"
        for expression in self.include:
            if re.search(expression, name) and (other in (None, UNKNOWN) or is_named(name, expression, other)):
                return self.default
        return None

    def _usual(self, dtype: str, shape: tuple[int, ...], part: str | None, other: str | None) -> Pattern | str:
        """What happens to a tensor that nothing names."""
        if part is not None:
            return part
        if dtype not in _FLOATING:
            return f"dtype {dtype} is not pruned unless named"
        if len(shape) < 2:
            return "fewer than two dimensions"
        if other is not None:
            return other
        if math.prod(shape) <= self.min_size:
            return f"no more than {self.min_size} elements"
        assert self.default is not None, "`_named` has an answer for recipes without a default"
        return self.default


def _toml_lines(values: Mapping[str, Any]) -> list[str]:
    """The lines of keys and values in TOML; those that are None are left out."""
    return [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]


def _toml(value: Any) -> str:
    """A value of a recipe in TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # A string of JSON is one of TOML, but for one character that TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def check_expression(name: str, text: Any) -> None:
    """Refuses what is no regular expression, as the argument of this name.

    Raises
    ------
    FastSparseError
        With what to write for a glob.
    """
    try:
        re.compile(text)
    except (TypeError, re.error, RecursionError, OverflowError) as error:
        glob = f"; for the glob write '{_from_glob(text)}'" if isinstance(text, str) and text.startswith("*") else ""
        raise FastSparseError(f"{name}: {text!r} is not a regular expression: {error}{glob}") from None
    if not isinstance(text, str):
        raise FastSparseError(f"{name}: expected a string, got {text!r}")


def _from_glob(text: str) -> str:
    """The regular expression that a glob stands for, found anywhere in a name."""
    inner = text.strip("*").removesuffix("$")
    return re.sub(r"\\\*|\*", ".*", re.sub(r"(?<!\\)\.(?!\*)", r"\.", inner)).replace("?", ".")


def _advice(text: str, names: list[str]) -> str:
    """What to write instead of an expression that is found in none of the names, and which names are near."""
    if not names:
        return "; there are none"
    near = _near(text, names)
    nearest = f"; near are {', '.join(map(repr, near))}" if near else f"; names are like {names[0]!r}"
    return _explanation(text, names) + nearest


def _explanation(text: str, names: list[str]) -> str:
    """What an expression was taken for, if it looks like one of another tool."""
    if text.startswith("re:"):
        return f"; it is a regular expression as it stands: write '{text.removeprefix('re:')}', without 're:'"
    modules = {name.rpartition(".")[0] for name in names}
    if any(re.search(text, module) for module in modules):
        return f"; names go on with '.weight' after the module's: write '{text.removesuffix('$')}', without '$'"
    choice = re.search(r"\{([^{}]*,[^{}]*[a-z][^{}]*)\}", text)
    if choice is not None:
        return f"; it is no glob but a regular expression: write '({choice[1].replace(',', '|')})' for '{choice[0]}'"
    if "*" in text and any(fnmatch.fnmatchcase(name, text.rstrip("$")) for name in {*names, *modules}):
        return f"; it is no glob but a regular expression: write '{_from_glob(text)}'"
    if re.fullmatch(r"[A-Z]\w*", text):
        return "; names of tensors are searched, not classes of layers"
    return ""


def _near(text: str, names: list[str]) -> list[str]:
    """Up to three names that are most like an expression, by their parts."""
    parts = {part for name in names for part in name.split(".")}
    wanted: set[str] = set()
    for word in re.findall(r"\w+", text.removeprefix("re:")):
        wanted.update((word,) if word in parts else difflib.get_close_matches(word.lower(), parts, 2))
    shared = {name: len(wanted.intersection(name.split("."))) for name in names}
    best = sorted((name for name in names if shared[name]), key=lambda name: -shared[name])
    return best[:3]


def _regexes(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise FastSparseError(f"{name}: expected a list of regular expressions, got {texts!r}")
    found = tuple(texts)
    for text in found:
        check_expression(name, text)
    return found


def _share(name: str, value: Any, default: float) -> float:
    """A share from 0 to 1, the default for None."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise FastSparseError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return value
