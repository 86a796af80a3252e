"""No local path of an injected parameter reaches a published page."""

import ast

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from memlib.companion.book.local_paths import without_local_paths


def shown(parameters):
    injected = new_code_cell(
        "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in parameters.items()), metadata={"tags": ["injected-parameters"]}
    )
    code = new_code_cell("path = '/data/models'")
    record = {
        "parameters": parameters,
        "output_path": "/home/ann/out.ipynb",
        "input_path": "/home/ann/in.ipynb",
        "environment_variables": {"HOME": "/home/ann"},
    }
    page = without_local_paths(new_notebook(cells=[injected, code], metadata={"papermill": record}))
    assert page.cells[1].source == code.source, "only what was injected is changed"
    assert set(page.metadata.papermill) == {"parameters"}
    found = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(page.cells[0].source).body}
    assert found == page.metadata.papermill.parameters and page.cells[0].source.startswith("# Parameters")
    return found


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("/home/ann/models/mine", "mine"), ("/home/ann/models/mine/", "mine"), ("~/models/mine", "mine"), ("../mine", "mine"), ("C:\\Ann\\mine", "mine"),
        ("C:/Ann/mine", "mine"), ("\\\\server\\ann\\mine", "mine"), ("/", "a folder"), ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"),
        ("minisd-v1", "minisd-v1"), (["/a/b.csv", "c"], ["b.csv", "c"]), (7.5, 7.5), (None, None), ("/home/ann/it's \"mine\"", "it's \"mine\""),
    ],
)  # fmt: skip
def test_a_path_is_shown_by_its_last_part_and_other_values_as_they_are(given, seen):
    assert shown({"substrate": given, "steps": 4}) == {"substrate": seen, "steps": 4}


def test_the_same_path_twice():
    assert shown({"a": "/x/y", "b": ["/x/y", "/x/z"]}) == {"a": "y", "b": ["y", "z"]}
