"""Recipes: which tensor gets which pattern."""

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.checkpoint import Recipe, Rule

BIG = (64, 64)


def chosen(recipe, name="fc.weight", dtype="F32", shape=BIG):
    return str(recipe.choose(name, dtype, shape))


def test_the_first_matching_rule_decides():
    recipe = Recipe(
        rules=[Rule(r"q_proj", "2:4"), Rule(r"^layers\.0\.", skip=True), Rule("proj", fs.Unstructured(0.75))],
        default="50%",
    )
    assert chosen(recipe, "layers.0.q_proj.weight") == "2:4"
    assert chosen(recipe, "layers.0.v_proj.weight") == r"skipped by rule '^layers\\.0\\.'"
    assert chosen(recipe, "layers.1.v_proj.weight") == "75%"
    assert chosen(recipe, "layers.1.fc.weight") == "50%"


def test_the_usual_tensors_get_the_default():
    recipe = Recipe.of("50%")
    assert chosen(recipe) == "50%"
    assert chosen(recipe, shape=(2049, 1)) == "50%"
    assert chosen(recipe, shape=(2048, 1)) == "no more than 2048 elements"
    assert chosen(recipe, shape=(5000,)) == "fewer than two dimensions"
    assert chosen(recipe, dtype="F8_E4M3") == "50%"
    assert "I8" in chosen(recipe, dtype="I8")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight", "shared.weight", "wpe"):
        assert not isinstance(recipe.choose(name, "F32", BIG), fs.Pattern)
    assert chosen(recipe, "mlp.shared_expert.up_proj.weight") == "50%"


def test_names_and_rules_go_beyond_the_usual_selection():
    recipe = Recipe(default="50%", include=["lm_head", "bias"], exclude=["lm_head.bias"], min_size=10_000)
    assert chosen(recipe, "lm_head.weight") == "50%"
    assert chosen(recipe, "fc.bias", shape=(7,)) == "50%"
    assert chosen(recipe, "lm_head.bias") == "excluded by 'lm_head.bias'"
    assert chosen(recipe) == "no more than 10000 elements"
    named = Recipe(rules=[Rule("^embed", "2:4")])
    assert chosen(named, "embed.weight", "I8", (4,)) == "2:4"
    assert chosen(named, "embed.weight", "I64", (4,)) == "dtype I64 is not pruned"
    assert chosen(named) == "no rule matches"


def test_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        default = "50%"
        include = ["lm_head"]
        exclude = ["router"]
        min_size = 100
        scope = "global"
        min_sparsity = 0.25
        max_sparsity = 0.75
        [[rule]]
        match = "norm"
        skip = true
        [[rule]]
        match = 'attn'
        pattern = "2:4"
        """
    )
    rules = (Rule("norm", skip=True), Rule("attn", "2:4"))
    assert Recipe.from_toml(path) == Recipe(
        rules=rules,
        default="50%",
        include=["lm_head"],
        exclude=["router"],
        min_size=100,
        scope="global",
        min_sparsity=0.25,
        max_sparsity=0.75,
    )


def test_toml_with_sections(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        default = "50%"
        [[rule]]
        match = "down"
        pattern = "2:4"
        method = "wanda"
        [calibration]
        data = "text.txt"
        samples = 8
        length = 256
        seed = 3
        sequential = false
        clip = 2
        [method]
        name = "alps"
        refine = 5
        damping = 0.1
        block_size = 64
        [allocation]
        kind = "owl"
        m = 7
        lambda = 0.1
        min = 0.25
        max = 0.75
        """
    )
    recipe = Recipe.from_toml(path)
    assert recipe == Recipe(
        rules=[Rule("down", "2:4", method="wanda")],
        default="50%",
        calibration=checkpoint.Calibration("text.txt", 8, 256, 3, False, 2),
        method=checkpoint.Method("alps", 5, 0.1, 64),
        allocation=checkpoint.Allocation("owl", 7, 0.1, 0.25, 0.75),
    )
    assert (recipe.method_for("a.down.weight"), recipe.method_for("a.up.weight")) == ("wanda", None)


def test_what_needs_calibration_data_is_not_done_without(tmp_path):
    checkpoint.save({"fc.weight": np.ones((64, 64), np.float32)}, tmp_path / "x.safetensors")
    rule = Rule("fc", "2:4", method="wanda")
    for recipe, what in (
        (Recipe(default="50%", method=checkpoint.Method("magnitude")), r"\[method\]"),
        (Recipe(default="50%", allocation=checkpoint.Allocation()), r"\[allocation\]"),
        (Recipe(rules=[rule]), "the method of rule 'fc'"),
    ):
        with pytest.raises(fs.FastSparseError, match=f"recipe: {what} needs calibration data"):
            checkpoint.compress(tmp_path / "x.safetensors", tmp_path / "y.safetensors", recipe)
    with pytest.raises(fs.FastSparseError, match="method: expected a Method, got 'wanda'"):
        Recipe(method="wanda")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("default = 5", "pattern: expected"),
        ("default = '500%'", "sparsity"),
        ("scope = 'global'", "scope: 'global' needs a default"),
        ("global = true", "unknown key 'global'"),
        ("rule = 1", "tables"),
        ("rule = [1]", "tables"),
        ("[[rule]]\npattern = '50%'", "match is missing"),
        ("[[rule]]\nmatch = 'a'", "pattern or skip"),
        ("[[rule]]\nmatch = 'a'\npattern = '50%'\nskip = true", "pattern or skip"),
        ("[[rule]]\nmatch = 'a'\nskip = false", "pattern or skip"),
        ("[[rule]]\nmatch = 'a'\nskip = 1", "skip: expected"),
        ("[[rule]]\nmatch = '('\nskip = true", "not a regular expression"),
        ("[[rule]]\nmatch = 1\nskip = true", "not a regular expression"),
        ("[[rule]]\nmatch = 'a'\nkind = 1", "unknown key 'kind'"),
        ("[[rule]]\nmatch = 'a'\npatern = '2:4'", r"unknown key 'patern' of \[\[rule\]\].*did you mean 'pattern'"),
        ("[[rule]]\nmatch = 'a'\npattern = '2:4'\nmethod = 'sparsegtp'", "method: expected one of magnitude, wanda"),
        ("[[rule]]\nmatch = 'a'\nskip = true\nmethod = 'wanda'", "a rule that skips has no method"),
        ("methods = 1", "unknown key 'methods'.*did you mean 'method'"),
        ("method = 'wanda'", r"method: expected a section \[method\], got 'wanda'"),
        ("[method]\nnmae = 'wanda'", r"unknown key 'nmae' of \[method\].*did you mean 'name'"),
        ("[method]\nname = 'wandas'", r"\[method\]: method: expected one of"),
        ("[method]\nrefine = -1", r"\[method\]: refine: expected"),
        ("[method]\ndamping = true", r"\[method\]: damping: expected a number"),
        ("[method]\nblock_size = 0", r"\[method\]: block_size: expected an integer ≥ 1"),
        ("[calibration]\nsample = 1", r"unknown key 'sample' of \[calibration\].*did you mean 'samples'"),
        ("[calibration]\nlength = 1", r"\[calibration\]: length: expected an integer ≥ 2"),
        ("[calibration]\ndata = 1", r"\[calibration\]: data: expected the name of a file"),
        ("[calibration]\nclip = 0", r"\[calibration\]: clip: expected a number above 0, got 0"),
        ("[calibration]\nsequential = 1", r"\[calibration\]: sequential: expected true or false"),
        ("[calibration]\nseed = -1", r"\[calibration\]: seed: expected an integer"),
        ("[allocation]\nkind = 'owls'", r"\[allocation\]: allocation: expected one of uniform, owl, loss"),
        ("[allocation]\nspread = 1", r"unknown key 'spread' of \[allocation\]"),
        ("[allocation]\nlambda = 2", r"\[allocation\]: lambda: expected a number from 0 to 1"),
        ("[allocation]\nmin = 0.6\nmax = 0.5", r"\[allocation\]: min, max: expected min ≤ max"),
        ("include = 'a'", "include: expected a list"),
        ("exclude = ['(']", "not a regular expression"),
        ("min_size = -1", "min_size"),
        ("min_size = true", "min_size"),
        ("include = 7", "include: expected"),
        ("x = ", "Invalid"),
        ("\xff", "utf-8|Invalid"),
    ],
)
def test_toml_that_is_not_a_recipe(tmp_path, text, why):
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(fs.FastSparseError, match=rf"recipe\.toml: .*({why})"):
        Recipe.from_toml(path)


def test_recipes_are_checked_when_made():
    with pytest.raises(fs.FastSparseError, match="rules: expected"):
        Recipe(rules=["50%"])
    with pytest.raises(fs.FastSparseError, match="pattern: expected"):
        Recipe.of(7)
