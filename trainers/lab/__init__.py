"""A small synthetic world in which the truth of a picture is known, for tests and experiments."""

from __future__ import annotations

from rewardzoo.trainers.lab.pairs import Triple, corrupt, triples
from rewardzoo.trainers.lab.perception import Found, find_objects
from rewardzoo.trainers.lab.prompts import VOCABULARY, parse_prompt, prompt_of, sample_prompts
from rewardzoo.trainers.lab.render import render
from rewardzoo.trainers.lab.scene import (
    CATEGORIES,
    COLORS,
    HELD_OUT,
    SHAPES,
    Category,
    Entity,
    Relation,
    Scene,
    Split,
    sample_scene,
)
from rewardzoo.trainers.lab.verdict import Statement, Verdict, evaluate, judge

__all__ = [
    "CATEGORIES",
    "COLORS",
    "HELD_OUT",
    "SHAPES",
    "VOCABULARY",
    "Category",
    "Entity",
    "Found",
    "Relation",
    "Scene",
    "Split",
    "Statement",
    "Triple",
    "Verdict",
    "corrupt",
    "evaluate",
    "find_objects",
    "judge",
    "parse_prompt",
    "prompt_of",
    "render",
    "sample_prompts",
    "sample_scene",
    "triples",
]
