"""The firing rates: of our examples, and of the public configurations that are kept."""

from __future__ import annotations

from benchmarks.tips.__main__ import counted, main, ours, public


def test_public_recipes_are_seldom_told_off():
    configs = list(public())
    assert len(configs) > 150
    found = counted(configs)
    often = {name for name, (asked, fired) in found.items() if asked >= 50 and len(fired) > 0.05 * asked}
    assert often == set()
    assert all(where for _, fired in found.values() for where, _ in fired)
    assert found["batch_over_data"] == (0, [])  # rows are not known: not asked, and never "none of 162"


def test_our_own_recipe_is_told_nothing_and_the_examples_that_they_are_short():
    told = {(where, name) for name, (_, fired) in counted(list(ours())).items() for where, _ in fired}
    demo, classifier = "examples/koalpaca-mini.yaml", "examples/sentiment.yaml"
    assert told == {(demo, "few_updates"), (demo, "rate"), (classifier, "few_updates")}


def test_the_tables_are_printed(capsys):
    assert main(["--read"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("our examples: 3\n")
    assert "public configurations: " in out
    assert "examples/koalpaca-mini.yaml: 50 updates in all" in out
