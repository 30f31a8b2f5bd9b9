"""Recipes: which tensor gets which pattern."""

import pytest

import fastsparse as fs
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
