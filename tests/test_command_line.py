from __future__ import annotations

import shlex

import pytest

from forward_inf_mlflow.command_line import command_line, join_names, split_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("3,17", ["3", "17"]),
        (" 3 , 17,", ["3", "17"]),
        ('"a,b",c', ["a,b", "c"]),
        ('3, "a ""b"", c"', ["3", 'a "b", c']),
        (",", []),
        ("", []),
    ],
)
def test_names_are_split_at_commas_outside_quotes(text: str, names: list[str]) -> None:
    assert split_names(text) == names


def test_joined_names_are_split_as_they_were() -> None:
    names = ["a,b", 'say "c"', "d e", "'f'", "7"]
    assert split_names(join_names(names)) == names


def test_a_command_line_leaves_out_what_was_not_asked_for() -> None:
    found = command_line(
        "influence",
        "models:/a b/1",
        {"query_rows": ["x,y", 3], "compiled": True, "fresh": False, "id": None, "seed": 0},
    )
    assert shlex.split(found) == [
        *("forward-inf", "influence", "models:/a b/1", "--query-rows", '"x,y",3'),
        *("--compiled", "--seed", "0"),
    ]
