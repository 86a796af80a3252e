"""A file that is written anew is there as it was, or as it will be, and never in between."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from memlib.base.writing import replacing, replacing_folder, write_table, write_text

PACKAGE = Path(__file__).parents[1] / "memlib"
# Calls that write a file: by the method's name, or by the whole name where the method's alone says too little; of `save` those that are given a place.
WRITERS = {"to_csv", "to_parquet", "to_json", "to_pickle", "to_excel", "write_text", "write_bytes", "save_pretrained", "savefig", "save_file", "savez",
           "savez_compressed", "savetxt", "tofile", "imsave", "imwrite", "copy2", "copyfile", "copytree", "urlretrieve"}  # fmt: skip
WHOLE = {"torch.save", "np.save", "nbformat.write", "json.dump", "yaml.dump", "yaml.safe_dump", "pickle.dump", "shutil.copy", "shutil.move"}
# What needs no old content kept: folders that are made anew for one build, a log that grows line by line, a switch of the kernel's, what pooch
# gives a name only when it is checked; and what makes the others safe.
ELSEWHERE = {"base/writing.py", "companion/book/site.py", "companion/book/api.py", "companion/book/finish.py", "companion/book/pages.py: write_text",
             "companion/bench/store.py: write_bytes",
             "training/minisd/trainer.py: open", "results/timed.py: write_text",
             "base/download.py: open", "probes/locality.py: save"}  # fmt: skip
OWN = {"write_text", "write_table"}  # memlib's own functions of these names replace


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "made" / "table.json"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with replacing(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second" and [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_after_an_exception_the_file_is_as_it_was(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("first")
    with pytest.raises(ValueError, match="half way"), replacing(path) as temporary:
        temporary.write_text("sec")
        raise ValueError("half way")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "table.json"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one", "the last to end stays"


def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path):
    path, folder = tmp_path / "table.csv", tmp_path / "model"
    write_text(path, "first")
    folder.mkdir()
    (folder / "old").touch()
    code = f"""
import os, signal
from pathlib import Path
from memlib.base.writing import replacing, replacing_folder
with replacing(Path({str(path)!r})) as one, replacing_folder(Path({str(folder)!r})) as other:
    one.write_text("sec"), (other / "new").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 4
    with replacing(path) as living:
        living.write_text("another")
        write_table(path, pd.DataFrame({"a": [1], "b": ["x, y"]}))
        assert living.exists(), "its writer lives"
        with replacing_folder(folder) as partial:
            assert not list(partial.iterdir())
            (partial / "new").touch()
    assert path.read_text() == "another" and sorted(os.listdir(tmp_path)) == ["model", "table.csv"] and os.listdir(folder) == ["new"]


def test_a_folder_stays_as_it_was_until_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "runs" / "model"
    with replacing_folder(folder) as partial:
        (partial / "first").touch()
        assert not folder.exists()
    with pytest.raises(ValueError, match="half way"), replacing_folder(folder) as partial:
        (partial / "second").touch()
        raise ValueError("half way")
    assert os.listdir(folder) == ["first"] and os.listdir(folder.parent) == ["model"]
    # As a kill between the two renames leaves it: the old one is put back before a new one is begun.
    folder.rename(folder.with_name(".model.old"))
    with pytest.raises(ValueError, match="again"), replacing_folder(folder):
        raise ValueError("again")
    assert os.listdir(folder) == ["first"]
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    with replacing_folder(link) as partial:
        (partial / "own").touch()
    assert os.listdir(link) == ["own"] and os.listdir(folder) == ["first"] and not link.is_symlink()


def test_a_table_is_what_pandas_writes_and_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    path, table = tmp_path / "table.csv", pd.DataFrame({"a": [1, 2], "b": ['x, "y"', None]})
    write_table(path, table)
    assert path.read_bytes() == b'a,b\n1,"x, ""y"""\n2,\n'

    def full(self: pd.DataFrame, target: Path, **options: object) -> None:
        Path(target).write_text("a,b")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space"):
        write_table(path, table)
    assert path.read_bytes().startswith(b"a,b\n1") and os.listdir(tmp_path) == ["table.csv"]


def _called(call: ast.Call) -> tuple[str, str]:
    """A call's name, alone and with what it is called on."""
    name = ast.unparse(call.func)
    return name.rpartition(".")[2], name


def _writes(call: ast.Call) -> bool:
    last, whole = _called(call)
    if last == "open":
        modes = [argument.value for argument in (*call.args, *(keyword.value for keyword in call.keywords)) if isinstance(argument, ast.Constant)]
        return any(isinstance(mode, str) and set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes)
    return (
        (last in WRITERS and whole not in OWN and bool(call.args or call.keywords))
        or (whole in WHOLE and len(call.args) > 1)
        or (last == "save" and bool(call.args))
    )


def _unsafe(node: ast.AST, safe: frozenset[str] = frozenset()) -> Iterator[ast.Call]:
    """Calls that write to a place which is none of `safe`, and none that `replacing` or a buffer in memory gives."""
    if isinstance(node, (ast.FunctionDef, ast.Module)):
        buffers = [one for one in ast.walk(node) if isinstance(one, (ast.Assign, ast.NamedExpr)) and "BytesIO()" in ast.unparse(one.value)]
        safe |= {
            name.id
            for one in buffers
            for target in getattr(one, "targets", [getattr(one, "target", one)])
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        }
    if isinstance(node, ast.With):
        for item in node.items:
            if isinstance(given := item.context_expr, ast.Call) and item.optional_vars:
                opened = _called(given)[1] == "open" and ast.unparse(given.args[0]) in safe
                if opened or _called(given)[0] in ("replacing", "replacing_folder"):
                    safe |= {ast.unparse(item.optional_vars)}
    if isinstance(node, ast.Call) and _writes(node):
        on = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        places = (*on, *node.args, *(keyword.value for keyword in node.keywords))
        if not any(isinstance(name, ast.Name) and name.id in safe for place in places for name in ast.walk(place)):
            yield node
    for child in ast.iter_child_nodes(node):
        yield from _unsafe(child, safe)


def test_every_writer_of_the_package_replaces_whole_files():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        for call in _unsafe(ast.parse(path.read_text(encoding="utf-8"))):
            if place not in ELSEWHERE and f"{place}: {_called(call)[0]}" not in ELSEWHERE:
                found.append(f"{place}:{call.lineno} {ast.unparse(call)[:80]}")
    assert not found, "written in place: take memlib.base.writing\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("code", "safe"),
    [
        ("table.to_csv(path, index=False)", False),
        ("with replacing(path) as partial:\n    table.to_csv(partial, index=False)", True),
        ("with replacing(path) as partial:\n    table.to_csv(path, index=False)", False),
        ("with replacing(path) as partial, open(partial, 'wb') as file:\n    np.save(file, x)", True),
        ("with replacing(path) as partial, open(path, 'wb') as file:\n    np.save(file, x)", False),
        ("with open(path, 'w', encoding='utf-8') as file:\n    pass", False),
        ("with path.open('a') as file:\n    pass", False),
        ("with open(path, encoding='utf-8') as file:\n    pass", True),
        ("def f():\n    buffer = io.BytesIO()\n    image.save(buffer, 'PNG')", True),
        ("(folder / 'x.json').write_text(json.dumps(found))", False),
        ("with replacing_folder(folder) as made:\n    pipe.save_pretrained(made / 'unet')", True),
        ("trainer.save()", True),
    ],
)
def test_what_the_walk_takes_for_a_writer(code, safe):
    assert (not list(_unsafe(ast.parse(code)))) == safe
