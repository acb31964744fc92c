"""What a stage reads of the configuration is among its settings, by whose hash runs are told apart.

The source of each stage's work is followed, with the functions that it hands the job, the
configuration, or a section of it to; what it hands on to others counts as read whole.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import pytest

from pipelines.job import Job, Stage
from pipelines.run import all_stages, stages_named
from recs.config import Config
from recs.settings import Strict

#: Nothing that a stage writes depends on these: results are the same on any processes, and what is
#: expected of a delivery only lets it pass or fail.
FREE = ("processes", "events.expect")

CONFIG = Config.model_validate(
    {
        "name": "all",
        "root": "lake",
        "models": ["popularity", "slim", "sasrec"],
        "events": {
            "sources": [{"path": "a.csv", "columns": {"user": "u", "item": "i", "timestamp": "t"}}]
        },
        "sequences": {},
        "negatives": {},
        "networks": {"sasrec": {"tune": {"space": {"model.dim": [8]}}}},
    }
)


class Setting(NamedTuple):
    """A part of the configuration, by its dotted key; "" is the whole."""

    key: str
    value: Any

    def below(self, name: str, value: Any) -> Setting:
        return Setting(f"{self.key}.{name}".lstrip("."), value)


class Method(NamedTuple):
    """A method of the job or of a section of the configuration."""

    function: FunctionType
    owner: Any


#: Methods of the job that read the settings whose keys are their last argument.
TAKE_KEYS = (Job.note_settings, Job.other_settings, Job.require_settings)

JOB = object()
#: What properties give, into which one looks instead.
FOLLOWED = object()


def is_known(found: Any) -> bool:
    """Tell whether something is the job, settings, or one of several models."""
    return found is JOB or isinstance(found, Setting | list)


class Followed:
    """Follows a function of which some parameters are the job or settings; gathers keys read."""

    def __init__(self, function: FunctionType, bound: dict[str, Any], keys: set[str]) -> None:
        self.function, self.known, self.keys = function, dict(bound), keys
        source = textwrap.dedent(inspect.getsource(function)).strip()
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a lambda among arguments
            tree = ast.parse(f"call({source})")
        kinds = (ast.Lambda,) if function.__name__ == "<lambda>" else (ast.FunctionDef,)
        made: Any = next(node for node in ast.walk(tree) if isinstance(node, kinds))
        for node in made.body if isinstance(made.body, list) else [made.body]:
            self.read(node)

    def read(self, node: ast.AST) -> None:
        """Note what a statement or expression reads."""
        if isinstance(node, ast.Assign):
            for target, value in self.pairs(node.targets[0], node.value):
                found = self.value_of(value)
                if isinstance(target, ast.Name) and is_known(found):
                    self.known[target.id] = found
                    for other in value.values[1:] if isinstance(value, ast.BoolOp) else ():
                        self.read(other)
                else:
                    self.read(value)
        elif isinstance(node, ast.Call):
            self.call(node)
        elif isinstance(node, ast.Attribute | ast.Name | ast.Subscript):
            found = self.value_of(node)
            assert found is not JOB, f"{self.function} hands the job to what is not followed"
            if isinstance(found, Setting):
                self.keys.add(found.key)
            elif found is not FOLLOWED:
                self.inside(node)
        else:
            self.inside(node)

    def inside(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            base = isinstance(node, ast.Attribute) and self.value_of(child) is JOB
            if not base:  # job.run and the like are no settings
                self.read(child)

    def pairs(self, target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
        both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        yield from zip(target.elts, value.elts, strict=True) if both else [(target, value)]  # type: ignore[attr-defined]

    def call(self, node: ast.Call) -> None:
        called = self.value_of(node.func)
        if isinstance(called, Method) and called.function in TAKE_KEYS:
            self.keys.update(self.keys_of(node.args[-1]))
            return
        functions = called if isinstance(called, list) else [called]
        named = {word.arg: word.value for word in node.keywords if word.arg}
        if not all(self.is_followed(function) for function in functions):
            if not isinstance(called, Method):
                self.read(node.func)
            elif isinstance(called.owner, Setting):
                self.keys.add(called.owner.key)
            for argument in (*node.args, *named.values()):
                self.read(argument)
            return
        for function in functions:
            first: tuple[Any, ...] = ()
            if isinstance(function, Method):
                first, function = (function.owner,), function.function
            while isinstance(function, partial):
                first, function = (*first, *function.args), function.func
            names = list(inspect.signature(function).parameters)
            arguments = dict(zip(names[len(first) :], node.args, strict=False)) | named
            bound = {name: self.value_of(value) for name, value in arguments.items()}
            bound = {
                name: value
                for name, value in (*bound.items(), *zip(names, first, strict=False))
                if is_known(value)
            }
            for name, value in arguments.items():
                if name not in bound:
                    self.read(value)
            if bound:
                Followed(function, bound, self.keys)

    def keys_of(self, node: ast.AST) -> tuple[str, ...]:
        """Return the keys that an expression of constants names."""
        if isinstance(node, ast.Tuple):
            return tuple(key for part in node.elts for key in self.keys_of(part))
        return tuple(self.value_of(node.value if isinstance(node, ast.Starred) else node))

    @staticmethod
    def is_followed(function: Any) -> bool:
        while isinstance(function, Method | partial):
            function = function.function if isinstance(function, Method) else function.func
        ours = getattr(function, "__module__", None) or ""
        return isinstance(function, FunctionType) and ours.startswith(("recs.", "pipelines."))

    def value_of(self, node: ast.AST) -> Any:
        """Return what an expression stands for, None where that is not known."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id, self.function.__globals__.get(node.id))
        if isinstance(node, ast.BoolOp):
            return self.value_of(node.values[0])
        if isinstance(node, ast.Subscript):
            base = self.value_of(node.value)
            if isinstance(base, Setting) and isinstance(base.value, dict):
                return base.below("*", next(iter(base.value.values())))
            return list(base.values()) if isinstance(base, dict) else None
        if not isinstance(node, ast.Attribute):
            return None
        base = self.value_of(node.value)
        if isinstance(base, list):
            return [getattr(each, node.attr) for each in base]
        if base is JOB and node.attr == "config":
            return Setting("", CONFIG)
        if base is JOB or (isinstance(base, Setting) and isinstance(base.value, Strict)):
            kind: Any = type(base.value) if isinstance(base, Setting) else Job
            if isinstance(base, Setting) and node.attr in kind.model_fields:
                return base.below(node.attr, getattr(base.value, node.attr))
            found = getattr(kind, node.attr, None)
            if isinstance(found, property):
                assert isinstance(found.fget, FunctionType)
                Followed(found.fget, {"self": base}, self.keys)
                return FOLLOWED
            return Method(found, base) if isinstance(found, FunctionType) else FOLLOWED
        return None if isinstance(base, Setting) or base is None else getattr(base, node.attr, None)


@pytest.mark.parametrize("stage", all_stages(CONFIG), ids=lambda stage: stage.label)
def test_what_a_stage_reads_is_among_its_settings(stage: Stage) -> None:
    keys: set[str] = set()
    Followed(stage.work, {"job": JOB}, keys)  # type: ignore[arg-type]
    # A stage that is of a network reads no other's section.
    of_model = {
        key.replace("networks.*", f"networks.{stage.model}")
        for key in keys
        if not key.startswith(FREE)
    }
    lacking = {
        key
        for key in of_model
        # A list is read as far as the setting says: events.sources.*.held_out.
        if not any(
            f"{key}.".startswith(f"{setting}.") or setting.startswith(f"{key}.*.")
            for setting in stage.settings
        )
    }
    assert not lacking


def test_what_is_read_through_others_is_found() -> None:
    keys: set[str] = set()
    (stage,) = stages_named(CONFIG, "recommend/slim")
    Followed(stage.work, {"job": JOB}, keys)  # type: ignore[arg-type]
    assert keys == {
        "mode",
        "split.recommendable",
        "events.types",
        "slim.values",
        "recommend.exclude_seen",
        "recommend.k",
        "recommend.why",
        "evaluate.split",
    }
