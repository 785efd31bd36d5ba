"""Values of a range, combinations of a grid, points of a Sobol sequence."""

from __future__ import annotations

from lora_train.trainer.sweep.space import Choices, Range, grid, sobol


def test_a_range_has_its_ends_and_its_middle():
    assert [Range(1e-5, 1e-3, "log").at(share) for share in (0.0, 0.5, 1.0)] == [1e-5, 1e-4, 1e-3]
    assert [Range(0.0, 0.3).at(share) for share in (0.0, 0.5, 1.0)] == [0.0, 0.15, 0.3]
    assert [Range(4, 64, "log", whole=True).at(share) for share in (0.0, 0.25, 1.0)] == [4, 8, 64]
    assert [type(value) for value in Range(1, 3, points=3, whole=True).grid()] == [int] * 3
    assert Range(1, 2, points=5, whole=True).grid() == [1, 2]  # equal ones once


def test_a_grid_has_every_combination():
    space = {"a": Choices((1, 2)), "b": Range(0.0, 1.0, points=3)}
    assert grid(space) == [{"a": a, "b": b} for a in (1, 2) for b in (0.0, 0.5, 1.0)]


def test_a_sobol_sequence_is_even_and_the_same_for_its_seed():
    space = {"a": Range(0.0, 1.0), "b": Choices(("x", "y", "z", "w"))}
    points = sobol(space, 16, seed=3)
    assert points == sobol(space, 16, seed=3)
    assert points != sobol(space, 16, seed=4)
    assert points[:8] == sobol(space, 8, seed=3)  # more trials begin with the same ones
    # of 16 points each sixteenth of a range holds one, and each of four choices four
    assert sorted(int(16 * point["a"]) for point in points) == list(range(16))
    assert sorted(point["b"] for point in points) == sorted("xyzw" * 4)


def test_what_is_written_is_what_is_read():
    assert Range(1e-5, 1e-3, "log", 4).as_dict() == {"low": 1e-5, "high": 1e-3, "scale": "log", "points": 4}
    assert Range(4, 8, whole=True).as_dict() == {"low": 4, "high": 8, "scale": "linear"}
    assert Choices((1, "a")).as_dict() == [1, "a"]
